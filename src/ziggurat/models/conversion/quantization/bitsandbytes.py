"""Weights that bitsandbytes has quantised: LLM.int8, and 4-bit floats with scales in blocks.

8-bit: ``weight`` int8 ``[f, d]`` with ``SCB [f]``, the largest magnitudes: ``weight * SCB / 127``
(Dettmers et al. 2022, https://arxiv.org/abs/2208.07339; the inputs that it keeps apart are a matter
of activations, which stay floats here). 4-bit: ``weight`` has codes of the flattened matrix, two in
a byte, the first in the high half; ``weight.absmax`` a scale for each block of it, floats or codes
of ``weight.nested_quant_map`` (double quantisation); ``weight.quant_state.*`` the rest as JSON.
Layout: ``QuantState`` in ``bitsandbytes/functional.py`` of
https://github.com/bitsandbytes-foundation/bitsandbytes.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ziggurat.core.errors import CheckpointError
from ziggurat.kernels.linear import WeightFormat
from ziggurat.kernels.linear.weight_types import TYPES, WeightType
from ziggurat.models.conversion.quantization.module import (
    Apart,
    Present,
    QuantizedModule,
    expect,
    refuse,
)

_KINDS: dict[str, WeightType] = {"nf4": "nf4", "fp4": "fp4_bitsandbytes"}
_ENDS = ("weight", "weight.absmax", "weight.quant_map", "weight.nested_absmax")
_NESTED = ("weight.nested_quant_map",)


class BitsAndBytesReader(Apart):
    """Reader of bitsandbytes' modules.

    Raises:
        ModelError: a switch that is not implemented.
    """

    def __init__(self, settings: Mapping[str, Any]):
        kind = settings.get("bnb_4bit_quant_type", "nf4")
        if kind not in _KINDS:
            refuse("bnb_4bit_quant_type", kind, "nf4 or fp4")

    def module(self, weight: str, tensors: Present) -> QuantizedModule | None:
        home = weight.removesuffix(".weight")
        if f"{home}.SCB" in tensors:
            return _int8(home, tensors)
        found = [kind for kind in _KINDS if _state_name(weight, kind) in tensors]
        return _four_bit(home, found[0], tensors) if found else None


def _state_name(weight: str, kind: str) -> str:
    return f"{weight}.quant_state.bitsandbytes__{kind}"


def _int8(home: str, tensors: Present) -> QuantizedModule:
    rows, columns = tensors.shape_of(f"{home}.weight")

    def scales() -> np.ndarray:
        array = tensors.read(f"{home}.SCB").astype(np.float32)
        return expect(f"{home}.SCB", array, np.float32, (rows,))[:, None] / np.float32(127)

    def values() -> np.ndarray:
        array = tensors.read(f"{home}.weight")
        return expect(f"{home}.weight", array, np.int8, (rows, columns))

    name = f"{home}.weight_format"
    if name in tensors and int(np.asarray(tensors.read(name)).reshape(-1)[0]) != 0:
        raise CheckpointError(
            f"tensor {name}",
            found="weights in the order of a GPU's kernels",
            expected="0, by rows",
            fix="save the model again with a newer bitsandbytes",
        )
    readers = {"qvalue": values, "scale": scales}
    ends = ("weight", "SCB", "weight_format")
    return QuantizedModule(
        WeightFormat("int8"),
        tensors.of_module(home, ends),
        lambda part: readers[part](),
        (rows, columns),
    )


def _four_bit(home: str, kind: str, tensors: Present) -> QuantizedModule:
    weight = f"{home}.weight"
    state_name = _state_name(weight, kind)
    try:
        state = json.loads(tensors.read(state_name).tobytes())
        rows, columns = (int(size) for size in state["shape"])
        block = int(state["blocksize"])
        nested = int(state.get("nested_blocksize") or 0)
        offset = np.float32(state.get("nested_offset") or 0)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"tensor {state_name}", found=str(error), expected="the state as JSON"
        ) from None
    _check_table(weight, kind, tensors)
    tile = math.gcd(block, columns)
    if tile % 2:
        refuse("shape", f"{columns} inputs of {home}", "an even number")

    def values() -> np.ndarray:
        stored = np.ascontiguousarray(tensors.read(weight)).view(np.uint8).reshape(-1)
        stored = expect(weight, stored, np.uint8, (rows * columns // 2,))
        return ((stored >> 4) | (stored << 4)).reshape(rows, columns // 2)

    def scales() -> np.ndarray:
        stored = tensors.read(f"{weight}.absmax").reshape(-1)
        if stored.dtype == np.uint8:
            codes = tensors.read(f"{weight}.nested_quant_map").astype(np.float32)
            outer = tensors.read(f"{weight}.nested_absmax").astype(np.float32)
            stored = codes[stored] * np.repeat(outer, nested)[: stored.size] + offset
        count = -(-rows * columns // block)
        stored = expect(f"{weight}.absmax", stored.astype(np.float32), np.float32, (count,))
        # blocks of the flattened matrix may reach over rows: tiles lie wholly in one
        starts = np.arange(0, rows * columns, tile) // block
        return stored[starts].reshape(rows, columns // tile)

    readers = {"qvalue": values, "scale": scales}
    ends = (*_ENDS, *_NESTED, state_name.removeprefix(f"{home}."))
    tiled = None if tile == columns else tile
    return QuantizedModule(
        WeightFormat(_KINDS[kind], tile_size=tiled),
        tensors.of_module(home, ends),
        lambda part: readers[part](),
        (rows, columns),
    )


def _check_table(weight: str, kind: str, tensors: Present) -> None:
    """The file's own table of codes must be the type's."""
    table = tensors.read(f"{weight}.quant_map").astype(np.float32).reshape(-1)
    known = np.array(TYPES[_KINDS[kind]].table, np.float32)
    if table.shape != known.shape or not np.allclose(table, known, rtol=0, atol=1e-5):
        raise CheckpointError(
            f"tensor {weight}.quant_map", found="other values", expected=f"those of {kind}"
        )
