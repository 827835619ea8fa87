"""``ziggurat eval``: how often a model solves problems it has not seen, and its loss on text."""

import json
from pathlib import Path
from typing import Any

from ziggurat.cli import console
from ziggurat.core import hub
from ziggurat.core.errors import ConfigError

EXAMPLE = """ziggurat eval runs/chain-grpo
  ziggurat eval MODEL --task chain_sum --settings max_terms=2 max_digits=1 --problems 500
  ziggurat eval MODEL --task problems.jsonl --reward number --samples 8 --k 8 --temperature 1
  ziggurat eval MODEL --text held-out.txt"""
WINDOW = 512
"""Tokens of one row of text."""


def evaluate(
    model: Path,
    /,
    task: str | None = None,
    settings: tuple[str, ...] = (),
    reward: str | None = None,
    template: str | None = None,
    answer: str | None = None,
    chat: bool = False,
    problems: int = 200,
    samples: int = 1,
    k: int = 1,
    temperature: float = 0.0,
    max_tokens: int | None = None,
    seed: int = 0,
    text: tuple[Path, ...] = (),
    tokens: int = 8192,
    json_file: Path | None = None,
) -> int:
    """Measure a model on held-out problems of a task, or on text.

    A run of reinforcement learning is measured on its own task, prompts and rewards. Accuracy comes
    with its 95% interval (Wilson's).

    Args:
        model: a run, a checkpoint step, a Hugging Face directory or a GGUF file.
        task: name of a task of reasoning-gym, a .jsonl file of prompts, or a run file of a run that
            has one; default the run's own.
        settings: the settings of a task given by name, KEY=VALUE.
        reward: for a .jsonl file: exact, number, FILE.py:FUNCTION or MODULE:FUNCTION.
        template: text of the prompt, with {question} where the question stands.
        answer: regular expression whose first group is the answer in a completion.
        chat: put prompts through the model's chat template.
        problems: how many held-out problems.
        samples: completions of each.
        k: also the chance that one of k completions is right.
        temperature: of the draws; 0 takes the most likely token always.
        max_tokens: longest completion; default the run's own, else 64.
        seed: of the draws.
        text: UTF-8 files to measure the loss on.
        tokens: how many tokens of text to predict.
        json_file: write the figures here too.
    """
    from ziggurat.models.loading import pretrained

    for name, value in (("problems", problems), ("samples", samples), ("tokens", tokens)):
        if value < 1:
            raise ConfigError(f"--{name}", found=value, expected="1 or more")
    if not 1 <= k <= samples or (samples > 1 and temperature == 0):
        raise ConfigError(
            "--samples and --k",
            found=f"{samples} and {k} at temperature {temperature}",
            expected="k of 1 to samples, and a temperature above 0 for more than one sample",
        )
    model = hub.local(model)
    asked = None
    if task is not None or not text:
        asked = _asked(model, task, settings, reward, template, answer, chat, problems)
    loaded = pretrained.load(model)
    figures: dict[str, float] = {}
    if asked is not None:
        draws = {"samples": samples, "temperature": temperature, "seed": seed}
        tally = _measured(loaded, *asked, problems=problems, max_tokens=max_tokens, **draws)
        figures |= tally.figures(k)
    if text:
        figures |= _on_text(loaded, text, tokens)
    _print(loaded.name, figures)
    if json_file is not None:
        from ziggurat.core import atomic

        atomic.write_file(json_file, json.dumps({"model": str(model), **figures}, indent=2) + "\n")
    return 0


def _asked(
    model: Path,
    task: str | None,
    settings: tuple[str, ...],
    reward: str | None,
    template: str | None,
    answer: str | None,
    chat: bool,
    problems: int,
) -> tuple[Any, Any, Any]:
    """The data node, the reward's node and the longest completion that the command asks for."""
    from ziggurat.core import config
    from ziggurat.post.rl import config as nodes

    own = (settings, reward, template, answer, chat)
    if task is None or task.endswith(".toml"):
        if any(own):
            found = "--settings, --reward, --template, --answer or --chat beside a run's own task"
            raise ConfigError("task", found=found, expected="a task by name or a .jsonl file")
        return _of_run(Path(task) if task else _run_file(model))
    form = nodes.PromptForm(template=template or "{question}", chat=chat)
    if task.endswith(".jsonl"):
        if reward is None or settings:
            found = "no --reward" if reward is None else "--settings"
            raise ConfigError(f"task {task}", found=found, expected="--reward, and no --settings")
        tree = {"path": task, "reward": reward, "held_out": problems, "held_out_path": task}
        made = config.from_plain(nodes.PromptFile, tree | _given(answer), "command line")
        return _problems(made, form), nodes.RewardConfig(), None
    if reward is not None:
        raise ConfigError(f"task {task}", found="--reward", expected="it for .jsonl files only")
    overrides = [f"settings.{setting}" for setting in settings]
    if answer is not None:
        overrides.append(f"answer={answer}")
    base = f"name = {json.dumps(task)}\nheld_out = {problems}"
    named = config.parse(nodes.ReasoningGym, base, overrides, "command line").value
    return _problems(named, form), nodes.RewardConfig(), None


