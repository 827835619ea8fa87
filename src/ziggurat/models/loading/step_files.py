"""Files of a checkpoint step that describe its model, and new checkpoints of one step."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ziggurat.checkpoint import Checkpoints, StepReader
from ziggurat.checkpoint.manifest import read_manifest
from ziggurat.core import config
from ziggurat.core.errors import CheckpointError
from ziggurat.data import HuggingFaceTokenizer
from ziggurat.models.families.family import FAMILIES
from ziggurat.models.language_model import PARAMS

MODEL_FILE = "model.json"
"""The family's config inside a checkpoint step."""
VISION_FILE = "vision_language.json"
"""Inside a checkpoint step of a model that reads images: the family's config, whose language model
is that of ``model.json``."""
DIFFUSION_FILE = "diffusion.json"
"""Inside a step of a diffusion model: its process, classes and autoencoder."""
AVERAGE = "average"
"""Item of a checkpoint step: the moving average of the parameters, if the run kept one; it is then
what the model is."""
FROZEN = "frozen"
"""Item of a checkpoint step: parts of the model that the run did not train."""
TOKENIZER = "tokenizer"
"""Directory of the tokenizer inside a checkpoint step."""


def files_of(model: Any, tokenizer: HuggingFaceTokenizer | None) -> dict[str, bytes | Path]:
    """Files of a checkpoint step besides arrays, with which it can be read alone.

    Args:
        model: the family's config.
        tokenizer: the tokenizer; ``None``: the model reads no texts.
    """
    files: dict[str, bytes | Path] = {}
    if tokenizer is not None:
        with tempfile.TemporaryDirectory() as directory:
            tokenizer.save(Path(directory))
            for file in sorted(Path(directory).iterdir()):
                files[f"{TOKENIZER}/{file.name}"] = file.read_bytes()
    text = json.dumps(config.to_plain(model), indent=2)
    return files | {MODEL_FILE: text.encode()}


def save_new(
    directory: Path,
    items: Mapping[str, Any],
    files: Mapping[str, bytes | Path],
    records: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint of its own (``step_00000000``), which every command reads.

    Args:
        directory: new or empty.
        items: trees of arrays by name, such as ``params``.
        files: contents by path in the step, as :func:`files_of` gives them.
        records: what is kept beside the arrays, such as where a model is from.

    Returns:
        The step's directory.

    Raises:
        CheckpointError: there is a checkpoint already.
    """
    with Checkpoints(directory) as checkpoints:
        if checkpoints.steps():
            raise CheckpointError(
                f"output {directory}", found="a checkpoint", expected="a new or empty directory"
            )
        checkpoints.save(0, items, records or {}, files)
    newest = checkpoints.latest()
    assert newest is not None
    return newest.path


def model_config(values: Mapping[str, Any], source: str) -> Any:
    """A family's config from its plain form (``model.json``).

    Raises:
        ModelError: unknown family; ConfigError: a key is wrong.
    """
    family = FAMILIES[str(values.get("kind"))]
    return config.from_plain(family.config_class, values, source)


def step_directory(path: Path) -> Path | None:
    """The checkpoint step that a path means: itself, or a run's newest intact one."""
    if (path / MODEL_FILE).is_file() and (path / "manifest.json").is_file():
        return path
    for directory in (path / "checkpoints", path):
        newest = StepReader(directory).latest()
        if newest is not None and (newest.path / MODEL_FILE).is_file():
            return newest.path
    return None


def trained_item(step: Path) -> str:
    """The item of a step that holds the model: the average of its parameters, if there is one."""
    return AVERAGE if AVERAGE in read_manifest(step).items else PARAMS
