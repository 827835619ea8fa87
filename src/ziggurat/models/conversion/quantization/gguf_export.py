"""GGUF files written from a model: int4 and int8 weights in blocks as llama.cpp reads them, where
tiles are multiples of 32 inputs; other matrices as float16, vectors as float32.

Scales become float16, which moves a weight by 0.05 % at most. Layouts: as in
:mod:`ziggurat.models.conversion.quantization.gguf_blocks`.
"""

import collections
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from ziggurat.core.errors import CheckpointError
from ziggurat.core.pytrees import named_leaves, nested
from ziggurat.formats.gguf_file import GgufTokenizer
from ziggurat.kernels.linear import QuantizedWeight, WeightFormat, dense, is_quantized
from ziggurat.kernels.linear.weight_types import unpack
from ziggurat.models.conversion.weight_names import WeightName, export_weights
from ziggurat.models.language_model import Params

_log = logging.getLogger(__name__)
_VALUES = 32
"""Values of a block."""


def block_type(format: WeightFormat, inputs: int) -> str | None:
    """The type of blocks that holds a format's values; ``None``: none does.

    >>> block_type(WeightFormat("int4", tile_size=64, symmetric=False), 128)
    'Q4_1'
    >>> block_type(WeightFormat("nf4", tile_size=32), 128) is None
    True
    """
    fits = format.in_qwix and not format.ordered and inputs % _VALUES == 0
    if not fits or (format.tile_size is not None and format.tile_size % _VALUES):
        return None
    if format.weight == "int4":
        return "Q4_0" if format.symmetric else "Q4_1"
    return "Q8_0" if format.weight == "int8" and format.symmetric else None


