"""Weights in 4-bit floats with a scale for 16 or 32 of them: MXFP4 and NVFP4.

MXFP4 (Open Compute Project, Microscaling Formats 1.0): blocks of 32 share a power of two. GPT-OSS
has them as ``X_blocks [e, f, d / 32, 16]`` with ``X_scales [e, f, d / 32]``. NVFP4 (NVIDIA): blocks
of 16 share a float8, and these a float32: ModelOpt's ``weight_scale_2``, which multiplies them, or
the ``weight_global_scale`` of compressed-tensors, which divides them. Two values are in a byte, the
first in the low half.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

from ziggurat.core.errors import CheckpointError
from ziggurat.kernels.linear import WeightFormat
from ziggurat.models.conversion.quantization.fp8 import INERT, fp8_module
from ziggurat.models.conversion.quantization.module import (
    Apart,
    Present,
    QuantizedModule,
    expect,
    refuse,
)

MXFP4 = WeightFormat("fp4_e2m1", tile_size=32, scale="e8m0")
NVFP4 = WeightFormat("fp4_e2m1", tile_size=16, scale="float8_e4m3fn", super_tile=0)
_ALGORITHMS = (
    "FP8",
    "NVFP4",
    "NVFP4_AWQ",
    "MIXED_PRECISION",
    "FP8_PB_WO",
    "FP8_PER_CHANNEL_PER_TOKEN",
)


class Mxfp4Reader(Apart):
    """Reader of GPT-OSS's experts."""

    PRINCIPAL: ClassVar = {"_blocks": ""}

    def __init__(self, settings: Mapping[str, Any]):
        pass  # ``modules_to_not_convert`` is all that it says

    def module(self, weight: str, tensors: Present) -> QuantizedModule | None:
        blocks, scales = f"{weight}_blocks", f"{weight}_scales"
        if blocks not in tensors or scales not in tensors:
            return None
        shape, lead = tensors.shape_of(blocks), tensors.shape_of(scales)
        kinds = {str(tensors.dtype_of(name)) for name in (blocks, scales)}
        if kinds != {"uint8"} or shape != (*lead, 16):
            raise CheckpointError(
                f"tensor {blocks}",
                found=f"{tensors.dtype_of(blocks)} {list(shape)}, scales "
                f"{tensors.dtype_of(scales)} {list(lead)}",
                expected="uint8 [..., 16] and a uint8 scale for each block",
            )
        *outer, outputs, groups = lead
        readers = {
            "qvalue": lambda: tensors.read(blocks).reshape(*outer, outputs, groups * 16),
            "scale": lambda: tensors.read(scales),
        }
        return QuantizedModule(
            MXFP4,
            frozenset((blocks, scales)),
            # stored with inputs last, though the tensor that they stand for has outputs last
            lambda part: readers[part]().swapaxes(-1, -2),
            (*outer, groups * 32, outputs),
            axis=-2,
        )


def nvfp4_module(
    home: str, tensors: Present, packed: str, ends: tuple[str, ...]
) -> QuantizedModule:
    """A module in NVFP4.

    Args:
        home: its name.
        tensors: the checkpoint's.
        packed: end of the name of its values.
        ends: ends of the names of all tensors of the module that say nothing else.
    """
    name = f"{home}.{packed}"
    rows, half = tensors.shape_of(name)

    def scales() -> np.ndarray:
        array = tensors.read(f"{home}.weight_scale")
        return expect(f"{home}.weight_scale", array, ml_dtypes.float8_e4m3fn, (rows, half // 8))

    def outer() -> np.ndarray:
        if f"{home}.weight_scale_2" in tensors:
            factor = tensors.read(f"{home}.weight_scale_2").astype(np.float32).reshape(1, 1)
        else:
            divisor = tensors.read(f"{home}.weight_global_scale")
            factor = np.float32(1) / divisor.astype(np.float32).reshape(1, 1)
        return np.broadcast_to(factor, (rows, 1))

    readers = {
        "qvalue": lambda: expect(name, tensors.read(name), np.uint8, (rows, half)),
        "scale": scales,
        "super_scale": outer,
    }
    own = (packed, "weight_scale", "weight_scale_2", "weight_global_scale")
    return QuantizedModule(
        NVFP4,
        tensors.of_module(home, (*own, *ends)),
        lambda part: readers[part](),
        (rows, half * 2),
    )


class ModelOptReader(Apart):
    """Reader of NVIDIA ModelOpt's modules (https://github.com/NVIDIA/Model-Optimizer): NVFP4 and
    float8 side by side.

    Raises:
        ModelError: an algorithm that is not implemented.
    """

    def __init__(self, settings: Mapping[str, Any]):
        algorithm = settings.get("quant_algo")
        if algorithm is not None and algorithm not in _ALGORITHMS:
            refuse("quant_algo", algorithm, ", ".join(_ALGORITHMS))
        size = settings.get("group_size")
        if algorithm == "NVFP4" and size not in (None, 16):
            refuse("group_size", size, "16")

    def module(self, weight: str, tensors: Present) -> QuantizedModule | None:
        home = weight.removesuffix(".weight")
        if weight not in tensors:
            return None
        if f"{home}.pre_quant_scale" in tensors:
            raise CheckpointError(
                f"tensor {home}.pre_quant_scale",
                found="scales of activations (AWQ)",
                expected="none",
                fix="this part of ModelOpt's format is not implemented",
            )
        if f"{home}.weight_scale_2" in tensors:
            return nvfp4_module(home, tensors, "weight", INERT)
        return fp8_module(home, tensors, (128, 128))
