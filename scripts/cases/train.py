"""Training runs that ended wrong, and a read that deleted."""

import ast
import json
import math
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

from cases.case import ZIGGURAT, Done, Scratch, case, end, expect, remove

MAIL = Path(os.__file__).parent / "email"
TEXT = "one.txt"


def _train(scratch: Scratch, *options: str, name: str = "r", limit_s: float = 180) -> Done:
    if not (scratch.path / "base.toml").exists():
        scratch.copy("train/base.toml")
    done = scratch.ziggurat("train", "base.toml", "--set", f'name="{name}"', *options,
                            limit_s=limit_s)  # fmt: skip
    return Done(done.code, "\n".join(x for x in done.text.splitlines() if x.strip()))


def _steps(scratch: Scratch, name: str = "r") -> dict[int, dict]:
    file = scratch.path / "runs" / name / "metrics.jsonl"
    lines = map(json.loads, file.read_text().splitlines()) if file.exists() else ()
    return {line["step"]: line for line in lines if "loss" in line}


def _error(done: Done) -> str:
    return (done.find("^error") or done.last).strip()[:220]


def _one_line_error(done: Done) -> bool:
    return done.code == 2 and "Traceback" not in done.text and bool(done.find("^error"))


def _one_text(scratch: Scratch, copies: int = 1, to: str = TEXT) -> int:
    text = "".join(path.read_text() for path in sorted(MAIL.glob("*.py")))
    (scratch.path / to).write_text(text * copies)
    return len(text.encode())


@case("train/01-gpt2-positions-nan")
def gpt2_positions(scratch: Scratch) -> str:
    """Refused before step 0, or positions counted in the row."""
    model = '{kind="gpt2",vocab_size=257,d_model=32,n_layers=1,n_heads=4,max_sequence_length=64}'
    done = _train(scratch, "--set", f"model={model}", "--train.steps=20")
    losses = [step["loss"] for step in _steps(scratch).values()]
    trained = done.code == 0 and len(losses) > 0 and all(map(math.isfinite, losses))
    refused = _one_line_error(done) and not losses
    seen = f"exit {done.code}, {len(losses)} losses, the last {losses[-1:]}; {_error(done)}"
    return expect(trained or refused, seen)


@case("train/02-long-document-rope", note="20 MB, since 2^24 is passed there; 150 steps")
def long_document(scratch: Scratch) -> str:
    """One long document trains as well as the same rows with positions of their own."""
    scratch.copy("train/base.toml", "cases-work/w/base.toml")
    size = _one_text(scratch, to=f"cases-work/w/{TEXT}")
    copies = 20_000_000 // size + 1
    script = scratch.copy(
        "train/scripts/t_pos.py",
        "cases-work/t_pos.py",
        {
            "<90e6": "<20e6",
            "range(240)": f"range({copies})",
            """.0.path="%s"'%src""": """=[{kind="text",path="%s"}]'%src""",
            "train.steps=300": "train.steps=150",
            "range(300)": "range(150)",
            "range(300,310)": "range(150,160)",
            "(50,100,200,300)": "(50,100,150)",
        },
    )
    done = scratch.python(str(script), limit_s=400)
    found = [
        float(line.rsplit(":", 1)[1])
        for line in done.text.splitlines()
        if "evaluated at positions" in line
    ]
    reach = "; ".join(line for line in done.text.splitlines() if "positions up to" in line)
    seen = f"evaluation, positions of the document and of the row: {found}; {reach or done.last}"
    return expect(len(found) == 2 and abs(found[0] - found[1]) < 0.03, seen)


@case("train/03-bf16-embedding-gradient")
def bf16_embedding(scratch: Scratch) -> str:
    """The input embedding's gradient is as near as every other leaf's."""
    scratch.copy("train/base.toml", "cases-work/w/base.toml")
    found = []
    for name, tokens in (("t_bf16c.py", 4096), ("t_bf16d.py", 32768)):
        script = scratch.copy(f"train/scripts/{name}", f"cases-work/{name}")
        done = scratch.python(str(script), limit_s=240)
        line = done.find(r"^\{.*embed")
        errors = ast.literal_eval(line) if line else {done.last[:200]: math.inf}
        found.append((tokens, max(errors.values()), done.find("^params")))
    seen = "; ".join(f"{tokens} tokens: {error}, {line}" for tokens, error, line in found)
    return expect(all(error < 0.02 for _, error, _ in found), seen)


@case("train/04-extend-steps-lr-jump")
def extended_steps(scratch: Scratch) -> str:
    """The schedule's length is the run's own; shortening is refused."""
    _train(scratch)
    longer = _train(scratch, "--train.steps=30")
    rates = {s: x["learning_rate"] for s, x in _steps(scratch).items() if 17 <= s <= 22}
    shorter = _train(scratch, "--train.steps=10")
    jump = max((b / a for a, b in zip(rates.values(), list(rates.values())[1:], strict=False)
                if a), default=0.0)  # fmt: skip
    rising = jump > 1.5
    refused = longer.code == 2
    seen = f"longer: exit {longer.code}, rates {rates}, {_error(longer) if refused else ''}"
    seen += f"; shorter: exit {shorter.code}, {_error(shorter)}"
    return expect((refused or not rising) and shorter.code == 2, seen)


