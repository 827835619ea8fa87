"""Trained models from whatever holds them: a run, a checkpoint step, a Hugging Face directory, a
directory of PEFT's adapters, or a GGUF file. Its ``config.json`` or metadata alone selects the
family."""

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ziggurat.checkpoint import read_arrays
from ziggurat.checkpoint.manifest import read_manifest
from ziggurat.core import hub
from ziggurat.core.errors import ModelError
from ziggurat.core.pytrees import named_leaves, nested
from ziggurat.data import HuggingFaceTokenizer
from ziggurat.formats import SafetensorsDirectory
from ziggurat.mesh import Layout
from ziggurat.models import adapters
from ziggurat.models.conversion import token_ids
from ziggurat.models.conversion.block_names import experts_as_found
from ziggurat.models.conversion.dropped_tensors import stored_head
from ziggurat.models.conversion.quantization.checkpoint import present_names
from ziggurat.models.conversion.quantization.export import Layout as QuantizedLayout
from ziggurat.models.conversion.quantization.export import quantized_export
from ziggurat.models.conversion.quantization.methods import method_reader
from ziggurat.models.conversion.text_part import PartTensors, tell_left_out, text_part
from ziggurat.models.conversion.weight_names import (
    TensorSource,
    WeightName,
    export_weights,
    named_as_found,
)
from ziggurat.models.families.family import FAMILIES, Family, family_of
from ziggurat.models.language_model import PARAMS, LanguageModel, Params
from ziggurat.models.loading import peft
from ziggurat.models.loading.gguf_input import read_gguf
from ziggurat.models.loading.hf_directory import (
    hf_family,
    hf_values,
    refuse_encoder,
    require_new,
    write_directory,
)
from ziggurat.models.loading.placing import float_type, place_arrays
from ziggurat.models.loading.step_files import (
    DIFFUSION_FILE,
    FROZEN,
    MODEL_FILE,
    TOKENIZER,
    VISION_FILE,
    files_of,
    model_config,
    save_new,
    step_directory,
    trained_item,
)
from ziggurat.models.loading.weight_reading import Told, read_model
from ziggurat.models.quantized import (
    FORMATS_FILE,
    TRAINED_FILE,
    dequantized,
    formats_of,
    formats_text,
    quantized,
    read_formats,
    read_trained,
    rounded_as_trained,
)
from ziggurat.nn.precision import Precision

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, repr=False)
class Pretrained:
    """A model with its weights and tokenizer."""

    model: LanguageModel
    params: Params
    tokenizer: HuggingFaceTokenizer
    name: str
    """Name of the model on a server."""
    source: str
    """Where it was read from, for people."""
    token_ids: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Ids of special tokens as the ``config.json`` has them that it was read from."""

    def __repr__(self) -> str:
        config, model = self.model.config, self.model
        sizes = f"{model.parameter_count:,} parameters, {config.vocab_size:,} token ids"
        context = f"context {config.max_sequence_length:,}"
        return f"Pretrained({self.name!r}, {config.kind}, {sizes}, {context}, from {self.source!r})"


def load(
    path: Path | str,
    *,
    precision: Precision | None = None,
    layout: Layout | None = None,
    told: Told | None = None,
    expand: bool = False,
    in_files: bool = False,
) -> Pretrained:
    """Read a trained model. Quantised weights of other programs stay quantised.

    Args:
        path: a run directory (its newest intact step), a step directory, a Hugging Face directory
            (``config.json`` and safetensors), a GGUF file, a directory of PEFT's adapters, or a
            repository of the hub, see :mod:`ziggurat.core.hub`.
            Adapters, a run's or PEFT's, are added to their base. Of a run that kept an average of
            its parameters, that is read.
        precision: parameter and compute types; default float32. With ``as_stored`` parameters
            keep the types of the files.
        layout: where parameters go; default the first device.
        told: told of the weights of a Hugging Face directory or a GGUF file, one by one.
        expand: make floats of the quantised weights of a Hugging Face directory or a GGUF file.
        in_files: of those two, leave the weights in their files: the parameters are
            :class:`~ziggurat.models.conversion.weight_names.StoredWeight`, which
            :mod:`~ziggurat.models.loading.streaming` writes.

    Raises:
        ModelError: nothing of the kind is there, or the architecture or a switch is unknown.
        CheckpointError: weights are damaged, missing, or of another shape.
    """
    path = hub.local(path)
    if not path.exists():
        raise ModelError(
            f"model {path}",
            found="no such file or directory",
            expected="a run, a checkpoint step, a Hugging Face directory or id, or a GGUF file",
            fix="check the path",
        )
    if path.is_file():
        parts = read_gguf(path, precision, layout, told, expand=expand, in_files=in_files)
        return Pretrained(*parts, path.stem, str(path))
    step = step_directory(path)
    if step is not None:
        return _load_step(step, hub.name_of(path), precision, layout)
    if peft.is_peft(path):
        base = load(peft.base_of(path), precision=precision, layout=layout, expand=expand)
        return _with_adapters(base, path, *peft.read_peft(path, base.model))
    if (path / "config.json").is_file():
        return load_language(
            path, precision, layout, told, expand, told_of_images=True, in_files=in_files
        )
    raise ModelError(
        f"model {path}",
        found="neither checkpoints nor config.json",
        expected="a run, a checkpoint step, a Hugging Face directory or a GGUF file",
    )


def save(
    pretrained: Pretrained,
    directory: Path,
    records: Mapping[str, Any] | None = None,
    files: Mapping[str, bytes | Path] | None = None,
) -> Path:
    """Write a model as a checkpoint of its own (``step_00000000``), which every command reads.

    Args:
        pretrained: the model.
        directory: new or empty.
        records: what is kept beside the arrays.
        files: contents of further files of the step by name.

    Raises:
        CheckpointError: there is a checkpoint already.
    """
    written = dict(files or {}) | files_beside(pretrained)
    return save_new(directory, {PARAMS: pretrained.params}, written, records)


def files_beside(pretrained: Pretrained) -> dict[str, bytes | Path]:
    """Files of a checkpoint step with which a model is read again."""
    files = files_of(pretrained.model.config, pretrained.tokenizer)
    files[token_ids.FILE] = json.dumps(dict(pretrained.token_ids)).encode()
    if formats := formats_of(pretrained.params):
        files[FORMATS_FILE] = formats_text(formats).encode()
    return files


def export_hf(
    pretrained: Pretrained,
    directory: Path,
    *,
    max_shard_bytes: int = 5 * 10**9,
    layout: QuantizedLayout | None = None,
) -> Path:
    """Write ``config.json``, safetensors and tokenizer as transformers reads them.

    Args:
        pretrained: the model.
        directory: new.
        max_shard_bytes: largest safetensors file.
        layout: of quantised weights; without one they become float32, which loses nothing, or the
            type they were read with.

    Raises:
        CheckpointError: the directory is there already.
        ModelError: the config has no counterpart there.
        ConfigError: the layout has no place for a weight's format.
    """
    require_new(directory)
    family = family_of(pretrained.model.config)
    values = family.to_hf(pretrained.model.config)
    params = pretrained.params
    quantised = formats_of(params)
    layers = pretrained.model.decoder.n_layers
    names = family.hf_names(pretrained.model.config)
    packed = layout and quantized_export(layout, names, params, layers=layers)
    if quantised and not packed:
        precision = pretrained.model.precision
        params = dequantized(params, "float32" if precision.as_stored else precision.param)
    dtype = float_type(params)
    if packed:
        values |= {"quantization_config": packed.config}
    elif quantised:
        _log.warning("%d quantised weights are written as %s", len(quantised), dtype)
    ids = token_ids.special(pretrained.tokenizer, pretrained.token_ids)
    tensors = packed.tensors if packed else export_weights(names, params, layers=layers)
    generation = ids | pretrained.tokenizer.generation_config
    return write_directory(
        directory,
        ids | values,  # where a layer reads the padding's id, the family's wins
        tensors,
        dtype=dtype,
        tokenizer=pretrained.tokenizer,
        files={"generation_config.json": generation},
        max_shard_bytes=max_shard_bytes,
    )


def trained_arrays(step: Path) -> dict[str, Any]:
    """The model's arrays in a step: those that were trained, and those that were not."""
    found = read_arrays(step, trained_item(step))
    assert isinstance(found, dict), "parameters are a tree"
    if FROZEN not in read_manifest(step).items:
        return found
    frozen = read_arrays(step, FROZEN)
    return nested(named_leaves(found) | named_leaves(frozen))


