"""Trained models from whatever holds them: a run, a checkpoint step, a Hugging Face directory, a
directory of PEFT's adapters, or a GGUF file. Its ``config.json`` or metadata alone selects the
family."""

import dataclasses
import json
import logging
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ziggurat.checkpoint import Checkpoints, StepReader, read_arrays
from ziggurat.checkpoint.manifest import read_manifest
from ziggurat.core import atomic, config, hub
from ziggurat.core.errors import CheckpointError, ModelError
from ziggurat.core.pytrees import named_leaves
from ziggurat.data import HuggingFaceTokenizer
from ziggurat.formats import GgufFile, SafetensorsDirectory, write_sharded
from ziggurat.mesh import Layout
from ziggurat.models import adapters
from ziggurat.models.conversion import token_ids
from ziggurat.models.conversion.dropped_tensors import Head, check_dropped, stored_head
from ziggurat.models.conversion.gguf import tokenizer_of
from ziggurat.models.conversion.quantization.checkpoint import present_names, quantized_table
from ziggurat.models.conversion.quantization.export import Layout as QuantizedLayout
from ziggurat.models.conversion.quantization.export import quantized_export
from ziggurat.models.conversion.quantization.gguf_blocks import GgufReader
from ziggurat.models.conversion.quantization.methods import method_reader
from ziggurat.models.conversion.quantization.module import MethodReader
from ziggurat.models.conversion.text_part import (
    PartTensors,
    language_values,
    tell_left_out,
    text_part,
)
from ziggurat.models.conversion.weight_names import (
    StoredWeight,
    TensorSource,
    WeightName,
    export_weights,
    import_weights,
    named_as_found,
)
from ziggurat.models.families.family import (
    FAMILIES,
    Family,
    family_for_architecture,
    family_for_config,
    family_of,
)
from ziggurat.models.language_model import PARAMS, LanguageModel, Params
from ziggurat.models.loading import peft
from ziggurat.models.loading.placing import float_type, place_arrays, placement
from ziggurat.models.quantized import (
    FORMATS_FILE,
    dequantized,
    formats_of,
    formats_text,
    quantized,
    read_formats,
)
from ziggurat.nn.precision import Precision

_log = logging.getLogger(__name__)

MODEL_FILE = "model.json"
"""The family's config inside a checkpoint step."""
ROPE_DIVISORS = "rope_freqs.weight"
"""Tensor of a GGUF file that scales rotary frequencies; it becomes part of the config."""
VISION_FILE = "vision_language.json"
"""Inside a checkpoint step of a model that reads images: the family's config, whose language model
is that of ``model.json``."""
DIFFUSION_FILE = "diffusion.json"
"""Inside a step of a diffusion model: its process, classes and autoencoder."""
AVERAGE = "average"
"""Items of a checkpoint step: the last parameters, and their moving average if the run kept one,
which is then what the model is."""
TOKENIZER = "tokenizer"
"""Directory of the tokenizer inside a checkpoint step."""


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


Told = Callable[[str, int, int], None]
"""Called before each weight with its name, how many are read, and all of them."""


