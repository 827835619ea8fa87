"""Models whose key/value heads and vocabulary divide over a mesh, for inference.

Tensor parallelism gives each device whole heads. Where a model has fewer key/value heads than
devices, or a number that does not divide, each head is repeated until they do, so that a device
holds the key/value heads that its query heads read, and no others (grouped-query attention, as
vLLM serves it). A vocabulary is padded with rows of zeros, whose logits nobody may look at. Outputs
stay the same, up to the order of sums.
"""

import dataclasses
import functools
import math
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from ziggurat.core.errors import ShardingError
from ziggurat.core.pytrees import map_named
from ziggurat.mesh import Layout
from ziggurat.models.language_model import LanguageModel, Params
from ziggurat.models.quantized import formats_of, quantized
from ziggurat.nn.block import MixerConfig
from ziggurat.nn.decoder import DecoderConfig
from ziggurat.nn.stacking import stack_name

M = TypeVar("M", bound=MixerConfig)
REPLICABLE = frozenset({"kv_heads", "vocab"})
"""Logical axes of parameters that need not divide: :func:`divisible` makes them."""


@runtime_checkable
class RepeatsKeys(Protocol):
    """Interface of a mixer's config whose key/value heads may be repeated."""

    def with_kv_heads(self, count: int) -> Any:
        """The config with so many key/value heads, a multiple of its own."""
        ...


def divisible(model: LanguageModel, layout: Layout) -> LanguageModel:
    """The model with key/value heads and vocabulary that divide over a mesh, ``model`` itself where
    they do already.

    Args:
        model: the model.
        layout: the mesh and its rules.

    Raises:
        ShardingError: query heads do not divide, or a mixer cannot repeat its key/value heads.
    """
    decoder = _divisible_decoder(model.decoder, layout)
    if decoder == model.decoder:
        return model
    if len(decoder.stacks) != len(model.decoder.stacks):
        raise ShardingError(
            "cannot shard the layers over the mesh",
            found="layers that differ in their key/value heads alone",
            expected="key/value heads that divide",
        )
    made = quantized(model.with_decoder(decoder), formats_of(model.abstract))

    def typed(shape: jax.ShapeDtypeStruct, old: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape.shape, old.dtype)

    return dataclasses.replace(made, abstract=jax.tree.map(typed, made.abstract, model.abstract))


def divisible_params(
    model: LanguageModel, made: LanguageModel, params: Params, layout: Layout
) -> Params:
    """Parameters of the model that :func:`divisible` gave, each sharded over the mesh.

    Args:
        model: the model as it was.
        made: the model that :func:`divisible` made of it.
        params: parameters of ``model``; those whose shape does not change are only placed.
        layout: the mesh and its rules.
    """
    repeats = {
        stack_name(number): (old.mixer.divided.get("kv_heads", 1), new.mixer.divided)
        for number, (old, new) in enumerate(zip(model.decoder.stacks, made.decoder.stacks))
    }
    first = model.shardings(dataclasses.replace(layout, replicable=REPLICABLE))

    def one(name: str, leaf: Any, before: Any, axes: Any, shape: Any, where: Any) -> jax.Array:
        placed = jax.device_put(leaf, before)
        if leaf.shape == shape.shape:
            return jax.device_put(placed, where)
        heads, new = repeats.get(name.partition(".")[0], (1, {}))
        times = new.get("kv_heads", heads) // heads
        enlarge = functools.partial(_enlarged, axes=axes, shape=shape.shape, times=times)
        sizes = functools.partial(enlarge, heads=heads)
        return jax.jit(sizes, out_shardings=where)(placed)

    return map_named(one, params, first, model.axes, made.abstract, made.shardings(layout))


def _enlarged(
    leaf: Shaped[Array, "..."],
    *,
    axes: tuple[str | None, ...],
    shape: tuple[int, ...],
    heads: int,
    times: int,
) -> Shaped[Array, "..."]:
    """A parameter with its key/value heads repeated and its vocabulary padded."""
    for place, axis in enumerate(axes):
        if leaf.shape[place] == shape[place]:
            continue
        if axis == "kv_heads":
            apart = (*leaf.shape[:place], heads, -1, *leaf.shape[place + 1 :])
            leaf = jnp.repeat(leaf.reshape(apart), times, axis=place)
            leaf = leaf.reshape(*shape[: place + 1], *leaf.shape[place + 2 :])
        else:
            assert axis == "vocab", f"{axis} never changes"
            padding = [(0, 0)] * leaf.ndim
            padding[place] = (0, shape[place] - leaf.shape[place])
            leaf = jnp.pad(leaf, padding)
    return leaf


def _divisible_decoder(decoder: DecoderConfig, layout: Layout) -> DecoderConfig:
    ways = layout.ways("kv_heads")
    layers = tuple(
        dataclasses.replace(
            layer,
            block=dataclasses.replace(layer.block, mixer=_repeated(layer.block.mixer, ways)),
        )
        for layer in decoder.layers
    )
    rows = layout.ways("vocab")

    def padded(size: int) -> int:
        return -(-size // rows) * rows

    own = decoder.layer_inputs
    if own is not None:
        own = dataclasses.replace(own, vocab_size=padded(own.vocab_size))
    vocab = padded(decoder.vocab_size)
    return dataclasses.replace(decoder, layers=layers, vocab_size=vocab, layer_inputs=own)


def _repeated(mixer: M, ways: int) -> M:
    """A mixer with as many key/value heads as divide over ``ways`` devices."""
    heads, kv_heads = (mixer.divided.get(axis) for axis in ("heads", "kv_heads"))
    if kv_heads is None or kv_heads % ways == 0:
        return mixer
    count = math.lcm(kv_heads, ways)
    if heads is None or heads % count or not isinstance(mixer, RepeatsKeys):
        raise ShardingError(
            f"cannot shard {mixer.name} over the mesh",
            found=f"{heads} heads, {kv_heads} key/value heads",
            expected=f"heads that divide over {ways} devices",
        )
    return mixer.with_kv_heads(count)
