"""Observed weights: matrices that show the inputs of their matmuls while a function is traced.

Calibration wraps the matrices of one layer, traces the layer, and returns what it saw as further
results of the same function. No model knows of it.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ziggurat.core.pytrees import Leaf


class Observations:
    """Inputs of the matmuls by some weights, seen during one trace.

    >>> import jax.numpy as jnp
    >>> from ziggurat.kernels.linear import project
    >>> seen = Observations()
    >>> y = project(jnp.ones((2, 3)), seen.observed("up", jnp.ones((3, 4))))
    >>> y.shape, seen.inputs["up"][0].shape
    ((2, 4), (2, 3))
    """

    def __init__(self):
        self.inputs: dict[str, tuple[Float[Array, "... d"], Int[Array, " e"] | None]] = {}
        """Inputs of each weight; of a stack of experts sorted by expert, with the rows of each."""

    def observed(self, name: str, weight: Any) -> "ObservedWeight":
        """A weight whose inputs appear in :attr:`inputs` under ``name``."""
        return ObservedWeight(weight, name, self)

    def see(self, name: str, x: Float[Array, "... d"], sizes: Int[Array, " e"] | None) -> None:
        """Keep the inputs of a matmul."""
        assert name not in self.inputs, f"{name} multiplies twice in one layer"
        self.inputs[name] = (x, sizes)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ObservedWeight:
    """A kernel ``[..., d, f]`` whose matmuls tell :class:`Observations` of their inputs."""

    base: Leaf
    name: str = dataclasses.field(metadata={"static": True})
    seen: Observations = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def ndim(self) -> int:
        return self.base.ndim

    @property
    def dtype(self) -> np.dtype:
        return self.base.dtype

    def astype(self, dtype: DTypeLike) -> "ObservedWeight":
        """The weight with results of type ``dtype``."""
        return dataclasses.replace(self, base=self.base.astype(dtype))

    def __getitem__(self, index: Any) -> "ObservedWeight":
        """All of it for ``[...]``, as NNX reads a parameter."""
        assert index is Ellipsis
        return self

    def told(self, x: Float[Array, "... d"], sizes: Int[Array, " e"] | None = None) -> Any:
        """The weight itself, after ``x`` was shown."""
        self.seen.see(self.name, x, sizes)
        return self.base
