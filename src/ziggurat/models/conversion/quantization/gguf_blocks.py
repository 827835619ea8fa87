"""Blocks of GGUF files (llama.cpp), repacked without loss: what they hold in another order.

A block has 32 values with a float16 scale (``Q4_0``, ``Q8_0``, ...), or 256 in tiles whose scales
are small integers that share a float16 (the K-quants). Layouts:
https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h, and of values in them
``dequantize_row_*`` in ``src/ggml-quants.c``.
"""

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ziggurat.core.errors import CheckpointError
from ziggurat.formats import GgufFile
from ziggurat.kernels.linear import WeightFormat
from ziggurat.kernels.linear.weight_types import TYPES, WeightType, planes
from ziggurat.models.conversion.quantization.module import Apart, Present, QuantizedModule

_log = logging.getLogger(__name__)
Blocks = np.ndarray
"""Bytes of blocks, uint8 ``[n, bytes]``."""


@dataclasses.dataclass(frozen=True)
class Scales:
    """Scales of blocks: of tiles ``[n, tiles]``, and of whole blocks ``[n, 1]``."""

    scale: np.ndarray
    offset: np.ndarray | None = None
    super_scale: np.ndarray | None = None
    super_offset: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class BlockType:
    """One of GGUF's types of tensors."""

    kind: WeightType
    codes: Callable[[Blocks], np.ndarray]
    """Values ``[n, values]``, as unsigned codes."""
    scales: Callable[[Blocks], Scales]
    tile: int = 32
    values: int = 32
    """Values of a block."""
    offset: bool = False
    power: bool = False
    """Whether the scale is a byte, an exponent of two."""

    @property
    def nested(self) -> bool:
        """Whether scales are integers that share a float."""
        return self.values > 32

    @property
    def bias(self) -> int:
        """Subtracted from a code."""
        return {"int4": 8, "int8": 128}.get(self.kind, TYPES[self.kind].bias)

    @property
    def format(self) -> WeightFormat:
        """The format that holds such blocks."""
        if self.power:
            return WeightFormat(self.kind, tile_size=self.tile, scale="e8m0")
        return _format(self.kind, self.tile, "int8" if self.nested else "float16", self.offset)


def _format(kind: WeightType, tile: int, scale: Any, offset: bool) -> WeightFormat:
    if scale == "float16" and kind in ("int4", "int8") and not offset:
        scale = None  # the form that fast matmuls know
    nested = 256 if scale == "int8" else None
    return WeightFormat(kind, tile_size=tile, scale=scale, offset=offset, super_tile=nested)


def _halves(blocks: Blocks, start: int, size: int = 16) -> np.ndarray:
    """4-bit codes: in each run of ``size`` bytes first all low halves, then all high ones."""
    part = blocks[:, start:].reshape(len(blocks), -1, size)
    return np.concatenate([part & 0xF, part >> 4], axis=-1).reshape(len(blocks), -1)


def _float(blocks: Blocks, at: int) -> np.ndarray:
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16)


def _one_scale(blocks: Blocks) -> Scales:
    return Scales(_float(blocks, 0))


def _scale_and_least(blocks: Blocks) -> Scales:
    return Scales(_float(blocks, 0), _float(blocks, 2))


