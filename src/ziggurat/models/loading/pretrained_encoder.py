"""Trained encoders with the way they make one vector of a text, from a Hugging Face directory (that
of sentence-transformers included) or a checkpoint of ours."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ziggurat.checkpoint import Checkpoints, read_arrays
from ziggurat.core import atomic, config, hub
from ziggurat.core.errors import CheckpointError, ModelError
from ziggurat.core.pytrees import named_leaves
from ziggurat.data import HuggingFaceTokenizer
from ziggurat.formats import SafetensorsDirectory, write_sharded
from ziggurat.mesh import Layout
from ziggurat.models.conversion import token_ids
from ziggurat.models.conversion.dropped_tensors import check_dropped
from ziggurat.models.conversion.sentence_layout import SentenceConfig, read_layout, write_layout
from ziggurat.models.conversion.weight_names import export_weights, import_weights, named_as_found
from ziggurat.models.encoder_model import EncoderModel
from ziggurat.models.families.family import FAMILIES, family_of
from ziggurat.models.language_model import Params
from ziggurat.models.loading import pretrained
from ziggurat.models.loading.placing import float_type, place_arrays, placement
from ziggurat.nn.precision import Precision

SENTENCE_FILE = "sentence.json"
"""How texts become vectors, inside a checkpoint step."""


@dataclasses.dataclass(frozen=True)
class PretrainedEncoder:
    """An encoder with its weights, tokenizer, and the way from states to a vector."""

    model: EncoderModel
    params: Params
    tokenizer: HuggingFaceTokenizer
    sentence: SentenceConfig
    name: str
    """Name of the model on a server."""
    source: str
    """Where it was read from, for people."""


def is_encoder(path: Path) -> bool:
    """Whether a directory holds an encoder; what it holds is looked at no further."""
    step = pretrained.step_directory(path)
    if step is not None:
        kind = str(json.loads((step / pretrained.MODEL_FILE).read_text()).get("kind"))
        return kind in FAMILIES and FAMILIES[kind].encoder
    return (path / "config.json").is_file() and pretrained.hf_family(path)[0].encoder


def load(
    path: Path | str, *, precision: Precision | None = None, layout: Layout | None = None
) -> PretrainedEncoder:
    """Read a trained encoder.

    Args:
        path: a Hugging Face directory (``config.json`` and safetensors; what sentence-transformers
            keeps beside them is honoured), or a checkpoint that ``ziggurat import hf`` made of one.
        precision: parameter and compute types; default float32.
        layout: where parameters go; default the first device.

    Raises:
        ModelError: nothing of the kind is there, or the architecture or a switch is unknown.
        CheckpointError: weights are damaged, missing, or of another shape.
    """
    path = hub.local(path)
    if not path.is_dir():
        raise ModelError(f"encoder {path}", found="no such directory", expected="a directory")
    step = pretrained.step_directory(path)
    if step is not None:
        return _load_step(step, hub.name_of(path), precision, layout)
    if not (path / "config.json").is_file():
        raise ModelError(
            f"encoder {path}", found="neither checkpoints nor config.json", expected="one of them"
        )
    return _load_hf(path, precision, layout)


def save(
    encoder: PretrainedEncoder, directory: Path, records: Mapping[str, Any] | None = None
) -> Path:
    """Write an encoder as a checkpoint of its own (``step_00000000``), which :func:`load` reads.

    Raises:
        CheckpointError: there is a checkpoint already.
    """
    with Checkpoints(directory) as checkpoints:
        if checkpoints.steps():
            raise CheckpointError(
                f"output {directory}", found="a checkpoint", expected="a new or empty directory"
            )
        files = pretrained.files_of(encoder.model.config, encoder.tokenizer)
        files[SENTENCE_FILE] = json.dumps(config.to_plain(encoder.sentence), indent=2).encode()
        checkpoints.save(0, {"params": encoder.params}, records or {}, files)
    newest = checkpoints.latest()
    assert newest is not None
    return newest.path


def export_hf(
    encoder: PretrainedEncoder, directory: Path, *, max_shard_bytes: int = 5 * 10**9
) -> Path:
    """Write what transformers and sentence-transformers read.

    Raises:
        CheckpointError: the directory is there already.
    """
    if directory.exists():
        raise CheckpointError(f"output {directory}", found="it exists", expected="a new directory")
    model, family = encoder.model, family_of(encoder.model.config)
    dtype = float_type(encoder.params)
    values = family.to_hf(model.config) | {"dtype": dtype, "torch_dtype": dtype}
    if encoder.tokenizer.pad_id is not None:
        values["pad_token_id"] = encoder.tokenizer.pad_id
    names = family.hf_names(model.config)
    with atomic.new_directory(directory) as target:
        encoder.tokenizer.save(target)
        tensors = export_weights(names, encoder.params, layers=model.encoder.n_layers)
        write_sharded(target, tensors, max_shard_bytes, metadata={"format": "pt"})
        (target / "config.json").write_text(json.dumps(values, indent=2) + "\n")
        write_layout(encoder.sentence, target, model.encoder.d_model)
    return directory


def _load_hf(path: Path, precision: Precision | None, layout: Layout | None) -> PretrainedEncoder:
    from ziggurat.models.families.bert.hf import POOLER

    family, values = pretrained.hf_family(path)
    if not family.encoder:
        raise ModelError(f"encoder {path}", found=f"a {family.name} model", expected="an encoder")
    settings = family.from_hf(values)
    tensors = SafetensorsDirectory(path)
    has_pooler = any(name.endswith(POOLER) for name in tensors)
    settings = dataclasses.replace(settings, pooler=has_pooler)
    model = EncoderModel.build(settings, precision)
    params = import_weights(
        named_as_found(family.hf_names(settings), tensors, family.base),
        tensors,
        model.abstract,
        layers=model.encoder.n_layers,
        ignored=lambda name: name.endswith(family.buffers) or family.ignored(model.config, name),
        place=placement(model.shardings(layout) if layout is not None else {}),
        as_stored=model.precision.as_stored,
    )
    check_dropped([name for name in tensors if name.endswith(family.buffers)], tensors, None)
    sentence = read_layout(path, model.encoder.d_model, settings.max_sequence_length)
    tokenizer = HuggingFaceTokenizer.load(path)
    token_ids.warn_of_larger(tokenizer, settings.vocab_size, path)
    return PretrainedEncoder(model, params, tokenizer, sentence, hub.name_of(path), str(path))


def _load_step(
    step: Path, name: str, precision: Precision | None, layout: Layout | None
) -> PretrainedEncoder:
    values = json.loads((step / pretrained.MODEL_FILE).read_text())
    settings = pretrained.model_config(values, str(step / pretrained.MODEL_FILE))
    if not FAMILIES[settings.kind].encoder:
        raise ModelError(f"encoder {step}", found=f"a {settings.kind} model", expected="an encoder")
    model = EncoderModel.build(settings, precision)
    shardings = named_leaves(model.shardings(layout)) if layout is not None else {}
    arrays = read_arrays(step, "params")
    params = place_arrays(step, arrays, model.abstract, shardings, precision)
    file = step / SENTENCE_FILE
    sentence = config.from_plain(SentenceConfig, json.loads(file.read_text()), str(file))
    tokenizer = HuggingFaceTokenizer.load(step / pretrained.TOKENIZER)
    token_ids.warn_of_larger(tokenizer, settings.vocab_size, step)
    return PretrainedEncoder(model, params, tokenizer, sentence, name, str(step))