def _problems(task: Any, form: Any) -> Any:
    """Problems without a training batch, which is never made."""
    from ziggurat.post.rl.config import Problems

    return Problems(task=task, form=form, batch_size=2, sequence_length=2)


def _given(answer: str | None) -> dict[str, str]:
    return {} if answer is None else {"answer": answer}


def _run_file(model: Path) -> Path:
    from ziggurat.models.loading import step_files

    step = step_files.step_directory(model) if model.is_dir() else None
    if step is None or not (step / "run.toml").is_file():
        raise ConfigError(
            f"model {model}",
            found="no run file beside it",
            expected="a run with a task of its own",
            fix="name a task with --task, or texts with --text",
        )
    return step / "run.toml"


def _of_run(path: Path) -> tuple[Any, Any, Any]:
    from ziggurat.core import config
    from ziggurat.post.rl.config import Grpo, Problems, RewardConfig
    from ziggurat.train.config import RunConfig

    run = config.load(RunConfig, path).value
    if not isinstance(run.data, Problems):
        raise ConfigError(
            f"run file {path}",
            found=f"data.kind = {run.data.kind!r}",
            expected="problems",
            fix="name a task with --task, or texts with --text",
        )
    node = run.objective
    if isinstance(node, Grpo):
        return run.data, node.reward, node.sampling.max_tokens
    return run.data, RewardConfig(), None


def _measured(
    loaded: Any,
    data: Any,
    reward: Any,
    own_max_tokens: int | None,
    *,
    problems: int,
    max_tokens: int | None,
    samples: int,
    temperature: float,
    seed: int,
) -> Any:
    from ziggurat.post.rl import tasks
    from ziggurat.post.rl.accuracy import measure
    from ziggurat.post.rl.arena import Arena

    most = max_tokens or own_max_tokens or 64
    task = tasks.build(data.task)
    prompts = [
        tasks.prompt_ids(data.form, loaded.tokenizer, task.problem(i, "held_out").prompt)
        for i in range(min(problems, task.held_out))
    ]
    arena = Arena(
        task,
        data.form,
        reward,
        model=loaded.model,
        tokenizer=loaded.tokenizer,
        longest=max(map(len, prompts)) + most,
        max_tokens=most,
        running=min(len(prompts) * samples, RUNNING),
    )
    try:
        return measure(
            arena,
            loaded.params,
            problems,
            samples=samples,
            temperature=temperature,
            success=reward.success,
            seed=seed,
        )
    finally:
        arena.close()


RUNNING = 64
"""Completions generated together."""


def _on_text(loaded: Any, text: tuple[Path, ...], tokens: int) -> dict[str, float]:
    from ziggurat.quantize import evaluation

    length = min(WINDOW, loaded.model.config.max_sequence_length)
    size = loaded.model.config.vocab_size
    rows = evaluation.windows(text, loaded.tokenizer, tokens, length, size)
    loss = evaluation.mean_loss(loaded.model.logits, rows)(loaded.params)
    return {
        "eval_loss": loss,
        "eval_perplexity": evaluation.perplexity(loss),
        "eval_tokens": float(rows.shape[0] * (rows.shape[1] - 1)),
    }


def _print(name: str, figures: dict[str, float]) -> None:
    from rich.table import Table

    table = Table("figure", "value", title=name, title_justify="left")
    for figure, value in figures.items():
        if figure.endswith(("_low", "_high")):
            continue
        shown = f"{value:g}" if value == int(value) and abs(value) > 1 else f"{value:.4f}"
        if f"{figure}_low" in figures:
            shown += f"  [{figures[f'{figure}_low']:.4f}, {figures[f'{figure}_high']:.4f}]"
        table.add_row(figure, shown)
    console.output().print(table)


def main(args: list[str]) -> int:
    """Run ``ziggurat eval``."""
    return console.run(evaluate, args, "ziggurat eval", EXAMPLE)
