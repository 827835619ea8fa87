"""Low-rank adapted weights: a frozen matrix and the product of two thin ones beside it.

A :class:`LoraWeight` stands in a parameter tree where a kernel stood, as a quantised weight does,
so that no model knows of it; its base may itself be quantised.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ziggurat.core.pytrees import Leaf


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LoraWeight:
    r"""A kernel :math:`W + s A B` of which matmuls take the parts one by one:
    :math:`x W + s (x A) B`. Its parts may be arrays, shapes, shardings or axis names.

    Paper: Hu et al. 2021, https://arxiv.org/abs/2106.09685, eq. 3.

    >>> w = LoraWeight(jnp.zeros((3, 2)), jnp.ones((3, 1)), jnp.ones((1, 2)), 0.5)
    >>> w.shape, w.merged().tolist()
    ((3, 2), [[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]])
    """

    base: Leaf
    """``[..., d, f]``, an array or a ``QuantizedWeight``."""
    a: Leaf
    """``[..., d, r]``."""
    b: Leaf
    """``[..., r, f]``."""
    scale: float = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the base."""
        return self.base.shape

    @property
    def ndim(self) -> int:
        return self.base.ndim

    @property
    def size(self) -> int:
        """Number of weights of the base."""
        return int(np.prod(self.shape))

    @property
    def dtype(self) -> np.dtype:
        """Type of the base."""
        return self.base.dtype

    def astype(self, dtype: DTypeLike) -> "LoraWeight":
        """The weight with results of type ``dtype``."""
        parts = {"a": self.a.astype(dtype), "b": self.b.astype(dtype)}
        return dataclasses.replace(self, base=self.base.astype(dtype), **parts)

    def __getitem__(self, index: Any) -> "LoraWeight":
        """All of it for ``[...]``, as NNX reads a parameter; a layer or an expert for an index."""
        if index is Ellipsis:
            return self
        parts = {"a": self.a[index], "b": self.b[index]}
        return dataclasses.replace(self, base=self.base[index], **parts)

    def merged(self) -> Float[Array, "..."]:
        """The sum as one array of the base's type; a quantised base is dequantised."""
        base = getattr(self.base, "dequantized", lambda: self.base)()
        added = jnp.einsum("...dr,...rf->...df", self.a, self.b)
        return (base + self.scale * added).astype(base.dtype)


def is_adapted(node: object) -> bool:
    """For ``is_leaf``: whether a node of a parameter tree is a :class:`LoraWeight`."""
    return isinstance(node, LoraWeight)
