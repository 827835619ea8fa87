"""Trained encoders with the way they make one vector of a text, from a Hugging Face directory (that
of sentence-transformers included) or a checkpoint of ours."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ziggurat.checkpoint import read_arrays
from ziggurat.core import config, hub
from ziggurat.core.errors import ModelError
from ziggurat.core.pytrees import named_leaves
from ziggurat.data import HuggingFaceTokenizer
from ziggurat.formats import SafetensorsDirectory
from ziggurat.mesh import Layout
from ziggurat.models.conversion import token_ids
from ziggurat.models.conversion.dropped_tensors import check_copies, check_dropped
from ziggurat.models.conversion.sentence_layout import (
    MODULES,
    SentenceConfig,
    hf_score,
    layout_files,
    read_layout,
    read_score,
)
from ziggurat.models.conversion.weight_names import (
    TensorSource,
    export_weights,
    import_weights,
    named_as_found,
)
from ziggurat.models.decoder_encoder import DecoderEncoder
from ziggurat.models.encoder_model import EncoderModel
from ziggurat.models.families.family import FAMILIES, Family, family_for_config, family_of
from ziggurat.models.language_model import PARAMS, LanguageModel, Params
from ziggurat.models.loading import hf_directory, step_files
from ziggurat.models.loading.hf_directory import require_new, write_directory
from ziggurat.models.loading.placing import float_type, place_arrays, placement
from ziggurat.models.two_tower_model import TwoTowerModel
from ziggurat.nn.precision import Precision

SENTENCE_FILE = "sentence.json"
"""How texts become vectors, inside a checkpoint step."""
OUTPUT_MATRIX = "lm_head.weight"
"""Tensor of a decoder that is of no use where it embeds texts."""


@dataclasses.dataclass(frozen=True)
class PretrainedEncoder:
    """An encoder with its weights, tokenizer, and the way from states to a vector."""

    model: EncoderModel | DecoderEncoder
    params: Params
    tokenizer: HuggingFaceTokenizer
    sentence: SentenceConfig
    name: str
    """Name of the model on a server."""
    source: str
    """Where it was read from, for people."""


def is_encoder(path: Path) -> bool:
    """Whether a directory holds an encoder of texts; what it holds is looked at no further."""
    step = step_files.step_directory(path)
    if step is not None:
        return (step / SENTENCE_FILE).is_file()
    if not (path / "config.json").is_file():
        return False
    return (path / MODULES).is_file() or _reads_texts(hf_directory.hf_family(path)[0])


def _reads_texts(family: Family) -> bool:
    return family.encoder and family.inputs == ("text",)


def load(
    path: Path | str, *, precision: Precision | None = None, layout: Layout | None = None
) -> PretrainedEncoder:
    """Read a trained encoder.

    Args:
        path: a Hugging Face directory (``config.json`` and safetensors; what sentence-transformers
            keeps beside them is honoured; with it a decoder is read as an encoder too), or a
            checkpoint that ``ziggurat import hf`` made of one.
        precision: parameter and compute types; default float32.
        layout: where parameters go; default the first device.

    Raises:
        ModelError: nothing of the kind is there, or the architecture or a switch is unknown.
        CheckpointError: weights are damaged, missing, or of another shape.
    """
    path = hub.local(path)
    if not path.is_dir():
        raise ModelError(f"encoder {path}", found="no such directory", expected="a directory")
    step = step_files.step_directory(path)
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
    files = step_files.files_of(encoder.model.config, encoder.tokenizer)
    files[SENTENCE_FILE] = json.dumps(config.to_plain(encoder.sentence), indent=2).encode()
    return step_files.save_new(directory, {PARAMS: encoder.params}, files, records)


def export_hf(
    encoder: PretrainedEncoder, directory: Path, *, max_shard_bytes: int = 5 * 10**9
) -> Path:
    """Write what transformers and sentence-transformers read.

    Raises:
        CheckpointError: the directory is there already.
    """
    require_new(directory)
    model, family = encoder.model, family_of(encoder.model.config)
    values = family.to_hf(model.config)
    if encoder.tokenizer.pad_id is not None:
        values["pad_token_id"] = encoder.tokenizer.pad_id
    if model.labels == 1:
        values |= hf_score(encoder.sentence)
    if encoder.sentence.bidirectional:
        values["is_causal"] = False
    names = family.hf_names(model.config)
    return write_directory(
        directory,
        values,
        export_weights(names, encoder.params, layers=model.n_layers),
        dtype=float_type(encoder.params),
        tokenizer=encoder.tokenizer,
        files=layout_files(encoder.sentence, model.width),
        max_shard_bytes=max_shard_bytes,
    )


def _load_hf(path: Path, precision: Precision | None, layout: Layout | None) -> PretrainedEncoder:
    values, listed = hf_directory.hf_values(path / "config.json"), (path / MODULES).is_file()
    # of a decoder that embeds texts no output matrix is read, so that it need not have one
    family = family_for_config(values | ({"tie_word_embeddings": True} if listed else {}))
    decoder, causal = listed and not family.encoder, True
    if decoder:
        causal = values.pop("is_causal", True)
        values["tie_word_embeddings"] = True
    if not (_reads_texts(family) or decoder):
        raise ModelError(
            f"encoder {path}",
            found=f"a {family.name} model without {MODULES}",
            expected="an encoder of texts, or a decoder that embeds them",
        )
    tensors = SafetensorsDirectory(path)
    settings = family.as_found(family.from_hf(values), tensors)
    model = _model(settings, precision, bidirectional=decoder and causal is False)
    params = hf_weights(family, model, tensors, layout)
    sentence = read_layout(path, model.width, settings.max_sequence_length)
    if model.labels == 1:
        sentence = dataclasses.replace(sentence, score=read_score(values))
    if isinstance(model, DecoderEncoder):
        sentence = dataclasses.replace(sentence, bidirectional=model.bidirectional)
    tokenizer = HuggingFaceTokenizer.load(path)
    token_ids.warn_of_larger(tokenizer, model.vocab_size, path)
    return PretrainedEncoder(model, params, tokenizer, sentence, hub.name_of(path), str(path))


def _model(
    settings: Any, precision: Precision | None, *, bidirectional: bool
) -> EncoderModel | DecoderEncoder:
    if FAMILIES[settings.kind].encoder:
        return EncoderModel.build(settings, precision)
    return DecoderEncoder(LanguageModel.build(settings, precision), bidirectional)


def hf_weights(
    family: Family,
    model: EncoderModel | DecoderEncoder | TwoTowerModel,
    tensors: TensorSource,
    layout: Layout | None,
) -> Params:
    """The parameters, from tensors of a Hugging Face directory.

    Raises:
        CheckpointError: a tensor is missing, left over, of another shape, or contradicts another.
    """
    names = named_as_found(family.hf_names(model.config), tensors, family.base)
    head = model.encoder.head if isinstance(model, EncoderModel) else None
    fills = head is not None and head.outputs is None
    copies = check_copies(family.copies, names, tensors) if fills else frozenset()
    unread = {OUTPUT_MATRIX} if isinstance(model, DecoderEncoder) else copies
    dropped: list[str] = []

    def ignored(name: str) -> bool:
        if name.endswith(family.buffers):
            dropped.append(name)
            return True
        return name in unread or family.ignored(model.config, name)

    params = import_weights(
        names,
        tensors,
        model.abstract,
        layers=model.n_layers,
        ignored=ignored,
        place=placement(model.shardings(layout) if layout is not None else {}),
        as_stored=model.precision.as_stored,
    )
    decoder = model.language.decoder if isinstance(model, DecoderEncoder) else None
    check_dropped(dropped, tensors, decoder)
    return params


def with_present_names(arrays: Any) -> Any:
    """Arrays of a step of BERT under today's names; steps from before encoders were configured have
    its input's parts at the top, and the pooler's layer without a name of its own."""
    if "input" in arrays or "embedding_norm" not in arrays:
        return arrays
    parts = {"embedding": "embedding", "positions": "positions", "token_types": "token_types"}
    parts["embedding_norm"] = "norm"
    rest = {name: array for name, array in arrays.items() if name not in parts}
    if "pooler" in rest:
        rest["pooler"] = {"dense": rest["pooler"]}
    return rest | {"input": {ours: arrays[name] for name, ours in parts.items()}}


def _load_step(
    step: Path, name: str, precision: Precision | None, layout: Layout | None
) -> PretrainedEncoder:
    values, file = json.loads((step / step_files.MODEL_FILE).read_text()), step / SENTENCE_FILE
    settings = step_files.model_config(values, str(step / step_files.MODEL_FILE))
    if not file.is_file():
        raise ModelError(f"encoder {step}", found=f"a {settings.kind} model", expected="an encoder")
    sentence = config.from_plain(SentenceConfig, json.loads(file.read_text()), str(file))
    model = _model(settings, precision, bidirectional=sentence.bidirectional)
    shardings = named_leaves(model.shardings(layout)) if layout is not None else {}
    arrays = with_present_names(read_arrays(step, PARAMS))
    params = place_arrays(step, arrays, model.abstract, shardings, precision)
    tokenizer = HuggingFaceTokenizer.load(step / step_files.TOKENIZER)
    token_ids.warn_of_larger(tokenizer, model.vocab_size, step)
    return PretrainedEncoder(model, params, tokenizer, sentence, name, str(step))
