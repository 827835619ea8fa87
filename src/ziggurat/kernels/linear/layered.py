"""One layer's quantised matrix, read where it lies in the stack of all layers."""

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Int

from ziggurat.kernels.linear.quantized import QuantizedWeight


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerWeight:
    """Layer ``index`` of a stack of quantised matrices, which nobody has cut out yet: a product
    that can reads it there, all else takes :meth:`cut`, which copies it. A program over such
    weights is handed one array for all layers; one for each takes it longer to be handed than a
    small layer takes to be read.

    >>> import jax.numpy as jnp
    >>> from ziggurat.kernels.linear import WeightFormat
    >>> scale = jnp.array([[[1.0]], [[2.0]]])
    >>> stack = QuantizedWeight(jnp.int8([[[3]], [[4]]]), scale, None, WeightFormat("int8"), -2)
    >>> second = LayerWeight(stack, jnp.int32(1))
    >>> second.shape, second.cut().dequantized().tolist()
    ((1, 1), [[8.0]])
    """

    stack: QuantizedWeight
    """Parts ``[l, ...]``."""
    index: Int[Array, ""]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the float matrix."""
        return self.stack.shape[1:]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> Any:
        """Type of the dequantised weight."""
        return self.stack.dtype

    def cut(self) -> QuantizedWeight:
        """The layer alone."""
        return self.stack[self.index]

    def astype(self, dtype: Any) -> QuantizedWeight:
        """The layer alone, so that its products give ``dtype``."""
        return self.cut().astype(dtype)

    def __getitem__(self, index: Any) -> "LayerWeight | QuantizedWeight":
        """All of it for ``[...]``, as NNX reads a parameter."""
        return self if index is Ellipsis else self.cut()[index]
