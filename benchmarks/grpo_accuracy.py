"""Does GRPO raise held-out accuracy? Three seeds from scratch to the end, with intervals.

For each seed a model of under a million parameters is trained on problems with answers (a minute),
half of which are wrong: they repeat the word instead of spelling it backward, so that the model
does now this, now that. Then it learns by GRPO on further problems from the first run's checkpoint;
the reward is the share of letters in their places, and 1 more for the whole word. Both models are
measured on the same problems, which neither has seen, with Wilson's 95% interval: greedy answers,
and four drawn at the temperature that GRPO draws at. Over seeds, the gain's interval is Student's.
Times come from the run's own metrics. Prints a table; ``--output`` writes JSON::

    python benchmarks/grpo_accuracy.py --output benchmarks/results/grpo_accuracy.json
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
from rich.console import Console

from ziggurat.core import config
from ziggurat.models.loading import pretrained
from ziggurat.post.rl import tasks
from ziggurat.post.rl.accuracy import Tally, measure
from ziggurat.post.rl.arena import Arena
from ziggurat.post.rl.config import PromptForm, ReasoningGym, RewardConfig
from ziggurat.train.config import RunConfig
from ziggurat.train.loop import train
from ziggurat.train.metrics import read_metrics
from ziggurat.train.outcome import TrainingOutcome

LONGEST, MOST = 32, 9
"""Tokens of prompt and completion together, and of a completion."""
TASK = """kind = "reasoning_gym"
name = "spell_backward"
settings = { min_word_len = 3, max_word_len = 5 }
held_out = 400
"""
FIRST = """
[model]
kind = "llama"
vocab_size = 300
d_model = 128
n_layers = 4
n_heads = 4
n_kv_heads = 2
d_ff = 352
max_sequence_length = 64

[tokenizer]
kind = "train_bpe"
vocab_size = 300

[data]
sources = [{ kind = "jsonl", path = "PATH" }]
sequence_length = 64
batch_size = 32

[optimizer]
kind = "muon"
lr = 2e-2
adam_lr = 3e-3
schedule = { kind = "cosine", warmup_steps = 10 }

[train]
steps = 150
"""
SECOND = f"""
[model]
kind = "pretrained"
path = "PATH"

[data]
kind = "problems"
batch_size = 128
sequence_length = {LONGEST}

[data.task]
{TASK}
[objective]
kind = "grpo"
group = 8
sampling = {{ max_tokens = {MOST}, max_running = 128 }}

[optimizer]
kind = "adamw"
lr = 5e-4
weight_decay = 0.0
schedule = {{ kind = "constant", warmup_steps = 5 }}

[train]
steps = 60
"""
REWARD = """def letters(prompt, completion, row):
    said, answer = completion.strip(), row["answer"]
    right = sum(a == b for a, b in zip(said, answer))
    return right / max(len(said), len(answer)) + (said == answer)
"""
WORKED = 1 << 20
"""Number of the first worked problem: far from those that GRPO takes, which begin at 0."""
APART = 10**7
"""Between the seeds of the task: its problems come from consecutive ones."""
EXAMPLES = 20_000
WAYS = {"greedy": (1, 0.0), "sampled": (4, 1.0)}
"""Completions of each problem, and their temperature."""
QUANTILE = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""Student's 97.5% quantile by number of seeds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, choices=sorted(QUANTILE))
    parser.add_argument("--from-seed", type=int, default=0, help="the first of them")
    parser.add_argument("--examples", type=int, default=EXAMPLES)
    parser.add_argument("--first", nargs="*", default=[], help="overrides of the first run")
    parser.add_argument("--second", nargs="*", default=[], help="overrides of the second run")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--runs", type=Path, help="keep the runs here, and go on with those there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = options.runs or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        seeds = range(options.from_seed, options.from_seed + options.seeds)
        found = [one_seed(directory.resolve(), seed, options) for seed in seeds]
    gains = {way: gain(found, way) for way in WAYS}
    if options.output is not None:
        machine = {"machine": platform.machine(), "cpus": os.cpu_count(), "jax": jax.__version__}
        body: dict[str, Any] = {"task": TASK.splitlines(), "machine": machine, "seeds": found}
        body["gain"] = gains
        options.output.write_text(json.dumps(body, indent=1) + "\n")


def gain(found: list[dict[str, Any]], way: str) -> dict[str, Any]:
    """Mean over seeds of what accuracy rose by, and Student's interval."""
    gains = [entry["end"][way]["accuracy"] - entry["start"][way]["accuracy"] for entry in found]
    middle = statistics.mean(gains)
    half = QUANTILE[len(gains)] * statistics.stdev(gains) / len(gains) ** 0.5
    low, high = middle - half, middle + half
    print(f"{way}: gain over {len(gains)} seeds {middle:.3f} [{low:.3f}, {high:.3f}]")
    return {"mean": middle, "interval_95": [low, high]}


