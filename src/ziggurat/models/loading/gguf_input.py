"""Language models from GGUF files, whose metadata selects the family."""

import dataclasses
from pathlib import Path

from ziggurat.core.errors import ModelError
from ziggurat.data import HuggingFaceTokenizer
from ziggurat.formats import GgufFile
from ziggurat.mesh import Layout
from ziggurat.models.conversion import token_ids
from ziggurat.models.conversion.dropped_tensors import stored_head
from ziggurat.models.conversion.gguf import tokenizer_of
from ziggurat.models.conversion.quantization.gguf_blocks import GgufReader
from ziggurat.models.families.family import Family, family_for_gguf
from ziggurat.models.language_model import LanguageModel, ModelConfig, Params
from ziggurat.models.loading.weight_reading import Told, read_model
from ziggurat.nn.precision import Precision

ROPE_DIVISORS = "rope_freqs.weight"
"""Tensor of a GGUF file that scales rotary frequencies; it becomes part of the config."""


def gguf_config(file: GgufFile) -> tuple[Family, ModelConfig]:
    """The family of a GGUF file and the model's config.

    Raises:
        ModelError: the architecture or a switch is unknown.
    """
    family = family_for_gguf(file.metadata)
    assert family.from_gguf is not None
    divisors = file.read(ROPE_DIVISORS) if ROPE_DIVISORS in file else None
    return family, family.from_gguf(file.metadata, divisors, frozenset(file))


def read_gguf(
    path: Path,
    precision: Precision | None = None,
    layout: Layout | None = None,
    told: Told | None = None,
    *,
    expand: bool = False,
    in_files: bool = False,
) -> tuple[LanguageModel, Params, HuggingFaceTokenizer]:
    """Read a GGUF file's model, parameters and tokenizer; arguments as those of
    :func:`ziggurat.models.loading.pretrained.load`.

    Raises:
        ModelError: the file is of another kind, or the architecture or a switch is unknown.
        CheckpointError: weights are damaged, missing, or of another shape.
    """
    _check_gguf(path)
    file = GgufFile(path)
    family, settings = gguf_config(file)
    assert family.gguf_names is not None
    head = stored_head(settings, family.gguf_names, file)
    model = LanguageModel.build(head.config, precision)
    head = dataclasses.replace(head, copies=head.copies | {ROPE_DIVISORS})
    reader = GgufReader(file)
    model, params = read_model(family, model, head, file, reader, layout, told, expand, in_files)
    tokenizer = tokenizer_of(file)
    token_ids.warn_of_larger(tokenizer, model.config.vocab_size, path)
    return model, params, tokenizer


def _check_gguf(path: Path) -> None:
    """Refuse files of other kinds, which are no damaged GGUF files.

    Raises:
        ModelError: the file is of another kind.
    """
    with open(path, "rb") as file:
        if file.read(4) == b"GGUF" or path.suffix == ".gguf":
            return
    fixes = {
        ".toml": "a run file trains a model: ziggurat train; then give the run's directory",
        ".safetensors": "give the directory with its config.json",
        ".json": "give its directory",
        ".bin": "ziggurat import weights reads it",
        ".pt": "ziggurat import weights reads it",
        ".pth": "ziggurat import weights reads it",
    }
    kinds = {".toml": "a run file", ".safetensors": "weights alone", ".json": "a JSON file"}
    raise ModelError(
        f"model {path}",
        found=kinds.get(path.suffix, "a file that is not GGUF"),
        expected="a run, a checkpoint step, a Hugging Face directory or id, or a GGUF file",
        fix=fixes.get(path.suffix, "check the path"),
    )
