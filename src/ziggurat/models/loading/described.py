"""A model's structure from its description alone: no weights are read."""

import json
from pathlib import Path

from ziggurat.core import hub
from ziggurat.core.errors import ModelError
from ziggurat.formats import GgufFile
from ziggurat.models.families.family import FAMILIES
from ziggurat.models.language_model import LanguageModel, ModelConfig
from ziggurat.models.loading.gguf_input import gguf_config
from ziggurat.models.loading.hf_directory import hf_config, refuse_encoder
from ziggurat.models.loading.step_files import MODEL_FILE, model_config, step_directory
from ziggurat.nn.precision import Precision


def described(path: Path | str, precision: Precision | None = None) -> LanguageModel:
    """The language model that a directory or file describes.

    Args:
        path: a Hugging Face directory, its ``config.json`` alone, a hub id, a run, a checkpoint
            step, or a GGUF file.
        precision: parameter and compute types; default float32.

    Raises:
        ModelError: nothing of the kind is there, it is another kind of model, or the architecture
            or a switch is unknown.
    """
    path = hub.local(path, files=("config.json", "*.gguf"))
    return LanguageModel.build(_config(path), precision)


def _config(path: Path) -> ModelConfig:
    if path.is_file() and path.suffix == ".json":
        return _of_json(path)
    if path.is_file() and path.suffix == ".gguf":
        return gguf_config(GgufFile(path))[1]
    step = step_directory(path) if path.is_dir() else None
    if step is not None:
        file = step / MODEL_FILE
        values = json.loads(file.read_text())
        refuse_encoder(FAMILIES[str(values.get("kind"))], path)
        return model_config(values, str(file))
    if (path / "config.json").is_file():
        return _of_json(path / "config.json")
    raise ModelError(
        f"model {path}",
        found="nothing that describes a model" if path.exists() else "no such file or directory",
        expected="a Hugging Face directory, config.json or id, a run, a step or a GGUF file",
    )


def _of_json(path: Path) -> ModelConfig:
    family, values = hf_config(path)
    refuse_encoder(family, path)
    values.pop("quantization_config", None)  # it changes how weights are stored
    return family.from_hf(values)
