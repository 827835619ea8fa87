"""``ziggurat export``: write a model as others read it."""

from pathlib import Path
from typing import Literal

from ziggurat.cli import console
from ziggurat.core.errors import ConfigError

EXAMPLE = "ziggurat export hf runs/tiny-python --output exported"


def export(
    kind: Literal["hf"],
    model: Path,
    /,
    output: Path,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    max_shard_gb: float = 5.0,
) -> int:
    """Write config.json, safetensors and tokenizer as transformers reads them.

    Args:
        kind: hf, the only format so far.
        model: a run, a checkpoint step, a Hugging Face directory or a GGUF file.
        output: new directory.
        dtype: type of the stored weights.
        max_shard_gb: largest safetensors file, in GB.
    """
    from ziggurat.models import pretrained
    from ziggurat.nn.precision import Precision

    loaded = pretrained.load(model, precision=Precision(param=dtype))
    path = pretrained.export_hf(loaded, output, max_shard_bytes=int(max_shard_gb * 10**9))
    console.output().print(f"{loaded.source} -> {path}")
    return 0


def main(args: list[str]) -> int:
    if args and args[0] not in ("hf", "--help", "-h"):
        raise ConfigError("export", found=repr(args[0]), expected="hf", fix=EXAMPLE)
    return console.run(export, args, "ziggurat export", EXAMPLE)
