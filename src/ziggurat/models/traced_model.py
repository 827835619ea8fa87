"""The base of all models: a module's structure, traced without its arrays."""

import dataclasses
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
from flax import nnx
from jaxtyping import Array, Key

from ziggurat.core.pytrees import named_leaves
from ziggurat.kernels.linear import is_quantized
from ziggurat.mesh import Layout
from ziggurat.nn.precision import Precision

Params = dict[str, Any]
"""Nested dict of arrays (or quantised weights in their place); per-layer parameters are stacked on
a leading layers axis."""


M = TypeVar("M", bound="TracedModel")


@runtime_checkable
class MakesModule(Protocol):
    """A function that makes a module with parameters drawn from ``rngs``."""

    def __call__(self, *, rngs: nnx.Rngs) -> nnx.Module: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class TracedModel:
    """A module's graph, and shapes and axes of its parameters; holds no arrays."""

    make: MakesModule
    """Makes the module."""
    precision: Precision
    graph: Any
    """NNX graph definition; with parameters it makes the module."""
    abstract: Params
    """Shapes and types of the parameters; quantised ones are ``QuantizedWeight`` nodes."""
    axes: Params
    """Logical axis names of the parameters, tuples as leaves."""

    @classmethod
    def trace(cls: type[M], make: MakesModule, precision: Precision, **settings: Any) -> M:
        """The model of the module that ``make`` makes; allocates nothing.

        Args:
            make: makes the module.
            precision: its parameter and compute types.
            settings: further fields of the class.
        """

        def made(key: Key[Array, ""]) -> nnx.Module:
            return make(rngs=nnx.Rngs(params=key))

        graph, state = nnx.split(nnx.eval_shape(made, jax.random.key(0)))
        axes = jax.tree.map(
            lambda v: v.get_metadata("axes"), state, is_leaf=lambda v: isinstance(v, nnx.Variable)
        )
        return cls(
            make=make,
            precision=precision,
            graph=graph,
            abstract=nnx.to_pure_dict(state),
            axes=_plain(axes),
            **settings,
        )

    def init(self, key: Key[Array, ""], layout: Layout | None = None) -> Params:
        """Fresh parameters, created sharded when a layout is given (never whole on one device)."""

        def drawn(key: Key[Array, ""]) -> Params:
            return nnx.to_pure_dict(nnx.split(self.make(rngs=nnx.Rngs(params=key)))[1])

        shardings = None if layout is None else self.shardings(layout)
        return jax.jit(drawn, out_shardings=shardings)(key)

    def typed_as(self: M, params: Params) -> M:
        """The model whose parameters have the types of these: arrays, or weights in files."""

        def typed(shape: jax.ShapeDtypeStruct, leaf: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape.shape, leaf.dtype)

        return dataclasses.replace(self, abstract=jax.tree.map(typed, self.abstract, params))

    def shardings(self, layout: Layout) -> Params:
        """Where each parameter lives.

        Raises:
            ShardingError: heads, vocabulary or another dimension does not divide over the mesh.
        """
        for heads in self.heads:
            layout.require_divides("the heads", heads)
        return layout.tree(self.axes, self.abstract)

    @property
    def heads(self) -> list[dict[str, int]]:
        """Numbers of heads by logical axis, of each kind of layer, to divide over the mesh."""
        return []

    @property
    def parameter_count(self) -> int:
        """Number of parameters; tied embeddings count once."""
        return sum(leaf.size for leaf in self.weights.values())

    @property
    def weights(self) -> dict[str, Any]:
        """Abstract parameters by name, quantised ones whole."""
        return named_leaves(self.abstract, is_leaf=is_quantized)


def _plain(tree: Any) -> Any:
    """A State of tuples as nested dicts of tuples."""
    if isinstance(tree, tuple):
        return tree
    return {str(name): _plain(entry) for name, entry in tree.items()}