def blocks(kind: str, codes: np.ndarray, scale: np.ndarray, zero: np.ndarray | None) -> np.ndarray:
    """Bytes of blocks ``[f, blocks * bytes]``.

    Args:
        kind: of :func:`block_type`.
        codes: int8 ``[f, d]``.
        scale: ``[f, tiles]``.
        zero: as ``scale``.

    Raises:
        CheckpointError: scales are beyond float16.
    """
    rows, inputs = codes.shape
    each = inputs // _VALUES

    def halves(part: np.ndarray) -> np.ndarray:
        wide = np.repeat(part, each // part.shape[1], axis=1).astype(np.float16)
        if not np.isfinite(wide).all():
            raise CheckpointError("GGUF blocks", found="scales beyond float16", expected="less")
        return wide[..., None].view(np.uint8)

    values = codes.reshape(rows, each, _VALUES)
    if kind == "Q8_0":
        parts = [halves(scale), values.view(np.uint8)]
    else:
        unsigned = (values + np.int8(8)).astype(np.uint8)
        parts = [halves(scale), unsigned[..., :16] | (unsigned[..., 16:] << 4)]
        if kind == "Q4_1":
            assert zero is not None
            parts.insert(1, halves(-scale * (zero.astype(np.float32) + 8)))
    return np.concatenate(parts, axis=-1).reshape(rows, -1)


def write_gguf(
    path: Path,
    architecture: str,
    metadata: Mapping[str, Any],
    tokenizer: GgufTokenizer,
    names: Iterable[WeightName],
    params: Params,
    extra: Mapping[str, np.ndarray],
    *,
    layers: int,
) -> dict[str, int]:
    """Write a GGUF file; returns how many tensors have each type.

    Args:
        path: a new file.
        architecture: llama.cpp's name of the family.
        metadata: keys below the architecture's name.
        tokenizer: the tokenizer's pieces.
        names: the family's table for GGUF.
        params: the parameters.
        extra: further tensors, float32.
        layers: of the model.

    Raises:
        CheckpointError: the file exists.
    """
    import gguf

    if path.exists():
        raise CheckpointError(f"output {path}", found="it exists", expected="a new file")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    writer = gguf.GGUFWriter(temporary, architecture)
    try:
        for key, value in metadata.items():
            _add(writer, f"{architecture}.{key}", value)
        _add_tokenizer(writer, tokenizer)
        count: dict[str, int] = collections.Counter()
        for name, kind, array in (*_tensors(names, params, layers), *_floats(extra.items())):
            count[kind] += 1
            writer.add_tensor(name, array, raw_dtype=gguf.GGMLQuantizationType[kind])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return dict(count)


def _tensors(
    names: Iterable[WeightName], params: Params, layers: int
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Names, types and bytes of all tensors."""
    leaves = named_leaves(params, is_leaf=is_quantized)
    together: dict[str, list[WeightName]] = {}
    for name in names:
        together.setdefault(name.theirs, []).append(name)
    for parts in together.values():
        name, weight = parts[0], leaves[parts[0].ours]
        kind = None
        if isinstance(weight, QuantizedWeight) and len(parts) == 1:
            kind = block_type(weight.format, weight.shape[weight.axis])
        if kind is not None:
            yield from _in_blocks(name, kind, weight, layers)
            continue
        floats = {}
        for part in parts:
            weight = floats[part.ours] = leaves[part.ours]
            if isinstance(weight, QuantizedWeight):
                _log.warning("%s: %s becomes F16 in GGUF", part.ours, weight.format.weight)
                floats[part.ours] = dense(weight)
        yield from _floats(export_weights(parts, nested(floats), layers=layers))


def _floats(tensors: Iterable[tuple[str, np.ndarray]]) -> Iterator[tuple[str, str, np.ndarray]]:
    for name, array in tensors:
        wide = array.astype(np.float32)
        if array.ndim > 1 and np.abs(wide).max(initial=0) < np.finfo(np.float16).max:
            yield name, "F16", wide.astype(np.float16)
        else:
            yield name, "F32", wide


def _in_blocks(
    name: WeightName, kind: str, weight: QuantizedWeight, layers: int
) -> Iterator[tuple[str, str, np.ndarray]]:
    codes = np.asarray(weight.qvalue)
    if weight.format.weight == "int4":
        codes = np.asarray(unpack(jnp.asarray(codes), weight.axis, signed=True))
    parts = [codes, np.asarray(weight.scale, np.float32)]
    if weight.zero_point is not None:
        parts.append(np.asarray(weight.zero_point))
    # each goes through the table alone: a tensor's rows may be transposed and in another order
    streams = [export_weights([name], nested({name.ours: part}), layers=layers) for part in parts]
    for found in zip(*streams, strict=True):
        home = found[0][0]
        lead = found[0][1].shape[:-1]  # of experts, whose tensor holds all of a layer's, two axes
        arrays = [array.reshape(-1, array.shape[-1]) for _, array in found]
        made = blocks(kind, *arrays, *[None] * (3 - len(arrays)))
        yield home, kind, made.reshape(*lead, -1)


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_string(key, value)


def _add_tokenizer(writer: Any, pieces: GgufTokenizer) -> None:
    writer.add_tokenizer_model(pieces.model)
    writer.add_tokenizer_pre(pieces.pre_tokenizer)
    writer.add_token_list(list(pieces.tokens))
    writer.add_token_types(list(pieces.token_types))
    writer.add_token_merges([" ".join(pair) for pair in pieces.merges])
    ids = {"bos": pieces.bos_id, "eos": pieces.eos_id, "eot": pieces.eot_id}
    ids |= {"unknown": pieces.unknown_id, "padding": pieces.padding_id}
    for role, number in ids.items():
        if number is not None:
            writer.add_uint32(f"tokenizer.ggml.{role}_token_id", number)
    if pieces.add_bos is not None:
        writer.add_add_bos_token(pieces.add_bos)
    if pieces.add_eos is not None:
        writer.add_add_eos_token(pieces.add_eos)
    if pieces.chat_template is not None:
        writer.add_chat_template(pieces.chat_template)