def load(
    path: Path | str,
    *,
    precision: Precision | None = None,
    layout: Layout | None = None,
    told: Told | None = None,
    expand: bool = False,
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
        _check_gguf(path)
        return _load_gguf(path, precision, layout, told, expand)
    step = step_directory(path)
    if step is not None:
        return _load_step(step, hub.name_of(path), precision, layout)
    if peft.is_peft(path):
        base = load(peft.base_of(path), precision=precision, layout=layout, expand=expand)
        return _with_adapters(base, path, *peft.read_peft(path, base.model))
    if (path / "config.json").is_file():
        return load_language(path, precision, layout, told, expand, told_of_images=True)
    raise ModelError(
        f"model {path}",
        found="neither checkpoints nor config.json",
        expected="a run, a checkpoint step, a Hugging Face directory or a GGUF file",
    )


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


def files_of(model: Any, tokenizer: HuggingFaceTokenizer | None) -> dict[str, bytes | Path]:
    """Files of a checkpoint step besides arrays, with which :func:`load` can read it alone.

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


def save(pretrained: Pretrained, directory: Path, records: Mapping[str, Any] | None = None) -> Path:
    """Write a model as a checkpoint of its own (``step_00000000``), which every command reads.

    Raises:
        CheckpointError: there is a checkpoint already.
    """
    with Checkpoints(directory) as checkpoints:
        if checkpoints.steps():
            raise CheckpointError(
                f"output {directory}", found="a checkpoint", expected="a new or empty directory"
            )
        files = files_of(pretrained.model.config, pretrained.tokenizer)
        files[token_ids.FILE] = json.dumps(dict(pretrained.token_ids)).encode()
        if formats := formats_of(pretrained.params):
            files[FORMATS_FILE] = formats_text(formats).encode()
        checkpoints.save(0, {"params": pretrained.params}, records or {}, files)
    newest = checkpoints.latest()
    assert newest is not None
    return newest.path


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
    if directory.exists():
        raise CheckpointError(f"output {directory}", found="it exists", expected="a new directory")
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
    values |= {"dtype": dtype, "torch_dtype": dtype, **ids}
    with atomic.new_directory(directory) as target:
        pretrained.tokenizer.save(target)
        tensors = packed.tensors if packed else export_weights(names, params, layers=layers)
        write_sharded(target, tensors, max_shard_bytes, metadata={"format": "pt"})
        (target / "config.json").write_text(json.dumps(values, indent=2) + "\n")
        generation = ids | pretrained.tokenizer.generation_config
        (target / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    return directory


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
    _refuse_encoder(FAMILIES[settings.kind], step)
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
    arrays = read_arrays(step, trained_item(step))
    params = place_arrays(step, arrays, model.abstract, shardings, precision)
    tokenizer = HuggingFaceTokenizer.load(step / TOKENIZER)
    token_ids.warn_of_larger(tokenizer, settings.vocab_size, step)
    ids = token_ids.read(step)
    return Pretrained(model.typed_as(params), params, tokenizer, name, str(step), ids)


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
    _refuse_encoder(family, path)
    settings = values.pop("quantization_config", None)
    beside = path / "hf_quant_config.json"  # ModelOpt's own file
    if settings is None and beside.is_file():
        found = hf_values(beside)
        settings = {"quant_method": "modelopt"} | dict(found.get("quantization") or {})
    return family, LanguageModel.build(family.from_hf(values), precision), settings


def _refuse_encoder(family: Family, path: Path) -> None:
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


def load_language(
    path: Path,
    precision: Precision | None,
    layout: Layout | None,
    told: Told | None = None,
    expand: bool = False,
    *,
    told_of_images: bool = False,
) -> Pretrained:
    """Read the language model of a Hugging Face directory, see :func:`load`.

    Args:
        path: the directory.
        precision: see :func:`load`.
        layout: see :func:`load`.
        told: see :func:`load`.
        expand: see :func:`load`.
        told_of_images: whether to warn of tensors of images that are left out.
    """
    family, described, settings = _hf_model(path, precision)
    # what a method refuses is told before any file is missed
    reader = None if settings is None else method_reader(settings)
    tensors = _text_tensors(path, told_of_images)
    present = tensors if reader is None else present_names(reader, tensors)

    def names_of(config: Any) -> list[WeightName]:
        return named_as_found(family.hf_names(config), present, family.base)

    head = stored_head(described.config, names_of, tensors)
    model = described
    if head.config != model.config:
        model = LanguageModel.build(head.config, precision)
    model, params = _read(family, model, head, tensors, reader, layout, told, expand)
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


def _load_gguf(
    path: Path,
    precision: Precision | None,
    layout: Layout | None,
    told: Told | None,
    expand: bool,
) -> Pretrained:
    file = GgufFile(path)
    family = family_for_architecture(str(file.metadata.get("general.architecture")), gguf=True)
    assert family.from_gguf is not None
    assert family.gguf_names is not None
    divisors = file.read(ROPE_DIVISORS) if ROPE_DIVISORS in file else None
    settings = family.from_gguf(file.metadata, divisors)
    head = stored_head(settings, family.gguf_names, file)
    model = LanguageModel.build(head.config, precision)
    head = dataclasses.replace(head, copies=head.copies | {ROPE_DIVISORS})
    reader = GgufReader(file)
    model, params = _read(family, model, head, file, reader, layout, told, expand)
    tokenizer = tokenizer_of(file)
    token_ids.warn_of_larger(tokenizer, model.config.vocab_size, path)
    return Pretrained(model, params, tokenizer, path.stem, str(path))


def _read(
    family: Family,
    model: LanguageModel,
    head: Head,
    tensors: TensorSource,
    reader: MethodReader | None,
    layout: Layout | None,
    told: Told | None,
    expand: bool,
) -> tuple[LanguageModel, Params]:
    """The model with its weights' types, and its parameters."""
    if reader is not None:
        table = quantized_table(reader, head.names, tensors, model, expand=expand)
        if table.expanded and expand:
            _log.warning("%d quantised tensors become floats", table.expanded)
        head, tensors = dataclasses.replace(head, names=table.names), table.tensors
        model = quantized(model, table.formats)
    params = read_weights(family, model, head, tensors, layout, told)
    return model.typed_as(params), params


def read_weights(
    family: Family,
    model: LanguageModel,
    head: Head,
    tensors: TensorSource,
    layout: Layout | None,
    told: Told | None = None,
) -> Params:
    """A model's parameters from a source of their tensors, placed shard by shard.

    Raises:
        CheckpointError: a tensor is missing, left over, of another shape, or a buffer that
            contradicts the config; it is named.
    """
    dropped: list[str] = []

    def ignored(name: str) -> bool:
        if name in head.copies:
            return True
        if not name.endswith(family.buffers) and not family.ignored(model.config, name):
            return False
        dropped.append(name)
        return True

    place, done = placement(model.shardings(layout) if layout is not None else {}), 0

    def placed(name: str, weight: StoredWeight) -> Any:
        nonlocal done
        if told is not None:
            told(name, done, len(head.names))
        done += 1
        return place(name, weight)

    params = import_weights(
        head.names,
        tensors,
        model.abstract,
        layers=model.decoder.n_layers,
        ignored=ignored,
        place=placed,
        as_stored=model.precision.as_stored,
    )
    check_dropped(dropped, tensors, model.decoder)
    return params