def language_arrays(step: Path) -> dict[str, Any]:
    """The arrays of a step's language model, also where it is trained with the tower beside it."""
    found = trained_arrays(step)
    beside = (step / VISION_FILE).is_file() and "language" in found
    return found["language"] if beside else found


def _load_step(
    step: Path, name: str, precision: Precision | None, layout: Layout | None
) -> Pretrained:
    values = json.loads((step / MODEL_FILE).read_text())
    if (step / DIFFUSION_FILE).is_file():
        raise ModelError(
            f"model {step}",
            found=f"a diffusion model ({values.get('kind')})",
            expected="a language model",
            fix="it draws: ziggurat sample",
        )
    if (step / VISION_FILE).is_file():
        _log.warning(
            "%s: only its language model is read; its tower is left out, and images are refused",
            step,
        )
    settings = model_config(values, str(step / MODEL_FILE))
    refuse_encoder(FAMILIES[settings.kind], step)
    if (step / adapters.ADAPTER_FILE).is_file():
        record = adapters.read_record(step)
        base = load(record.base, precision=precision, layout=layout)
        arrays = read_adapters(step, base.model, record.lora)
        tokenizer = HuggingFaceTokenizer.load(step / TOKENIZER)
        whole = dataclasses.replace(base, tokenizer=tokenizer, name=name)
        return _with_adapters(whole, step, record.lora, arrays)
    model = LanguageModel.build(settings, precision)
    if (step / FORMATS_FILE).is_file():
        model = quantized(model, read_formats(step / FORMATS_FILE, model))
    shardings = named_leaves(model.shardings(layout)) if layout is not None else {}
    arrays = language_arrays(step)
    params = place_arrays(step, arrays, model.abstract, shardings, precision)
    tokenizer = HuggingFaceTokenizer.load(step / TOKENIZER)
    token_ids.warn_of_larger(tokenizer, settings.vocab_size, step)
    ids = token_ids.read(step)
    model = model.typed_as(params)
    if (step / TRAINED_FILE).is_file():
        trained = read_trained(step / TRAINED_FILE, model)
        model, params = rounded_as_trained(model, params, trained)
    return Pretrained(model, params, tokenizer, name, str(step), ids)


