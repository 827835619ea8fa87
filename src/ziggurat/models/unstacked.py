"""A model with its layers laid out one by one, as decoding wants them.

A scan copies each layer's weights and cache out of their stack, and the cache back, at every token;
a program over separate arrays, or one whose matmuls read a layer in its stack, takes them where
they lie. The blocks and all else are the decoder's own.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Shaped

from ziggurat.kernels.linear import PackedWeight, is_weight_node, packs
from ziggurat.models.language_model import LanguageModel, Params
from ziggurat.nn.attention_context import AttentionContext
from ziggurat.nn.decoder import Decoder
from ziggurat.nn.multimodal import MultimodalInputs
from ziggurat.nn.stacking import StackPlace, stack_name

S = TypeVar("S", bound="States")
_WHOLE = frozenset({"expand", "router"})
"""Modules that use their kernel otherwise than as a factor of one matmul."""


@runtime_checkable
class States(Protocol):
    """Interface of the state that a context keeps for all layers."""

    def of(self, layer: int) -> Any:
        """A layer's state."""
        ...

    def after(self: S, layer: int, state: Any) -> S:
        """All states after the layer's became ``state``."""
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Unstacked:
    """Parameters with the stacked layers taken apart, but for what is read in its stack."""

    layers: list[Params]
    """Parameters of each layer alone, in order; ``None`` where they stay in the stack."""
    stacks: list[Params]
    """Parameters that stay stacked; ``None`` where they do not.

    They are vectors, which a program slices as it uses them, and kernels of which it reads one
    layer in place. The fewer arrays a program takes, the less time a call takes.
    """
    rest: Params
    """All that is not a block."""

    @classmethod
    def of(cls, model: LanguageModel, params: Params, *, pack: bool = False) -> "Unstacked":
        """Take ``params`` apart, array by array; they are left as they are.

        Args:
            model: whose they are.
            params: arrays; of numpy's the parts are views, of others copies.
            pack: lay out matrices for matmuls in C++ where there are such, see
                :class:`ziggurat.kernels.linear.PackedWeight`; for numpy's arrays, and a model that
                computes in float32.
        """
        places, layers, stacks = model.decoder.places, {}, []
        for number in range(len(model.decoder.stacks)):
            stack = params[stack_name(number)]
            paths, tree = jax.tree_util.tree_flatten_with_path(stack, is_leaf=is_weight_node)
            count = sum(place.stack == number for place in places)
            stays = [_stacked(path, node, pack) for path, node in paths]
            stacks.append(tree.unflatten(stays))
            own = [
                _apart(node) if stay is None else [None] * count
                for stay, (_, node) in zip(stays, paths)
            ]
            for index, parts in enumerate(zip(*own)):
                layers[StackPlace(number, index)] = tree.unflatten(parts)
        names = [stack_name(number) for number in range(len(stacks))]
        rest = {name: part for name, part in params.items() if name not in names}
        if pack and model.decoder.tie_embeddings:
            rest["embedding"] = {"table": _packed(rest["embedding"]["table"])}
        elif pack:
            rest["unembedding"] = _packed(rest["unembedding"])
        return cls([layers[place] for place in places], stacks, rest)


def _packed(table: Any) -> Any:
    return PackedWeight.of(table, -1) if packs(table, -1) else table


def _stacked(path: Sequence[Any], node: Any, pack: bool) -> Any:
    """Parameters of a stack that stay stacked, or ``None``."""
    names = {entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)}
    kernel = path[-1] == jax.tree_util.DictKey("kernel") and not names & _WHOLE
    if pack and kernel and node.ndim == 3 and packs(node, -2):
        return PackedWeight.of(node, -2)
    return node if isinstance(node, jax.Array | np.ndarray) and node.ndim == 2 else None


def _apart(node: Any) -> list[Any]:
    leaves, tree = jax.tree.flatten(node)
    parts = [list(leaf) if isinstance(leaf, np.ndarray) else _layers_of(leaf) for leaf in leaves]
    return [tree.unflatten(layer) for layer in zip(*parts)]


def _layers_of(leaf: Shaped[Array, "l ..."]) -> list[Array]:
    """The layers of a stack, each sharded as the stack is."""
    where = leaf.sharding
    if isinstance(where, NamedSharding):
        own = NamedSharding(where.mesh, PartitionSpec(*where.spec[1:]))
        return jax.jit(list, out_shardings=own)(leaf)
    return _take_apart(leaf)


@jax.jit
def _take_apart(stacked: Shaped[Array, "l ..."]) -> list[Array]:
    return list(stacked)


def _joined(own: Params, stack: Params, index: Int[Array, ""]) -> Params:
    """A layer's parameters, from what it has for itself and what is in the stack."""

    def one(mine: Any, stacked: Any) -> Any:
        if stacked is None:
            return mine
        return stacked.layer(index) if isinstance(stacked, PackedWeight) else stacked[index]

    return jax.tree.map(one, own, stack, is_leaf=lambda node: node is None or is_weight_node(node))


def _stepped(step: Any, own: Params, stack: Params, index: Array, x: Array, *rest: Any) -> Any:
    return step(_joined(own, stack, index), x, *rest)


def _decoder(model: LanguageModel, weights: Unstacked) -> Decoder:
    """The decoder with one block in place of each stack, for all but its scan."""
    first = {place.stack: i for i, place in reversed(list(enumerate(model.decoder.places)))}
    blocks = {
        stack_name(stack): _joined(weights.layers[i], weights.stacks[stack], jnp.int32(0))
        for stack, i in first.items()
    }
    return nnx.merge(model.graph, weights.rest | blocks)


def hidden(
    model: LanguageModel,
    weights: Unstacked,
    tokens: Int[Array, "b t"],
    positions: Int[Array, "b t"],
    context: AttentionContext,
    states: S,
    inputs: MultimodalInputs | None = None,
) -> tuple[Float[Array, "b t d"], S]:
    """Final hidden states, and the layers' states after these tokens.

    Args:
        model: the model; built without remat.
        weights: its parameters.
        tokens: token ids.
        positions: their positions.
        context: attends; its own ``state`` is not looked at.
        states: the layers' states for it.
        inputs: embeddings of images or other input, and positions of several axes.
    """
    decoder = _decoder(model, weights)
    begun = decoder.begin(tokens, positions, context, inputs)
    x = begun.x
    steps: dict[Any, Any] = {}  # equal layers are traced once
    for i, (layer, place) in enumerate(zip(model.decoder.layers, model.decoder.places)):
        if layer not in steps:
            step = decoder.layer_step(layer, positions, begun.rotations[i], context)
            steps[layer] = jax.jit(functools.partial(_stepped, step))
        own, stack = weights.layers[i], weights.stacks[place.stack]
        holder = i if layer.source is None else layer.source
        held, index = states.of(holder), jnp.int32(place.index)
        x, state, _ = steps[layer](own, stack, index, x, held, *begun.of(i))
        states = states.after(holder, state)
        if inputs is not None and inputs.by_layer is not None and i < inputs.layers:
            x = inputs.add(x, inputs.by_layer[i])
    return decoder.finish(x), states


def project(
    model: LanguageModel, weights: Unstacked, hidden: Float[Array, "... d"]
) -> Float[Array, "... v"]:
    """Hidden states to logits in float32."""
    return model.logits_of(_decoder(model, weights).head, hidden)
