"""Gemma 4 (text)."""

import dataclasses
import math
from typing import Literal

from ziggurat.core import config
from ziggurat.models.families.decoder_fields import Reach, reach_of_layers
from ziggurat.models.families.mixture_fields import MixtureFields
from ziggurat.nn.attention import GroupedAttentionConfig
from ziggurat.nn.attention_context import AttentionRule
from ziggurat.nn.block import BlockConfig, LayerConfig
from ziggurat.nn.decoder import DecoderConfig
from ziggurat.nn.layer_inputs import LayerInputGateConfig, LayerInputsConfig
from ziggurat.nn.mlp import Activation
from ziggurat.nn.norm import NormConfig
from ziggurat.nn.rope import ProportionalScaling, RopeConfig


@config.node
class Gemma4Config(MixtureFields):
    """Gemma 4: five local layers to a global one, whose heads are wider and fewer and share one
    projection for keys and values; scores are not scaled, and values have a norm.

    With ``sparse``, a mixture of experts stands beside every layer's feed-forward part. In the
    small models (E2B, E4B) each layer reads embeddings of its own, and the last layers attend to
    the keys and values of the last layer before them that sees as far.
    Source: https://ai.google.dev/gemma/docs/core/model_card_4.
    """

    kind: Literal["gemma4"] = "gemma4"
    head_dim: int = 256
    """Channels of one head of a local layer."""
    global_head_dim: int = 512
    """Channels of one head of a global layer."""
    n_global_kv_heads: int | None = None
    """Key/value heads of a global layer; default ``n_kv_heads``."""
    shared_key_value: bool = False
    """In global layers values are the keys before their norm and rotation."""
    activation: Activation = "gelu_tanh"
    """Gate function."""
    attention_bias: bool = False
    """Biases on query, key, value and output projections."""
    rope: RopeConfig = dataclasses.field(
        default_factory=lambda: RopeConfig(theta=1e6, scaling=ProportionalScaling(share=0.25))
    )
    """Rotary position embedding of global layers."""
    local_rope: RopeConfig = dataclasses.field(default_factory=RopeConfig)
    """Rotary position embedding of local layers."""
    window: int = 512
    """Tokens that local layers see."""
    pattern: tuple[Reach, ...] = ("local",) * 5 + ("global",)
    """Which layers see all (global) and which a window (local), repeated from the first on."""
    logit_softcap: float = 0.0
    """Bound on the logits, ``cap * tanh(logits / cap)``; 0: none."""
    sparse: bool = False
    """A mixture of experts stands beside every layer's feed-forward part."""
    layer_input_width: int = 0
    """Channels of the embeddings that each layer reads for itself; 0: none."""
    layer_input_vocab_size: int | None = None
    """Rows of their table; default ``vocab_size``."""
    padding_token: int = 0
    """Token id whose row of that table is read where an image stands."""
    sharing_layers: int = 0
    """Number of the last layers, which attend to keys and values of earlier ones."""
    wide_sharing_mlp: bool = False
    """Feed-forward parts of these layers are twice as wide."""

    def __post_init__(self):
        super().__post_init__()
        config.require(self.window >= 1, "window", self.window, "a number >= 1")
        config.require(len(self.pattern) >= 1, "pattern", self.pattern, "at least one entry")
        cap = self.logit_softcap
        config.require(cap >= 0, "logit_softcap", cap, "a number > 0, or 0 for none")
        dim, heads = self.global_head_dim, self.n_global_kv_heads
        config.require(dim >= 2 and dim % 2 == 0, "global_head_dim", dim, "an even number >= 2")
        for name in ("layer_input_width", "padding_token", "sharing_layers"):
            config.require(getattr(self, name) >= 0, name, getattr(self, name), "a number >= 0")
        rows = self.layer_input_vocab_size
        fits = rows is None or rows > self.padding_token
        config.require(fits, "layer_input_vocab_size", rows, f"more than {self.padding_token}")
        reaches = reach_of_layers(self.pattern, self.n_layers)
        border, count = self.n_layers - self.sharing_layers, self.sharing_layers
        fits = count == 0 or (border > 0 and set(reaches[:border]) == set(reaches))
        config.require(fits, "sharing_layers", count, "layers of each reach before them")
        divides = heads is None or (heads >= 1 and self.n_heads % heads == 0)
        config.require(divides, "n_global_kv_heads", heads, f"a divisor of {self.n_heads} heads")

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        norm = NormConfig(eps=self.norm_eps)
        bias = self.attention_bias
        local = self.attention(
            bias=bias, out_bias=bias, head_norm=norm, value_norm_eps=self.norm_eps
        )
        every = dataclasses.replace(
            local,
            kv_heads=self.n_global_kv_heads or local.kv_heads,
            head_dim=self.global_head_dim,
            value_is_key=self.shared_key_value,
        )
        kinds: dict[Reach, LayerConfig] = {
            "local": LayerConfig(
                block=self._block(local, norm),
                rule=AttentionRule(1.0, self.window),
                rope=self.local_rope,
            ),
            "global": LayerConfig(
                block=self._block(every, norm), rule=AttentionRule(1.0), rope=self.rope
            ),
        }
        return self.decoder_of(
            self._layers(kinds, norm),
            embedding_scale=math.sqrt(self.d_model),
            logit_softcap=self.logit_softcap or None,
            layer_inputs=self._layer_inputs(norm),
        )

    def _layers(self, kinds: dict[Reach, LayerConfig], norm: NormConfig) -> list[LayerConfig]:
        """The layers; the last of each kind before those that share is read by these."""
        reaches = reach_of_layers(self.pattern, self.n_layers)
        border = self.n_layers - self.sharing_layers
        layers = [kinds[reach] for reach in reaches]
        sources = {reach: number for number, reach in enumerate(reaches[:border])}
        sharing: dict[Reach, LayerConfig] = {}
        for reach in dict.fromkeys(reaches[border:]):
            layer = kinds[reach]
            rule = dataclasses.replace(layer.rule, read_later=True)
            layers[sources[reach]] = dataclasses.replace(layer, rule=rule)
            attention = layer.block.mixer
            assert isinstance(attention, GroupedAttentionConfig)
            attention = dataclasses.replace(attention, own_keys=False)
            block = self._block(attention, norm, wide=self.wide_sharing_mlp)
            sharing[reach] = dataclasses.replace(layer, block=block, source=sources[reach])
        layers[border:] = [sharing[reach] for reach in reaches[border:]]
        return layers

    def _layer_inputs(self, norm: NormConfig) -> LayerInputsConfig | None:
        if self.layer_input_width == 0:
            return None
        return LayerInputsConfig(
            vocab_size=self.layer_input_vocab_size or self.vocab_size,
            width=self.layer_input_width,
            norm=norm,
            padding=self.padding_token,
        )

    def _block(
        self, attention: GroupedAttentionConfig, norm: NormConfig, wide: bool = False
    ) -> BlockConfig:
        mlp = self.mlp()
        mlp = dataclasses.replace(mlp, hidden=2 * mlp.hidden) if wide else mlp
        width = self.layer_input_width
        if self.sparse:
            router = {"input_norm_eps": self.norm_eps, "expert_scale": True}
            mlp = dataclasses.replace(self.mixture(shared=mlp.hidden, **router), branch_norms=norm)
        return BlockConfig(
            mixer=attention,
            mlp=mlp,
            norm=norm,
            norms="sandwich",
            mlp_norm=not self.sparse,
            layer_input=LayerInputGateConfig(width=width, activation=self.activation)
            if width
            else None,
            stream_scale=True,
        )
