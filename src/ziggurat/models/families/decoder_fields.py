"""Config fields, keys of ``config.json`` and weight names that most decoder families share.

The weight names are those of a block with grouped attention and a gated MLP.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from ziggurat.core import config
from ziggurat.core.errors import ModelError
from ziggurat.models.conversion import block_names
from ziggurat.models.conversion.hf_config import HFConfig, activation, hf_activation
from ziggurat.models.conversion.rotary_settings import read_rope
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.nn.attention import GroupedAttentionConfig
from ziggurat.nn.attention_context import AttentionRule
from ziggurat.nn.block import BlockConfig, LayerConfig
from ziggurat.nn.decoder import DecoderConfig
from ziggurat.nn.mlp import Activation, GatedMlpConfig, PlainMlpConfig
from ziggurat.nn.rope import DynamicScaling, RopeConfig

Reach = Literal["global", "local"]
"""Whether a layer's attention sees all earlier tokens or a window of them."""
T = TypeVar("T")
_LAYER_TYPES: dict[str, Reach] = {"full_attention": "global", "sliding_attention": "local"}


@config.node
class DecoderFields:
    """Dimensions and switches of a pre-norm decoder with rotary positions."""

    vocab_size: int
    """Vocabulary entries."""
    d_model: int
    """Model width."""
    n_layers: int
    """Decoder blocks."""
    n_heads: int
    """Query heads."""
    n_kv_heads: int | None = None
    """Key/value heads; default ``n_heads``."""
    head_dim: int | None = None
    """Channels of one head; default ``d_model / n_heads``."""
    d_ff: int | None = None
    """Feed-forward width; default ``8/3 d_model``, rounded up to a multiple of 64."""
    activation: Activation = "silu"
    """Gate function."""
    max_sequence_length: int = 2048
    """Longest sequence in tokens that serving allows."""
    rope: RopeConfig = dataclasses.field(default_factory=RopeConfig)
    """Rotary position embedding."""
    tie_embeddings: bool = True
    """One matrix for input embedding and output head."""
    norm_eps: float = 1e-6
    """Added to the mean square in norms."""
    init_std: float = 0.02
    """Standard deviation of initial weights."""

    def __post_init__(self):
        for name in ("vocab_size", "d_model", "n_layers", "n_heads", "max_sequence_length"):
            config.require(getattr(self, name) >= 1, name, getattr(self, name), "a number >= 1")
        for name in ("n_kv_heads", "head_dim", "d_ff"):
            value = getattr(self, name)
            config.require(value is None or value >= 1, name, value, "a number >= 1")
        if self.head_dim is None:
            divides = self.d_model % self.n_heads == 0
            config.require(divides, "d_model", self.d_model, f"a multiple of {self.n_heads} heads")
        kv_heads = self.n_kv_heads or self.n_heads
        divides = self.n_heads % kv_heads == 0
        config.require(divides, "n_heads", self.n_heads, f"a multiple of {kv_heads} kv heads")
        dim = self.channels_per_head
        config.require(dim % 2 == 0, "head_dim", dim, "an even number")

    @property
    def channels_per_head(self) -> int:
        """Channels of one head: ``head_dim``, by default ``d_model`` over ``n_heads``."""
        return self.head_dim or self.d_model // self.n_heads

    def attention(self, **switches: Any) -> GroupedAttentionConfig:
        """Grouped attention of these dimensions."""
        return GroupedAttentionConfig(
            heads=self.n_heads,
            kv_heads=self.n_kv_heads or self.n_heads,
            head_dim=self.channels_per_head,
            **switches,
        )

    def mlp(self, bias: bool = False) -> GatedMlpConfig:
        """A gated MLP of these dimensions."""
        hidden = self.d_ff or 64 * -(-self.d_model * 8 // (3 * 64))
        return GatedMlpConfig(hidden=hidden, activation=self.activation, bias=bias)

    def plain_mlp(self, bias: bool = False) -> PlainMlpConfig:
        """An MLP without a gate, of width ``4 d_model`` by default."""
        hidden = self.d_ff or 4 * self.d_model
        return PlainMlpConfig(hidden=hidden, activation=self.activation, bias=bias)

    def decoder_of(self, layers: Sequence[LayerConfig], **ends: Any) -> DecoderConfig:
        """A decoder of these layers, whose last norm is that of its blocks."""
        return DecoderConfig(
            vocab_size=self.vocab_size,
            d_model=self.d_model,
            layers=tuple(layers),
            norm=layers[0].block.norm,
            tie_embeddings=self.tie_embeddings,
            init_std=self.init_std,
            **ends,
        )

    def alike(
        self, block: BlockConfig, scale: float | None = None, window: int | None = None
    ) -> list[LayerConfig]:
        """Layers that are all alike; scores are multiplied by ``scale``, by default one through the
        root of a head's channels."""
        usual = self.channels_per_head**-0.5
        rule = AttentionRule(usual if scale is None else scale, window)
        layer = LayerConfig(block=block, rule=rule, rope=self.rope)
        return [layer] * self.n_layers


@config.node
class WindowedFields(DecoderFields):
    """Config fields of a decoder some of whose layers see a window of tokens."""

    window: int | None = None
    """Tokens that local layers see; default none, which no layer may need then."""
    pattern: tuple[Reach, ...] = ("global",)
    """Which layers see all (global) and which a window (local), repeated from the first on."""

    def __post_init__(self):
        super().__post_init__()
        config.require(len(self.pattern) >= 1, "pattern", self.pattern, "at least one entry")
        needed = "local" in self.reaches
        fits = self.window is None if not needed else (self.window or 0) >= 1
        config.require(
            fits, "window", self.window, "a number >= 1 if layers are local, otherwise none"
        )

    @property
    def reaches(self) -> tuple[Reach, ...]:
        """Reach of each layer's attention: all earlier tokens, or a window."""
        return reach_of_layers(self.pattern, self.n_layers)

    def windowed(
        self,
        block: BlockConfig,
        rope: Callable[[int, Reach], RopeConfig | None] | None = None,
        scale: float | None = None,
    ) -> list[LayerConfig]:
        """The layers, each with its window.

        Args:
            block: the block of every layer.
            rope: from a layer's number and reach to its rotary embedding; default ``self.rope``.
            scale: multiplies scores, by default one through the root of a head's channels.
        """
        factor = self.channels_per_head**-0.5 if scale is None else scale

        def layer(number: int, reach: Reach) -> LayerConfig:
            rule = AttentionRule(factor, window=self.window if reach == "local" else None)
            turned = self.rope if rope is None else rope(number, reach)
            return LayerConfig(block=block, rule=rule, rope=turned)

        return [layer(number, reach) for number, reach in enumerate(self.reaches)]


@config.node
class PartialRotaryFields(DecoderFields):
    """Config fields of a decoder of whose heads the first channels rotate."""

    partial_rotary_factor: float = 1.0
    """Share of a head's channels that rotate, the first ones."""

    def __post_init__(self):
        super().__post_init__()
        share, dim = self.partial_rotary_factor, self.rotary_dim
        fits = 0 < share <= 1 and dim >= 2 and dim % 2 == 0
        config.require(
            fits, "partial_rotary_factor", share, "a share of the channels that is an even number"
        )

    @property
    def rotary_dim(self) -> int:
        """Channels of a head that rotate."""
        return int(self.channels_per_head * self.partial_rotary_factor)


def reach_of_layers(pattern: Sequence[T], n_layers: int) -> tuple[T, ...]:
    """A pattern repeated from the first layer to the last.

    >>> reach_of_layers(("local", "global"), 3)
    ('local', 'global', 'local')
    """
    return tuple(pattern[i % len(pattern)] for i in range(n_layers))


def shortest_period(layers: Sequence[T]) -> tuple[T, ...]:
    """The reverse of :func:`reach_of_layers`: the shortest pattern that repeats to these layers.

    >>> shortest_period([True, False, True])
    (True, False)
    """
    count = len(layers)
    lengths = range(1, count + 1)
    period = next(n for n in lengths if reach_of_layers(layers[:n], count) == tuple(layers))
    return tuple(layers[:period])


def read_pattern(hf: HFConfig, n_layers: int, default: Sequence[str]) -> tuple[Reach, ...]:
    """``layer_types`` as the shortest pattern that repeats to it; ``default`` where it is absent.

    Raises:
        ModelError: another number of entries than layers, or a type that is not known.
    """
    types = hf.get("layer_types", list(default))
    known = " or ".join(_LAYER_TYPES)
    if not isinstance(types, list) or len(types) != n_layers:
        raise ModelError("config.json: layer_types", found=types, expected=f"{n_layers} of {known}")
    for entry in types:
        if entry not in _LAYER_TYPES:
            raise ModelError("config.json: layer_types", found=repr(entry), expected=known)
    return shortest_period([_LAYER_TYPES[entry] for entry in types])


def read_windows(hf: HFConfig, default: Sequence[str], window: Any) -> dict[str, Any]:
    """``pattern`` and ``window`` of :class:`WindowedFields`; the window is read where a layer has
    one. ``default`` as in :func:`read_pattern`."""
    pattern = read_pattern(hf, hf.whole("num_hidden_layers"), default)
    return {"pattern": pattern, "window": window if "local" in pattern else None}


def write_windows(settings: WindowedFields) -> dict[str, Any]:
    """The reverse of :func:`read_windows`."""
    return {
        "sliding_window": settings.window,
        "layer_types": write_pattern(settings.pattern, settings.n_layers),
    }


def write_pattern(pattern: Sequence[Reach], n_layers: int) -> list[str]:
    """The reverse of :func:`read_pattern`."""
    names = {reach: name for name, reach in _LAYER_TYPES.items()}
    return [names[reach] for reach in reach_of_layers(pattern, n_layers)]


def read_fields(
    hf: HFConfig, act: str = "hidden_act", eps: str = "rms_norm_eps", *, dense: bool = True
) -> dict:
    """The shared fields but ``rope``, two keys under the family's own names; ``d_ff`` only where
    layers may be ``dense``.

    Raises:
        ModelError: a dimension is missing, or an unknown activation is set.
    """
    return {
        "vocab_size": hf.need("vocab_size"),
        "d_model": hf.need("hidden_size"),
        "n_layers": hf.need("num_hidden_layers"),
        "n_heads": hf.need("num_attention_heads"),
        "n_kv_heads": hf.get("num_key_value_heads"),
        "head_dim": hf.get("head_dim"),
        **({"d_ff": hf.need("intermediate_size")} if dense else {}),
        "activation": activation(hf, act),
        "max_sequence_length": hf.get("max_position_embeddings"),
        "tie_embeddings": hf.get("tie_word_embeddings"),
        "norm_eps": hf.get(eps),
        "init_std": hf.get("initializer_range"),
    }


def with_head_dim(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """``config.json`` of a type whose ``head_dim`` has a default, and for which a null says that
    heads share the model's width: the width of a head in its place."""
    if "head_dim" not in values or values["head_dim"] is not None:
        return values
    hf = HFConfig(values)
    own = hf.whole("hidden_size") // max(hf.whole("num_attention_heads"), 1)
    return {**values, "head_dim": own}


def read_rotary(
    hf: HFConfig, length: Any, partial: bool = False, theta: str = "rope_theta"
) -> dict[str, Any]:
    """``rope``, and the longest sequence that serving allows: with dynamic scaling as many times
    longer as its factor says, otherwise ``max_position_embeddings``, which is ``length``.

    Args:
        hf: the config.
        length: the longest sequence as the config says it.
        partial: see :func:`~ziggurat.models.conversion.rotary_settings.read_rope`.
        theta: see there.
    """
    rope = read_rope(hf, length, partial, theta)
    if isinstance(rope.scaling, DynamicScaling):
        length = int(length * max(rope.scaling.factor, 1.0))
    return {"rope": rope, "max_sequence_length": length}


def same_reach(hf: HFConfig, window: Any) -> None:
    """Refuse ``layer_types`` of an architecture whose layers are all alike, unless it says so.

    Raises:
        ModelError: the layers are of another type than with this window, or of several.
    """
    kind = "full_attention" if window is None else "sliding_attention"
    hf.refuse_unless("layer_types", ([kind] * hf.whole("num_hidden_layers"),), "layers are alike")


def write_fields(
    settings: DecoderFields,
    act: str = "hidden_act",
    eps: str = "rms_norm_eps",
    mlp: PlainMlpConfig | None = None,
    *,
    dense: bool = True,
) -> dict[str, Any]:
    """The reverse of :func:`read_fields`, with the MLP where it has no gate."""
    attention, own = settings.attention(), mlp or settings.mlp()
    return {
        "vocab_size": settings.vocab_size,
        "hidden_size": settings.d_model,
        **({"intermediate_size": own.hidden} if dense else {}),
        "num_hidden_layers": settings.n_layers,
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        act: hf_activation(own.activation),
        "max_position_embeddings": settings.max_sequence_length,
        "initializer_range": settings.init_std,
        eps: settings.norm_eps,
        "tie_word_embeddings": settings.tie_embeddings,
        "attention_dropout": 0.0,
    }


def decoder_names(d: DecoderConfig, norms: Mapping[str, str] | None = None) -> list[WeightName]:
    """Names of all weights of a decoder whose layers share one block, as most families have them.

    Args:
        d: the decoder, whose attention is grouped and which has no experts.
        norms: the names of a block's norms, default ``block_names.PRE_NORMS``.
    """
    (block,) = d.stacks
    ((stack, layers),) = block_names.stacked_layers(d).items()
    attention, mlp = block.mixer, block.mlp
    assert isinstance(attention, GroupedAttentionConfig)
    assert isinstance(mlp, GatedMlpConfig | PlainMlpConfig)
    return [
        *block_names.ends(d),
        *block_names.norms(stack, norms or block_names.PRE_NORMS, layers, block.norm),
        *block_names.grouped_attention(stack, attention, layers),
        *block_names.feed_forward(stack, mlp, layers),
    ]
