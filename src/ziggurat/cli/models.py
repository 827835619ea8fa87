"""``ziggurat models``: model families that are read, and figures of one model."""

import dataclasses
import json as json_
from pathlib import Path
from typing import Any, Literal

from ziggurat.cli import console
from ziggurat.cli.subcommands import Subcommand, dispatch
from ziggurat.core.errors import ConfigError


def list_(json: bool = False) -> int:
    """List model families, and the architectures of published checkpoints that each reads.

    Args:
        json: print JSON.
    """
    from rich.table import Table

    from ziggurat.models import FAMILIES

    rows = [
        {
            "family": name,
            "encoder": family.encoder,
            "architectures": list(family.architectures),
            "gguf": list(family.gguf_architectures),
        }
        for name in sorted(FAMILIES)
        for family in [FAMILIES[name]]
    ]
    if json:
        console.output().print_json(json_.dumps(rows))
        return 0
    table = Table("family", "architectures of config.json", "GGUF")
    for row in rows:
        table.add_row(row["family"], ", ".join(row["architectures"]), ", ".join(row["gguf"]))
    console.output().print(table)
    return 0


def show(
    model: str,
    /,
    context: int | None = None,
    sequences: int = 1,
    dtype: Literal["float32", "bfloat16"] = "bfloat16",
    json: bool = False,
) -> int:
    """Show a model's parameters, and the FLOPs and memory of training, prefill and decoding.

    Reads the description alone, no weights: a config.json is enough.

    Args:
        model: Hugging Face directory, its config.json or id, run, step or GGUF file.
        context: tokens of a sequence; default the model's longest.
        sequences: sequences decoded at once.
        dtype: type of weights and cache.
        json: print JSON.
    """
    from ziggurat.models.loading.described import described
    from ziggurat.models.summary import summarise
    from ziggurat.nn.precision import Precision

    found = described(model, Precision(dtype, dtype))
    tokens = found.config.max_sequence_length if context is None else context
    for name, value in (("--context", tokens), ("--sequences", sequences)):
        if value < 1:
            raise ConfigError(name, found=value, expected="a number >= 1")
    summary = summarise(found, tokens, sequences)
    if json:
        facts = {"family": found.config.kind, "context": tokens, "sequences": sequences}
        content = facts | {"dtype": dtype} | dataclasses.asdict(summary)
        console.output().print_json(json_.dumps(content))
        return 0
    path = Path(model)
    name = path.parent.name if path.name == "config.json" else path.name
    _print(name, found, summary, tokens, sequences, dtype)
    return 0


def _print(name: str, model: Any, s: Any, context: int, sequences: int, dtype: str) -> None:
    from rich.table import Table

    from ziggurat.profile.quantities import short, size

    out = console.output()
    active = f", {s.active_parameters:,} active" if s.active_parameters != s.parameters else ""
    lines = [f"{name} ({model.config.kind}): {s.parameters:,} parameters{active}"]
    lines += [f"  {count:>3} x {form}" for count, form in s.layers]
    for line in lines:
        out.print(line, highlight=False, soft_wrap=True)
    table = Table("part", "parameters", "share")
    for part, count in sorted(s.parts.items(), key=lambda item: -item[1]):
        table.add_row(part.replace("_", " "), f"{count:,}", f"{count / s.parameters:.1%}")
    out.print(table)
    table = Table("phase", "FLOPs per token", "memory", "of")
    cache = f"weights and cache in {dtype}, {sequences} x {context:,} tokens"
    rows = [
        ("training", s.training, "parameters, gradients and AdamW's moments in float32"),
        ("prefill", s.prefill, cache),
        ("decode", s.decode, f"{cache}, the last of them decoded"),
    ]
    for phase, figures, what in rows:
        flops, memory = short(figures.flops_per_token), size(figures.memory_bytes)
        table.add_row(phase, flops, memory, what)
    out.print(table)
    kept = f"{size(s.state_bytes_per_token)} of cache per token"
    if s.state_bytes_per_sequence:
        kept += f", {size(s.state_bytes_per_sequence)} of recurrent state per sequence"
    out.print(f"{kept}; activations are not counted, ziggurat plan counts them", highlight=False)


COMMANDS = {
    "list": Subcommand(
        list_,
        "model families, and the published architectures that each reads",
        "ziggurat models list",
    ),
    "show": Subcommand(
        show,
        "parameters, and FLOPs and memory of training, prefill and decoding",
        "ziggurat models show models/Llama-3.2-1B --context 8192 --sequences 16",
    ),
}
ABOUT = "Model families that are read, and what one model needs."


def main(args: list[str]) -> int:
    """Run one command of ``ziggurat models``."""
    return dispatch("models", COMMANDS, args, ABOUT, "[MODEL] [OPTIONS]")