def _with_bits(low: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """Five-bit codes of 32 values, whose upper bits are those of four bytes in order."""
    high = np.unpackbits(bits, axis=-1, bitorder="little")
    return low | (high << 4)


def _shifted(part: np.ndarray, bits: int) -> np.ndarray:
    """Codes of ``bits`` bits in bytes: of each run of 32 first all lowest, and so on."""
    runs = part.reshape(len(part), -1, 1, 32)
    shifts = np.arange(0, 8, bits, dtype=np.uint8).reshape(1, 1, -1, 1)
    return ((runs >> shifts) & ((1 << bits) - 1)).reshape(len(part), -1)


def _six_bits(blocks: Blocks) -> tuple[np.ndarray, np.ndarray]:
    """Eight scales and eight minima of six bits in the twelve bytes of Q4_K and Q5_K."""
    d, m, rest = (blocks[:, 4 + 4 * i : 8 + 4 * i] for i in range(3))
    scale = np.concatenate([d & 0x3F, (rest & 0xF) | ((d >> 2) & 0x30)], axis=-1)
    least = np.concatenate([m & 0x3F, (rest >> 4) | ((m >> 2) & 0x30)], axis=-1)
    return scale.astype(np.int8), least.astype(np.int8)


def _k_scales(blocks: Blocks) -> Scales:
    scale, least = _six_bits(blocks)
    return Scales(scale, least, _float(blocks, 0), -_float(blocks, 2))


def _q2_scales(blocks: Blocks) -> Scales:
    both = blocks[:, :16]
    scale, least = (both & 0xF).astype(np.int8), (both >> 4).astype(np.int8)
    return Scales(scale, least, _float(blocks, 80), -_float(blocks, 82))


def _q3_codes(blocks: Blocks) -> np.ndarray:
    return _shifted(blocks[:, 32:96], 2) | (_shifted(blocks[:, :32], 1) << 2)


def _q3_scales(blocks: Blocks) -> Scales:
    low = np.concatenate([blocks[:, 96:104] & 0xF, blocks[:, 96:104] >> 4], axis=-1)
    high = np.concatenate([(blocks[:, 104:108] >> shift) & 3 for shift in (0, 2, 4, 6)], axis=-1)
    return Scales((low | (high << 4)).astype(np.int8) - 32, None, _float(blocks, 108))


def _q5_codes(blocks: Blocks) -> np.ndarray:
    return _halves(blocks, 48, 32) | (_shifted(blocks[:, 16:48], 1) << 4)


def _q6_codes(blocks: Blocks) -> np.ndarray:
    return _halves(blocks[:, :128], 0, 64) | (_shifted(blocks[:, 128:192], 2) << 4)


def _q6_scales(blocks: Blocks) -> Scales:
    return Scales(blocks[:, 192:208].view(np.int8), None, _float(blocks, 208))


def _xs_scales(blocks: Blocks) -> Scales:
    low = np.stack([blocks[:, 4:8] & 0xF, blocks[:, 4:8] >> 4], axis=-1).reshape(-1, 8)
    bits = blocks[:, 2].astype(np.uint16) | (blocks[:, 3].astype(np.uint16) << 8)
    high = (bits[:, None] >> np.arange(0, 16, 2, dtype=np.uint16)) & 3
    return Scales((low | (high << 4)).astype(np.int8) - 32, None, _float(blocks, 0))


BLOCK_TYPES: Mapping[str, BlockType] = {
    "Q4_0": BlockType("int4", lambda b: _halves(b, 2), _one_scale),
    "Q4_1": BlockType("uint4", lambda b: _halves(b, 4), _scale_and_least, offset=True),
    "Q5_0": BlockType("int5", lambda b: _with_bits(_halves(b, 6), b[:, 2:6]), _one_scale),
    "Q5_1": BlockType(
        "uint5", lambda b: _with_bits(_halves(b, 8), b[:, 4:8]), _scale_and_least, offset=True
    ),
    "Q8_0": BlockType("int8", lambda b: b[:, 2:] ^ 0x80, _one_scale),
    "IQ4_NL": BlockType("iq4", lambda b: _halves(b, 2), _one_scale),
    "MXFP4": BlockType("fp4_e2m1", lambda b: _halves(b, 1), lambda b: Scales(b[:, :1]), power=True),
    "Q2_K": BlockType("uint2", lambda b: _shifted(b[:, 16:80], 2), _q2_scales, 16, 256, True),
    "Q3_K": BlockType("int3", _q3_codes, _q3_scales, 16, 256),
    "Q4_K": BlockType("uint4", lambda b: _halves(b, 16, 32), _k_scales, 32, 256, True),
    "Q5_K": BlockType("uint5", _q5_codes, _k_scales, 32, 256, True),
    "Q6_K": BlockType("int6", _q6_codes, _q6_scales, 16, 256),
    "IQ4_XS": BlockType("iq4", lambda b: _halves(b, 8), _xs_scales, 32, 256),
}
"""Types that are read, by their names in ggml."""


class GgufReader(Apart):
    """Reader of a GGUF file's quantised tensors."""

    def __init__(self, file: GgufFile):
        self._file = file
        others = {t.quantization for t in file.tensors.values()} - BLOCK_TYPES.keys()
        wide = sorted(kind for kind in others if kind.startswith(("IQ", "Q", "TQ")))
        if wide:
            _log.warning("%s: %s tensors become floats", file.path, ", ".join(wide))

    def module(self, weight: str, tensors: Present) -> QuantizedModule | None:
        info = self._file.tensors.get(weight)
        block = None if info is None else BLOCK_TYPES.get(info.quantization)
        if info is None or block is None:
            return None
        return _module(self._file, weight, block, block.format)

    def alike(self, modules: Sequence[QuantizedModule]) -> list[QuantizedModule] | None:
        blocks = [module.source[1] for module in modules]
        format = common_format(blocks)
        if format is None:
            return None
        made = [
            _module(self._file, module.source[0], module.source[1], format) for module in modules
        ]
        return [dataclasses.replace(new, axis=old.axis) for new, old in zip(made, modules)]


def common_format(blocks: Sequence[BlockType]) -> WeightFormat | None:
    """A format that holds the values of blocks of several types; ``None`` if there is none.

    With offsets codes stay unsigned, and what would be taken off them becomes part of the offset.

    >>> common_format([BLOCK_TYPES["Q4_K"], BLOCK_TYPES["Q6_K"]]).weight
    'uint6'
    >>> common_format([BLOCK_TYPES["Q5_0"], BLOCK_TYPES["Q8_0"]]).weight
    'int8'
    """
    if any(TYPES[block.kind].table is not None for block in blocks):
        return None
    bits = max(TYPES[block.kind].bits for block in blocks)
    offset = any(block.offset for block in blocks)
    kind: Any = f"{'uint' if offset else 'int'}{bits}"
    nested = {block.nested for block in blocks}
    tile = math.gcd(*(block.tile for block in blocks))
    if len(nested) > 1:  # products of the scales, in the weight's own type
        return WeightFormat(kind, tile_size=tile, offset=offset)
    return _format(kind, tile, "int8" if nested == {True} else "float16", offset)


def _module(file: GgufFile, weight: str, block: BlockType, format: WeightFormat) -> QuantizedModule:
    shape = file.tensors[weight].shape
    stored = _Stored(file, weight, block, format)
    return QuantizedModule(format, frozenset((weight,)), stored.read, shape, source=(weight, block))


@dataclasses.dataclass(frozen=True)
class _Stored:
    """A tensor whose parts are read in some format that holds its values."""

    file: GgufFile
    weight: str
    block: BlockType
    format: WeightFormat

    def read(self, part: str) -> np.ndarray:
        raw = self.file.blocks(self.weight)
        lead, flat = raw.shape[:-2], raw.reshape(-1, raw.shape[-1])
        if part in ("qvalue", "high"):
            array = self._values(flat)[part == "high"]
        else:
            array = getattr(self._scales(self.block.scales(flat)), part)
        assert array is not None
        return np.ascontiguousarray(array).reshape(*lead, -1)

    def _values(self, flat: Blocks) -> tuple[np.ndarray, np.ndarray | None]:
        codes, kind = self.block.codes(flat), TYPES[self.format.weight]
        if not self.format.offset and kind.table is None:
            bias = 128 if kind.low == 8 else 8 if kind.twos_complement else kind.bias
            codes = codes + np.uint8(bias - self.block.bias)
        if self.format.weight == "int8":
            return (codes ^ 0x80).view(np.int8), None
        if kind.low == 8:
            return codes, None
        return planes(codes ^ 8 if kind.twos_complement else codes, kind)

    def _scales(self, found: Scales) -> Scales:
        block, format = self.block, self.format
        assert format.tile_size is not None
        spread = functools.partial(np.repeat, repeats=block.tile // format.tile_size, axis=-1)
        if block.nested and format.super_tile is None:
            assert found.super_scale is not None
            outer = found.super_scale.astype(np.float32)
            offset = None
            if found.offset is not None:
                assert found.super_offset is not None
                offset = found.offset * found.super_offset.astype(np.float32)
            found = Scales(found.scale * outer, offset)
        if format.offset and found.offset is None:
            found = self._offsets(found)
        offset = None if found.offset is None else spread(found.offset)
        return dataclasses.replace(found, scale=spread(found.scale), offset=offset)

    def _offsets(self, found: Scales) -> Scales:
        """Offsets for the bias of codes of values with a sign; a power of two times a float16
        is one."""
        bias = -self.block.bias
        if found.super_scale is not None:
            made = found.super_scale * np.float16(bias)
            found = dataclasses.replace(found, offset=found.scale, super_offset=made)
        else:
            made = found.scale * found.scale.dtype.type(bias)
            found = dataclasses.replace(found, offset=made)
        if not np.isfinite(made).all():
            raise CheckpointError(
                f"GGUF file {self.file.path}: tensor {self.weight}",
                found="scales beyond float16",
                expected="scales of weights",
                fix="copy the file again",
            )
        return found
