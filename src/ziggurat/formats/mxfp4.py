"""MXFP4: four-bit floats in blocks of 32 that share a power of two.

The format is the Open Compute Project's (Microscaling Formats 1.0,
https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf): elements are
E2M1, two in a byte with the earlier one in the low half; scales are E8M0, an exponent with bias 127
whose value 255 is NaN.
"""

import numpy as np
from jaxtyping import Float, UInt8

VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""Values of the sixteen codes."""
BLOCK_BYTES = 16
"""Bytes of a block's elements."""


def dequantize(
    blocks: UInt8[np.ndarray, "*shape groups bytes"], scales: UInt8[np.ndarray, "*shape groups"]
) -> Float[np.ndarray, "*shape channels"]:
    """Blocks and their scales as float32, which holds every value exactly.

    >>> blocks = np.zeros((1, 1, 16), np.uint8)
    >>> blocks[0, 0, 0] = 0x72  # codes 2 and 7
    >>> dequantize(blocks, np.array([[128]], np.uint8))[0, :3].tolist()
    [2.0, 12.0, 0.0]
    """
    codes = np.stack([blocks & 0x0F, blocks >> 4], axis=-1).reshape(*blocks.shape[:-1], -1)
    exponents = np.where(scales == 255, 0, scales.astype(np.int32) - 127)
    factors = np.where(scales == 255, np.float32("nan"), np.ldexp(np.float32(1), exponents))
    return (VALUES[codes] * factors[..., None]).reshape(*blocks.shape[:-2], -1)
