"""Config fields, keys of ``config.json`` and weight names that most decoder families share.

The weight names are those of a block with grouped attention and a gated MLP.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ziggurat.core import config
from ziggurat.core.errors import ModelError
from ziggurat.models.conversion import block_names
from ziggurat.models.conversion.hf_config import HFConfig, activation, hf_activation
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.nn.attention import GroupedAttentionConfig
from ziggurat.nn.decoder import DecoderConfig
from ziggurat.nn.mlp import Activation, GatedMlpConfig
from ziggurat.nn.rope import RopeConfig

Reach = Literal["global", "local"]
"""Whether a layer's attention sees all earlier tokens or a window of them."""
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
        """``head_dim``, or what it is by default."""
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


def reach_of_layers(pattern: Sequence[Reach], n_layers: int) -> tuple[Reach, ...]:
    """A pattern repeated from the first layer to the last.

    >>> reach_of_layers(("local", "global"), 3)
    ('local', 'global', 'local')
    """
    return tuple(pattern[i % len(pattern)] for i in range(n_layers))


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
    reaches: tuple[Reach, ...] = tuple(_LAYER_TYPES[entry] for entry in types)
    lengths = range(1, n_layers + 1)
    period = next(n for n in lengths if reach_of_layers(reaches[:n], n_layers) == reaches)
    return reaches[:period]


def write_pattern(pattern: Sequence[Reach], n_layers: int) -> list[str]:
    """The reverse of :func:`read_pattern`."""
    names = {reach: name for name, reach in _LAYER_TYPES.items()}
    return [names[reach] for reach in reach_of_layers(pattern, n_layers)]


def read_fields(hf: HFConfig, act: str = "hidden_act") -> dict:
    """The shared fields but ``rope``.

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
        "d_ff": hf.need("intermediate_size"),
        "activation": activation(hf, act),
        "max_sequence_length": hf.get("max_position_embeddings"),
        "tie_embeddings": hf.get("tie_word_embeddings"),
        "norm_eps": hf.get("rms_norm_eps"),
        "init_std": hf.get("initializer_range"),
    }


def same_reach(hf: HFConfig, window: Any) -> None:
    """Refuse ``layer_types`` of an architecture whose layers are all alike, unless it says so.

    Raises:
        ModelError: the layers are of another type than with this window, or of several.
    """
    kind = "full_attention" if window is None else "sliding_attention"
    hf.refuse_unless("layer_types", ([kind] * hf.whole("num_hidden_layers"),), "layers are alike")


def write_fields(settings: DecoderFields, act: str = "hidden_act") -> dict[str, Any]:
    """The reverse of :func:`read_fields`."""
    attention, mlp = settings.attention(), settings.mlp()
    return {
        "vocab_size": settings.vocab_size,
        "hidden_size": settings.d_model,
        "intermediate_size": mlp.hidden,
        "num_hidden_layers": settings.n_layers,
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        act: hf_activation(mlp.activation),
        "max_position_embeddings": settings.max_sequence_length,
        "initializer_range": settings.init_std,
        "rms_norm_eps": settings.norm_eps,
        "tie_word_embeddings": settings.tie_embeddings,
        "attention_dropout": 0.0,
    }


def decoder_names(d: DecoderConfig, norms: Mapping[str, str] | None = None) -> list[WeightName]:
    """Names of all weights of a decoder whose layers share one block, as most families have them.

    Args:
        d: the decoder, whose attention is grouped and whose MLP is gated.
        norms: the names of a block's norms, default ``block_names.PRE_NORMS``.
    """
    (block,) = d.stacks
    ((stack, layers),) = block_names.stacked_layers(d).items()
    attention, mlp = block.mixer, block.mlp
    assert isinstance(attention, GroupedAttentionConfig)
    assert isinstance(mlp, GatedMlpConfig)
    return [
        *block_names.ends(d),
        *block_names.scales(stack, norms or block_names.PRE_NORMS, layers),
        *block_names.grouped_attention(stack, attention, layers),
        *block_names.gated_mlp(stack, layers, bias=mlp.bias),
    ]
