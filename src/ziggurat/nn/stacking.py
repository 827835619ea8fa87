"""Which layers share a stack of parameters, and how the stacks are scanned over a period.

>>> runs("LLLLLGLLLLLGLL")  # Gemma 3: five local layers, one global
(Run(start=0, period=6, repeats=2), Run(start=12, period=1, repeats=2))
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Shaped

if TYPE_CHECKING:
    from ziggurat.nn.block import BlockConfig


class StackPlace(NamedTuple):
    """Stack and index in it where a layer's parameters lie."""

    stack: int
    """Number of the stack: layers whose parameters are alike share one."""
    index: int
    """Index along the stack's layers axis."""


def stack_name(stack: int) -> str:
    """The attribute that holds a stack: ``blocks``, then ``blocks_1`` and so on.

    >>> stack_name(0), stack_name(1)
    ('blocks', 'blocks_1')
    """
    return "blocks" if stack == 0 else f"blocks_{stack}"


def places(layers: Sequence[Any]) -> tuple[StackPlace, ...]:
    """Places of all layers' parameters, stacks in order of first appearance."""
    stacks: dict[Hashable, int] = {}
    counts: list[int] = []
    found = []
    for layer in layers:
        stack = stacks.setdefault(getattr(layer, "block", None), len(stacks))
        if stack == len(counts):
            counts.append(0)
        found.append(StackPlace(stack, counts[stack]))
        counts[stack] += 1
    return tuple(found)


@dataclasses.dataclass(frozen=True)
class Run:
    """Layers ``start`` to ``start + period * repeats``, scanned ``repeats`` times."""

    start: int
    period: int
    repeats: int
    places: tuple[StackPlace, ...] = dataclasses.field(repr=False)
    """Places of the first period's layers; every repeat lies further along the same stacks."""

    def fold(self, stacks: Sequence[Any]) -> Any:
        """Elements of the scan: of each stack, parameters or states, ``[repeats, m, ...]`` for the
        ``m`` layers of a period that lie there, ``[repeats, ...]`` where that is one;
        :meth:`unfold` takes them apart. What the scan hands to a layer untouched it need not keep
        for the backward pass; an element of it would be kept, a second copy of all weights."""
        members = collections.Counter(place.stack for place in self.places)
        first = {place.stack: place.index for place in reversed(self.places)}
        return {
            stack: jax.tree.map(lambda x, s=stack, m=m: self._part(x, first[s], m), stacks[stack])
            for stack, m in members.items()
        }

    def unfold(self, folded: Any) -> list[Any]:
        """The part of each layer of one period."""
        members = collections.Counter(place.stack for place in self.places)
        first = {place.stack: place.index for place in reversed(self.places)}

        def one(tree: Any, index: int, count: int) -> Any:
            return tree if count == 1 else jax.tree.map(lambda x: x[index], tree)

        return [
            one(folded[p.stack], p.index - first[p.stack], members[p.stack]) for p in self.places
        ]

    def by_stack(self, parts: Sequence[Any]) -> dict[int, Any]:
        """Results of a period's layers, each ``[repeats, ...]``, joined by stack in the order of
        the stack's layers."""
        stacks = dict.fromkeys(place.stack for place in self.places)
        return {
            stack: self._joined([x for p, x in zip(self.places, parts) if p.stack == stack])
            for stack in stacks
        }

    @staticmethod
    def _joined(parts: Sequence[Any]) -> Any:
        def interleave(*leaves: Shaped[Array, "r ..."]) -> Shaped[Array, "l ..."]:
            return jnp.stack(leaves, axis=1).reshape(-1, *leaves[0].shape[1:])

        return jax.tree.map(interleave, *parts)

    def _part(self, leaf: Array, first: int, members: int) -> Array:
        count = self.repeats * members
        if count != leaf.shape[0]:
            leaf = jax.lax.slice_in_dim(leaf, first, first + count)
        if members == 1:
            return leaf
        return leaf.reshape(self.repeats, members, *leaf.shape[1:])


M = TypeVar("M", bound=nnx.Module)


def stacked(make: Callable[[nnx.Rngs], M], count: int, rngs: nnx.Rngs) -> M:
    """``count`` modules of equal structure as one, each parameter with a leading layers axis."""
    stack = nnx.vmap(make)(rngs.fork(split=count))
    for _, node in nnx.iter_graph(stack):
        if isinstance(node, nnx.Param):
            node.set_metadata(axes=("layers", *node.get_metadata("axes")))
    return stack


def runs(layers: Sequence[Any], border: int = 0) -> tuple[Run, ...]:
    """Split layers into runs: from each start on the period that covers most, the shortest such.

    Args:
        layers: all layers.
        border: number of a layer with which a run begins, as those before it take more inputs.

    >>> [(run.start, run.repeats) for run in runs("LLLLL", border=2)]
    [(0, 2), (2, 3)]
    """
    found, start, where = [], 0, places(layers)
    while start < len(layers):
        rest = layers[start : border if start < border else None]
        lengths = range(1, max(1, len(rest) // 2) + 1)
        repeats = {length: _repeats(rest, length) for length in lengths}
        period = max(lengths, key=lambda n: (n * repeats[n] if repeats[n] > 1 else 1, -n))
        found.append(Run(start, period, repeats[period], where[start : start + period]))
        start += period * repeats[period]
    return tuple(found)


def _repeats(layers: Sequence[Any], period: int) -> int:
    """How often the first ``period`` layers stand one after another."""
    count = 1
    while layers[count * period : (count + 1) * period] == layers[:period]:
        count += 1
    return count


class LayeredConfig:
    """Properties of a config with ``layers``, each of which has a ``block``."""

    layers: tuple[Any, ...]

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def stacks(self) -> "tuple[BlockConfig, ...]":
        """Configs of the blocks that differ by their parameters, in order of first appearance."""
        return tuple(dict.fromkeys(layer.block for layer in self.layers))

    @property
    def places(self) -> tuple[StackPlace, ...]:
        """Where each layer's parameters lie: which stack, and which index in it."""
        return places(self.layers)

    @property
    def runs(self) -> tuple[Run, ...]:
        """Ranges of layers that are scanned together."""
        return runs(self.layers)


class LayerStacks(nnx.Module):
    """A module whose blocks of equal parameters are stacked, in attributes named by
    :func:`stack_name`."""

    def add_stacks(
        self, c: LayeredConfig, make: Callable[[Any, nnx.Rngs], nnx.Module], rngs: nnx.Rngs
    ) -> None:
        """Make the stacks of a config's layers; ``make`` builds one block from its config."""
        for number, block in enumerate(c.stacks):
            count = sum(layer.block == block for layer in c.layers)
            stack = stacked(functools.partial(make, block), count, rngs)
            setattr(self, stack_name(number), stack)

    def stack_parts(self, c: LayeredConfig) -> tuple[dict[Any, Any], list[Any]]:
        """The structure of each stack by its block's config, and the parameters by number."""
        parts = [nnx.split(getattr(self, stack_name(number))) for number in range(len(c.stacks))]
        return dict(zip(c.stacks, (graph for graph, _ in parts))), [own for _, own in parts]
