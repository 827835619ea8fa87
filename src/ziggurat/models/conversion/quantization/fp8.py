"""Weights in 8-bit floats: blocks as DeepSeek-V3 is published, a scale for each output, or one.

``weight`` is float8 e4m3; ``weight_scale_inv [f / 128, d / 128]`` multiplies blocks in spite of its
name (DeepSeek-AI 2024, https://arxiv.org/abs/2412.19437, section 3.3); ``weight_scale`` is one
number or one for each output (``fbgemm_fp8``, AutoFP8). Activations stay floats: what programs with
float8 matmuls round them to is not applied.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ziggurat.core.errors import CheckpointError
from ziggurat.kernels.linear import WeightFormat
from ziggurat.models.conversion.quantization.module import (
    Apart,
    Present,
    QuantizedModule,
    refuse,
    spread_blocks,
)

_TYPES = {"float8_e4m3fn": "fp8_e4m3", "float8_e5m2": "fp8_e5m2"}
_SCALES = ("weight_scale_inv", "weight_scale")
INERT = ("input_scale", "input_scale_ub", "activation_scale", "k_scale", "v_scale")
"""Ends of tensors of scales to which activations or caches are rounded elsewhere."""


class Fp8Reader(Apart):
    """Reader of float8 modules.

    Raises:
        ModelError: a switch that is not implemented.
    """

    def __init__(self, settings: Mapping[str, Any]):
        if settings.get("fmt", "e4m3") not in ("e4m3", "e5m2"):
            refuse("fmt", settings["fmt"], "e4m3 or e5m2")
        if settings.get("expert_dtype", "fp8") != "fp8":
            refuse("expert_dtype", settings["expert_dtype"], "fp8")
        block = settings.get("weight_block_size")
        if block is not None and (len(block) != 2 or min(block) < 1):
            refuse("weight_block_size", block, "two sizes")
        self._block: tuple[int, int] | None = None if block is None else (block[0], block[1])

    def module(self, weight: str, tensors: Present) -> QuantizedModule | None:
        home = weight.removesuffix(".weight")
        return fp8_module(home, tensors, self._block)


def fp8_module(
    home: str, tensors: Present, block: tuple[int, int] | None
) -> QuantizedModule | None:
    """A float8 module, ``None`` if its weight is of another type.

    Raises:
        CheckpointError: it has no scales, or they do not fit.
    """
    name = f"{home}.weight"
    kind = _TYPES.get(str(tensors.dtype_of(name)))
    if name not in tensors or kind is None:
        return None
    present = [end for end in _SCALES if f"{home}.{end}" in tensors]
    if not present:
        raise CheckpointError(
            f"tensor {name}",
            found=f"{tensors.dtype_of(name)} without scales",
            expected=f"{home}.weight_scale_inv or {home}.weight_scale beside it",
            fix="copy the checkpoint again",
        )
    scale = f"{home}.{present[0]}"
    shape = tensors.shape_of(name)
    rows, columns = shape[0], shape[1]
    found = tensors.shape_of(scale)
    blocks = None if block is None else (-(-rows // block[0]), -(-columns // block[1]))
    in_blocks = blocks is not None and present[0] == "weight_scale_inv"
    if block is not None and found == blocks:
        tile = spread_blocks(np.zeros(found), block, (rows, columns))[1]
    elif not in_blocks and (int(np.prod(found)) == 1 or found in ((rows,), (rows, 1))):
        tile = None
    else:
        raise CheckpointError(
            f"tensor {scale}",
            found=f"shape {list(found)}",
            expected=f"one scale, {rows}, or blocks {list(blocks or ())}",
            fix="check quantization_config against the weights",
        )

    def scales() -> np.ndarray:
        array = tensors.read(scale).astype(np.float32)
        if block is not None and found == blocks:
            return spread_blocks(array, block, (rows, columns))[0]
        return np.broadcast_to(array.reshape(-1, 1), (rows, 1))

    readers = {"qvalue": lambda: tensors.read(name), "scale": scales}
    return QuantizedModule(
        WeightFormat(kind, tile_size=tile),  # pyright: ignore[reportArgumentType]
        tensors.of_module(home, ("weight", *_SCALES, *INERT)),
        lambda part: readers[part](),
        (rows, columns),
    )