def one_seed(directory: Path, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Both runs and both measurements of a seed."""
    node = config.parse(ReasoningGym, TASK, [f"seed={seed * APART}"]).value
    worked = directory / f"worked-{seed}.jsonl"
    task = tasks.build(node)
    with worked.open("w") as file:
        for number in range(WORKED, WORKED + options.examples):
            problem = task.problem(number)
            right = problem.row["answer"]
            text = f"{problem.prompt} {right if number % 2 else right[::-1]}"
            file.write(json.dumps({"text": text}) + "\n")
    common = [f"seed={seed}", f"output={directory}", "report.tensorboard=false"]
    first = run(FIRST, f"data.sources.0.path={worked}", "sft", *common, *options.first)
    judge = directory / "judge.py"
    judge.write_text(REWARD)
    further = [f"data.task.seed={seed * APART}", f"data.task.reward={judge}:letters"]
    further += options.second
    second = run(SECOND, f"model.path={first.directory.path}", "grpo", *common, *further)
    start, end = (accuracies(outcome, task) for outcome in (first, second))
    entry = {
        "seed": seed,
        "parameters": first.experiment.model.parameter_count,
        "start": {way: shown(tally) for way, tally in start.items()},
        "end": {way: shown(tally) for way, tally in end.items()},
        "sft_s": steps_s(first),
        "grpo_s": steps_s(second),
        "grpo_steps": second.run.value.train.steps,
        "medians": medians(second),
    }
    for way in WAYS:
        print(f"seed {seed} {way}: {bounds(start[way])} -> {bounds(end[way])}", flush=True)
    print(f"  {entry['sft_s']:.0f} s and {entry['grpo_s']:.0f} s of steps; {entry['medians']}")
    return entry


def run(text: str, start: str, name: str, *overrides: str) -> TrainingOutcome:
    """A run to its end; each seed has a directory of its own name."""
    seed = next(o for o in overrides if o.startswith("seed=")).removeprefix("seed=")
    made = config.parse(RunConfig, f'name = "{name}-{seed}"\n{text}', [start, *overrides])
    return train(made, Console(quiet=True))


def accuracies(outcome: TrainingOutcome, task: tasks.Task) -> dict[str, Tally]:
    """Answers to all held-out problems, in each way."""
    loaded = pretrained.load(outcome.directory.path)
    arena = Arena(
        task,
        PromptForm(),
        RewardConfig(),
        model=loaded.model,
        tokenizer=loaded.tokenizer,
        longest=LONGEST,
        max_tokens=MOST,
        running=128,
    )

    def tried(samples: int, temperature: float) -> Tally:
        draws = {"samples": samples, "temperature": temperature, "seed": 0}
        return measure(arena, loaded.params, task.held_out, success=1.0, **draws)

    try:
        return {way: tried(*asked) for way, asked in WAYS.items()}
    finally:
        arena.close()


def shown(tally: Tally) -> dict[str, Any]:
    return {"accuracy": tally.pass_at(1), "interval_95": list(tally.interval())}


def bounds(tally: Tally) -> str:
    low, high = tally.interval()
    return f"{tally.pass_at(1):.3f} [{low:.3f}, {high:.3f}]"


def rows_of(outcome: TrainingOutcome) -> list[dict[str, Any]]:
    return [row for row in read_metrics(outcome.directory.metrics) if "step_time_s" in row]


def steps_s(outcome: TrainingOutcome) -> float:
    """Seconds of all steps, rollouts and compiling within them included."""
    return sum(row["step_time_s"] for row in rows_of(outcome))


def medians(outcome: TrainingOutcome) -> dict[str, float]:
    """Of a step's seconds and of the parts of its rollout, without the first two steps."""
    names = ("step_time_s", "generation_s", "judging_s", "scoring_s", "generated_tokens_per_s")
    names += ("sampler_gap_mean", "sampler_gap_max")
    rows = rows_of(outcome)[2:]
    return {name: float(f"{statistics.median(r[name] for r in rows):.3g}") for name in names}


if __name__ == "__main__":
    main()
