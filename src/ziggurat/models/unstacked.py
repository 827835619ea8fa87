"""A model with its layers laid out one by one, as decoding wants them.

A scan copies each layer's weights and cache out of their stack, and the cache back, at every token;
a program over separate arrays reads and writes them where they lie. The blocks and all else are the
decoder's own.
"""

import dataclasses
from typing import Any, Protocol, TypeVar

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Shaped

from ziggurat.models.language_model import LanguageModel, Params
from ziggurat.nn.attention_context import AttentionContext
from ziggurat.nn.decoder import Decoder, stack_name

S = TypeVar("S", bound="States")


class States(Protocol):
    """What a context keeps of all layers."""

    def of(self, layer: int) -> Any:
        """A layer's state."""
        ...

    def after(self: S, layer: int, state: Any) -> S:
        """All states once the layer's is ``state``."""
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Unstacked:
    """Parameters with the stacked layers taken apart."""

    layers: list[Params]
    """One block's parameters per layer, in order."""
    rest: Params
    """All that is not a block."""

    @classmethod
    def of(cls, model: LanguageModel, params: Params) -> "Unstacked":
        """Take ``params`` apart, array by array; they are left as they are. Layers of numpy arrays
        are views of them, others copies."""
        names = [stack_name(number) for number in range(len(model.decoder.stacks))]
        stacks = []
        for name in names:
            leaves, tree = jax.tree.flatten(params[name])
            apart = [
                list(leaf) if isinstance(leaf, np.ndarray) else _take_apart(leaf) for leaf in leaves
            ]
            stacks.append([jax.tree.unflatten(tree, layer) for layer in zip(*apart)])
        layers = [stacks[place.stack][place.index] for place in model.decoder.places]
        return cls(layers, {name: part for name, part in params.items() if name not in names})


@jax.jit
def _take_apart(stacked: Shaped[Array, "l ..."]) -> list[Array]:
    return list(stacked)


def _decoder(model: LanguageModel, weights: Unstacked) -> Decoder:
    """The decoder with one block in place of each stack, for all but its scan."""
    first = {place.stack: i for i, place in reversed(list(enumerate(model.decoder.places)))}
    blocks = {stack_name(stack): weights.layers[i] for stack, i in first.items()}
    return nnx.merge(model.graph, weights.rest | blocks)


def hidden(
    model: LanguageModel,
    weights: Unstacked,
    tokens: Int[Array, "b t"],
    positions: Int[Array, "b t"],
    context: AttentionContext,
    states: S,
) -> tuple[Float[Array, "b t d"], S]:
    """Final hidden states, and the layers' states after these tokens.

    Args:
        model: the model; built without remat.
        weights: its parameters.
        tokens: token ids.
        positions: their positions.
        context: attends; its own ``state`` is not looked at.
        states: the layers' states for it.
    """
    decoder = _decoder(model, weights)
    x, angles = decoder.begin(tokens, positions)
    steps: dict[Any, Any] = {}  # equal layers are traced once
    for i, (layer, params) in enumerate(zip(model.decoder.layers, weights.layers)):
        if layer not in steps:
            steps[layer] = jax.jit(decoder.layer_step(layer, positions, angles[i], context))
        x, state, _ = steps[layer](params, x, states.of(i))
        states = states.after(i, state)
    return decoder.finish(x), states


def project(
    model: LanguageModel, weights: Unstacked, hidden: Float[Array, "... d"]
) -> Float[Array, "... v"]:
    """Hidden states to logits in float32."""
    return model.logits_of(_decoder(model, weights).head, hidden)
