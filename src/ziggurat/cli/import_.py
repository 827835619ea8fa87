"""``ziggurat import``: read a published model into a Ziggurat checkpoint."""

from pathlib import Path
from typing import Any, Literal

from ziggurat.cli import console
from ziggurat.core.errors import ConfigError, ModelError

EXAMPLE = "ziggurat import hf DOWNLOADS/SmolLM2-135M --output models/smollm2"


def import_(
    kind: Literal["hf", "gguf"],
    source: Path,
    /,
    output: Path,
    verify: Literal["auto", "always", "never"] = "auto",
) -> int:
    """Read a Hugging Face directory or a GGUF file into a checkpoint that every verb takes.

    Args:
        kind: hf (config.json and safetensors) or gguf (one file, dequantised).
        source: the directory or file.
        output: new directory for the checkpoint.
        verify: compare logits with transformers and keep the result beside the weights; auto:
            if transformers is installed.
    """
    from ziggurat.models import pretrained, proof

    _check_kind(kind, source)
    out = console.output()
    model = pretrained.load(source)
    out.print(f"{model.model.config.kind}: {model.model.parameter_count:,} parameters")
    records: dict[str, Any] = {"source": source.name}
    if verify == "always" or (verify == "auto" and proof.available()):
        records["proof"] = proof.against_transformers(source, model)
        out.print(
            "largest logit difference from transformers: "
            f"{records['proof']['max_logit_difference']:.2e}, "
            f"KL {records['proof']['kl_divergence']:.2e} over {records['proof']['tokens']} tokens"
        )
    path = pretrained.save(model, output, records)
    out.print(f"written: {path}")
    return 0


def _check_kind(kind: str, source: Path) -> None:
    if source.exists() and source.is_file() != (kind == "gguf"):
        raise ModelError(
            f"import {kind} {source}",
            found="a file" if source.is_file() else "a directory",
            expected="a GGUF file" if kind == "gguf" else "a directory with config.json",
            fix="use import hf DIR or import gguf FILE",
        )
    if kind == "hf" and source.is_dir() and not (source / "config.json").is_file():
        raise ModelError(
            f"import hf {source}", found="no config.json", expected="a Hugging Face directory"
        )


def main(args: list[str]) -> int:
    if args and args[0] not in ("hf", "gguf", "--help", "-h"):
        raise ConfigError("import", found=repr(args[0]), expected="hf or gguf", fix=EXAMPLE)
    return console.run(import_, args, "ziggurat import", EXAMPLE)