@case("train/05-failed-first-start-locks-name")
def failed_first_start(scratch: Scratch) -> str:
    """The corrected command runs under the same name."""
    first = _train(scratch, "--data.sources.0.path=nowhere")
    second = _train(scratch)
    seen = f"first exit {first.code}, then exit {second.code}: {second.last[:120]}"
    return expect(first.code == 2 and second.code == 0, seen)


@case("train/06-no-validation-set", later="validation data of its own comes with the open trainer")
def validation_set(scratch: Scratch) -> str:
    """A tail of one file is held out."""
    _one_text(scratch)
    sources = f'data.sources=[{{kind="text",path="{TEXT}"}}]'
    done = _train(scratch, "--data.eval_fraction=0.1", "--set", sources)
    return expect(done.code == 0, f"exit {done.code}: {_error(done)}")


@case("train/07-heldout-depends-on-path", note="t_once.py is not there: two runs, one file moved")
def held_out_by_content(scratch: Scratch) -> str:
    """The same records are held out wherever the same bytes lie: both runs are equal."""
    records = [json.dumps({"text": path.read_text()}) for path in sorted(MAIL.rglob("*.py"))]
    results = []
    for folder in ("mv1", "mv2"):
        (scratch.path / folder).mkdir()
        (scratch.path / folder / "d.jsonl").write_text("\n".join(records) + "\n")
        sources = f'data.sources=[{{kind="jsonl",path="{folder}/d.jsonl"}}]'
        done = _train(scratch, "--set", sources, "--data.eval_fraction=0.3",
                      "--set", "evaluation={every=10}", name=folder)  # fmt: skip
        expect(done.code == 0, _error(done))
        lines = (scratch.path / "runs" / folder / "metrics.jsonl").read_text().splitlines()
        kept = [{k: v for k, v in json.loads(x).items() if "loss" in k} for x in lines]
        results.append([x for x in kept if x])
    same = results[0] == results[1] and any("eval_loss" in x for x in results[0])
    return expect(same, f"losses of both runs, evaluation included, are equal: {results[0][-1]}")


@case("train/08-oserror-traceback")
def oserror(scratch: Scratch) -> str:
    """One line and exit 2."""
    (scratch.path / "file").touch()
    found = [_train(scratch, "--set", f'output="{x}"') for x in ("file", "/proc/nope")]
    return expect(all(map(_one_line_error, found)), "; ".join(map(_error, found)))


@case("train/09-checkpoints-gone-erases-metrics")
def checkpoints_gone(scratch: Scratch) -> str:
    """Refused, and the curve kept."""
    _train(scratch)
    before = len(_steps(scratch))
    for step in (scratch.path / "runs" / "r" / "checkpoints").glob("step_*"):
        remove(step)
    done, after = _train(scratch), len(_steps(scratch))
    seen = f"exit {done.code}, metrics of {before} and then {after} steps: {_error(done)}"
    return expect(_one_line_error(done) and before == after > 0, seen)


@case("train/10-unfinished-exit-0", note="SIGINT too; the signal goes to the command itself")
def unfinished(scratch: Scratch) -> str:
    """Exit 143 after SIGTERM, 130 after SIGINT."""
    scratch.copy("train/base.toml")
    codes = {}
    for number, right in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        name = number.name
        process = scratch.start(ZIGGURAT, "train", "base.toml", "--set", f'name="{name}"',
                                "--train.steps=1000000", "--checkpoint.every=1000",
                                log=scratch.path / name)  # fmt: skip
        started = scratch.until(lambda name=name: bool(_steps(scratch, name)), 180)
        process.send_signal(number)
        try:
            code = process.wait(120 * scratch.patience)
        except subprocess.TimeoutExpired:
            code = end(process, signal.SIGKILL)
        codes[name] = (code if started else "no first step", right)
    seen = ", ".join(f"{name}: exit {code}" for name, (code, _) in codes.items())
    return expect(all(code == right for code, right in codes.values()), seen)


@case("train/11-data-moved-or-added")
def moved_data(scratch: Scratch) -> str:
    """Data that is bit for bit the same resumes from another path."""
    _train(scratch)
    shutil.copytree(MAIL, scratch.path / "mail")
    done = _train(scratch, "--data.sources.0.path=mail", "--train.steps=22")
    reached = max(_steps(scratch), default=0)
    seen = f"exit {done.code}, step {reached}: {done.last.strip()[:160]}"
    return expect(done.code == 0 and reached >= 21, seen)


@case("house/02-read-deletes", note="weights made by transformers: the folder has none")
def reading(scratch: Scratch) -> str:
    """A read leaves the directory as it was."""
    shutil.copytree(scratch.cases / "house/02-read-deletes/hf", scratch.path / "hf")
    made = scratch.python("-c", WEIGHTS)
    expect(made.code == 0, made.last)
    script = scratch.copy("house/02-read-deletes/run.py")
    done = scratch.python(str(script), "hf")
    line = done.find("^appeared")
    return expect(re.fullmatch(r"appeared: set\(\) gone: set\(\)", line), line or done.last)


WEIGHTS = """
from pathlib import Path
from transformers import AutoConfig, AutoModelForCausalLM
config = AutoConfig.from_pretrained("hf")
AutoModelForCausalLM.from_config(config).save_pretrained("made")
Path("made/model.safetensors").rename("hf/model.safetensors")
"""
