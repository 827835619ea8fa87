"""GPT-OSS's experts as published: MXFP4 blocks and scales, dequantised one tensor at a time."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from ziggurat.core.errors import CheckpointError
from ziggurat.formats.mxfp4 import BLOCK_BYTES, dequantize
from ziggurat.models.conversion.weight_names import TensorSource

BLOCKS, SCALES = "_blocks", "_scales"


class DequantizedExperts:
    """A source of tensors in which ``X_blocks`` with ``X_scales`` is ``X``.

    Blocks run along the input channels, ``[e, out, in / 32, 16]``; ``X`` is ``[e, in, out]`` as
    files without quantisation have it.
    """

    def __init__(self, tensors: TensorSource):
        self._tensors = tensors
        present = set(tensors)
        self._packed = {
            name.removesuffix(BLOCKS)
            for name in present
            if name.endswith(BLOCKS) and name.removesuffix(BLOCKS) + SCALES in present
        }
        parts = {name + end for name in self._packed for end in (BLOCKS, SCALES)}
        self._names = sorted((present - parts) | self._packed)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def dtype_of(self, name: str) -> np.dtype:
        """Type of a tensor; bfloat16 holds every product of a 4-bit float and a power of 2."""
        return jnp.dtype("bfloat16") if name in self._packed else self._tensors.dtype_of(name)

    def read(self, name: str) -> np.ndarray:
        if name not in self._packed:
            return self._tensors.read(name)
        blocks, scales = (self._tensors.read(name + end) for end in (BLOCKS, SCALES))
        good = blocks.dtype == scales.dtype == np.uint8 and blocks.shape[:-1] == scales.shape
        if not good or blocks.shape[-1] != BLOCK_BYTES:
            raise CheckpointError(
                f"tensor {name}{BLOCKS}",
                found=f"{blocks.dtype} {list(blocks.shape)}, scales {scales.dtype} "
                f"{list(scales.shape)}",
                expected=f"uint8 [..., {BLOCK_BYTES}] and a uint8 scale for each block",
            )
        return dequantize(blocks, scales).swapaxes(-1, -2)
