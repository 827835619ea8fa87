"""Directories as Hugging Face publishes them: the family that ``config.json`` selects, and new
directories that transformers reads."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ziggurat.core import atomic
from ziggurat.core.errors import CheckpointError, ModelError
from ziggurat.data import HuggingFaceTokenizer
from ziggurat.formats import write_sharded
from ziggurat.models.conversion.text_part import language_values
from ziggurat.models.families.family import Family, family_for_config


def hf_family(path: Path) -> tuple[Family, dict[str, Any]]:
    """The family that reads a Hugging Face directory, and the content of its ``config.json``.

    Raises:
        ModelError: that is no JSON object, or the architecture is unknown.
    """
    return hf_config(path / "config.json")


def hf_config(file: Path) -> tuple[Family, dict[str, Any]]:
    """The family that reads a ``config.json``, and the file's content; of a model of images and
    text those of its language model.

    Raises:
        ModelError: it is no JSON object, or the architecture is unknown.
    """
    values = language_values(hf_values(file))
    return family_for_config(values), values


def hf_values(file: Path) -> dict[str, Any]:
    """The content of a ``config.json``.

    Raises:
        ModelError: it is no JSON object.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(str(file), found=error, expected="valid JSON") from None
    if not isinstance(values, dict):
        raise ModelError(str(file), found=type(values).__name__, expected="a JSON object")
    return values


def refuse_encoder(family: Family, path: Path) -> None:
    """Refuse a family that is no language model's.

    Raises:
        ModelError: it is an encoder or a model of speech; the text says what reads it.
    """
    if "audio" in family.inputs:
        raise ModelError(
            f"model {path}",
            found=f"a model of speech ({family.name})",
            expected="a language model",
            fix="it transcribes: ziggurat.transcribe",
        )
    if family.encoder:
        raise ModelError(
            f"model {path}",
            found=f"an encoder ({family.name})",
            expected="a language model",
            fix="it embeds texts: ziggurat.models.TextEmbedder"
            if family.inputs == ("text",)
            else "it embeds images: ziggurat.models.ImageEmbedder",
        )


def require_new(directory: Path) -> None:
    """Refuse an output that is there, before anything is computed for it.

    Raises:
        CheckpointError: the directory is there already.
    """
    if directory.exists():
        raise CheckpointError(f"output {directory}", found="it exists", expected="a new directory")


def write_directory(
    directory: Path,
    values: Mapping[str, Any],
    tensors: Iterable[tuple[str, np.ndarray]],
    *,
    dtype: str,
    tokenizer: HuggingFaceTokenizer | None,
    files: Mapping[str, Any],
    max_shard_bytes: int,
) -> Path:
    """Write ``config.json``, safetensors and tokenizer as transformers reads them; the directory
    appears whole or not at all.

    Args:
        directory: new.
        values: the content of ``config.json``, without the type of the weights.
        tensors: arrays by their published names.
        dtype: the type of most weights, which ``config.json`` states.
        tokenizer: ``None``: the model reads no texts.
        files: JSON contents of further files, by path in the directory.
        max_shard_bytes: largest safetensors file.

    Raises:
        CheckpointError: the directory is there already.
    """
    require_new(directory)
    values = {**values, "dtype": dtype, "torch_dtype": dtype}
    with atomic.new_directory(directory) as target:
        if tokenizer is not None:
            tokenizer.save(target)
        write_sharded(target, tensors, max_shard_bytes, metadata={"format": "pt"})
        for name, content in ({"config.json": values} | dict(files)).items():
            (target / name).parent.mkdir(exist_ok=True)
            (target / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return directory
