"""Published configs and files of models."""

import json
import re

from cases.case import Done, Scratch, case, expect

SMALL = 1e-3
"""Largest difference of logits from transformers' that counts as none: the cases' are about 5."""


def _prepare(scratch: Scratch, *scripts: str) -> None:
    for name in ("harness.py", "cases1.py", "formats.py", *scripts):
        scratch.copy(f"models/{name}", f"cases-work/{name.split('/')[-1]}")


def _form(scratch: Scratch, name: str) -> str:
    _prepare(scratch)
    line = scratch.python("cases-work/formats.py", name, limit_s=180).find(f"^{name} ")
    found = re.search(r"loaded, diff (\S+)", line)
    seen = re.sub(r"\s+", " ", line)[:200]
    return expect(found and float(found[1]) < SMALL, seen or "nothing")


@case("models/01-is-causal")
def is_causal(scratch: Scratch) -> str:
    """Refused, since transformers 5.23 attends both ways."""
    _prepare(scratch)
    build = (
        "import sys; sys.path.insert(0, 'cases-work')\n"
        "from harness import *; from cases1 import C\n"
        "build('causal', C['qwen2.5-0.5b'] | {'is_causal': False})"
    )
    made = scratch.python("-c", build)
    expect(made.code == 0, made.last)
    done = scratch.ziggurat("import", "hf", "cases-work/work/causal", "--output", "out")
    line = done.find("is_causal") or done.last
    expect(done.code == 2 and not (scratch.path / "out").exists(), f"exit {done.code}, {line}")
    return f"exit 2, {line.strip()[:150]}"


@case("models/02-untied-head")
def untied_head(scratch: Scratch) -> str:
    """Loaded untied, as by transformers."""
    return _form(scratch, "lmhead_diff")


@case("models/03-off-keys-gguf", note="only the keys that the README names")
def off_keys(scratch: Scratch) -> str:
    """llama.cpp attends both ways, and scales linearly where no type is given."""
    script = scratch.copy("models/gg.py", "cases-work/gg.py")
    begin = script.read_text().split('\nfor k in ["F32"')[0]
    script.write_text(
        begin
        + """
def scaling(label, *adds):
    p = make(label + ".gguf", extra=lambda w: [add(w) for add in adds])
    return pretrained.load(p).model.config.rope
factor = lambda w: w.add_rope_scaling_factor(4.0)
kind = lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
print("typed:", scaling("typed", kind, factor)); print("untyped:", scaling("untyped", factor))
trial("causal false", extra=lambda w: w.add_causal_attention(False))
trial("logit scale", extra=lambda w: w.add_logit_scale(4.0))
trial("value_length", extra=lambda w: w.add_value_length(32))
"""
    )
    done = scratch.python("cases-work/gg.py", limit_s=180)
    typed, untyped = (done.find(f"^{name}:").split(":", 1)[-1] for name in ("typed", "untyped"))
    refused = [done.find(f"^{name}") for name in ("causal false", "logit scale", "value_length")]
    fits = "factor=4.0" in typed and typed == untyped and all("refused" in x for x in refused)
    seen = f"rope without a type:{untyped}; " + "; ".join(" ".join(x.split())[:60] for x in refused)
    return expect(fits, seen if typed else done.last)


@case("models/04-unsloth-config")
def unsloth(scratch: Scratch) -> str:
    """Unsloth's marks are ignored."""
    _prepare(scratch)
    done = scratch.python("cases-work/cases1.py", "unsloth-llama", limit_s=180)
    return _row(done)


def _row(done: Done) -> str:
    line = done.find('^{"name"')
    row = json.loads(line) if line else {}
    seen = f"logits differ by {row.get('diff')}" if "diff" in row else row.get("load", done.last)
    return expect(row.get("diff", 1) < SMALL, seen)


@case("models/05-lm-head-only")
def lm_head_only(scratch: Scratch) -> str:
    """Loaded as tied."""
    return _form(scratch, "lmhead_only")


@case("models/06-w8a8-experts", note="only the lines on experts")
def w8a8_experts(scratch: Scratch) -> str:
    """Activations are rounded, or the recipe is refused."""
    _prepare(scratch)
    script = scratch.copy("models/quant3.py", "cases-work/quant3.py")
    lines = script.read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("for p,w,x in"))
    last = next(i for i, line in enumerate(lines) if line.startswith("d,m=build"))
    script.write_text("\n".join([*lines[:first], *lines[last:]]))
    done = scratch.python("cases-work/quant3.py", limit_s=240)
    line = done.find("experts w8a8 against weights-only")
    moved = float(line.rsplit(":", 1)[1]) if line else 0.0
    refused = done.find("activation.*->")
    return expect(moved > 0 or refused, (line or refused or done.last)[:200])


@case("models/07-token-beyond-vocab")
def token_beyond_vocab(scratch: Scratch) -> str:
    """Refused, or warned of."""
    _prepare(scratch, "07-token-beyond-vocab/q5.py")
    done = scratch.python("cases-work/q5.py", limit_s=180)
    said = done.find("(?i)beyond|larger|above|out of range|warn|expected")
    return expect(said, (said or done.last).strip()[:200])