def read_adapters(step: Path, model: LanguageModel, lora: adapters.Lora) -> Params:
    """The adapters that a step holds.

    Raises:
        CheckpointError: one is missing or of another shape.
    """
    shapes, _ = adapters.adapter_shapes(model, lora)
    return place_arrays(step, read_arrays(step, trained_item(step)), shapes, {})


def _with_adapters(
    base: Pretrained, source: Path, lora: adapters.Lora, arrays: Params
) -> Pretrained:
    """A model with adapters added to it; a layout's shardings stay those of the base."""
    model, params = adapters.merge_into(base.model, base.params, arrays, lora)
    name = hub.name_of(source) if peft.is_peft(source) else base.name
    return dataclasses.replace(base, model=model, params=params, name=name, source=str(source))


def hf_model(path: Path, precision: Precision | None = None) -> tuple[Family, LanguageModel]:
    """The family and model that a Hugging Face directory's ``config.json`` describes.

    Raises:
        ModelError: it is no JSON object, the architecture or a switch is unknown, it is an
            encoder's, or the weights beside it are quantised.
    """
    family, model, settings = _hf_model(path, precision)
    if settings is not None:
        raise ModelError(
            "config.json: quantization_config",
            found="quantised weights",
            expected="the config of float weights",
            fix="import the whole directory with ziggurat import hf",
        )
    return family, model


def _hf_model(
    path: Path, precision: Precision | None
) -> tuple[Family, LanguageModel, dict[str, Any] | None]:
    """Model config and, if the weights are quantised, the config of that."""
    family, values = hf_family(path)
    refuse_encoder(family, path)
    settings = values.pop("quantization_config", None)
    beside = path / "hf_quant_config.json"  # ModelOpt's own file
    if settings is None and beside.is_file():
        found = hf_values(beside)
        settings = {"quant_method": "modelopt"} | dict(found.get("quantization") or {})
    return family, LanguageModel.build(family.from_hf(values), precision), settings


def load_language(
    path: Path,
    precision: Precision | None,
    layout: Layout | None,
    told: Told | None = None,
    expand: bool = False,
    *,
    told_of_images: bool = False,
    in_files: bool = False,
) -> Pretrained:
    """Read the language model of a Hugging Face directory, see :func:`load`.

    Args:
        path: the directory.
        precision: see :func:`load`.
        layout: see :func:`load`.
        told: see :func:`load`.
        expand: see :func:`load`.
        told_of_images: whether to warn of tensors of images that are left out.
        in_files: see :func:`load`.
    """
    family, described, settings = _hf_model(path, precision)
    # what a method refuses is told before any file is missed
    reader = None if settings is None else method_reader(settings)
    tensors = _text_tensors(path, told_of_images)
    present = tensors if reader is None else present_names(reader, tensors)

    def names_of(config: Any) -> list[WeightName]:
        names = named_as_found(family.hf_names(config), present, family.base)
        return experts_as_found(names, tensors)

    head = stored_head(described.config, names_of, tensors)
    model = described
    if head.config != model.config:
        model = LanguageModel.build(head.config, precision)
    model, params = read_model(family, model, head, tensors, reader, layout, told, expand, in_files)
    tokenizer = HuggingFaceTokenizer.load(path)
    token_ids.warn_of_larger(tokenizer, model.config.vocab_size, path)
    ids = token_ids.stated(hf_family(path)[1])
    return Pretrained(model, params, tokenizer, hub.name_of(path), str(path), ids)


def _text_tensors(path: Path, told_of_images: bool) -> TensorSource:
    """Tensors of a language model's directory, without those of images."""
    tensors, part = SafetensorsDirectory(path), text_part(hf_values(path / "config.json"))
    if part is None:
        return tensors
    text = PartTensors(tensors, "text")
    if told_of_images:
        tell_left_out(part.architecture, text.left_out)
    return text
