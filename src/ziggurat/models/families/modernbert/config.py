"""ModernBERT: windows in most layers, rotary positions, gates, and norms before each half."""

import dataclasses
from typing import Literal

from ziggurat.core import config
from ziggurat.models.families.decoder_fields import Reach, reach_of_layers
from ziggurat.models.families.encoder_fields import TextEncoderFields
from ziggurat.nn.block import BlockConfig, LayerConfig
from ziggurat.nn.encoder import EncoderConfig
from ziggurat.nn.encoder_heads import TransformConfig
from ziggurat.nn.encoder_inputs import TokenInputConfig
from ziggurat.nn.mlp import Activation, GatedMlpConfig
from ziggurat.nn.pooling import StatePoolerConfig
from ziggurat.nn.rope import RopeConfig


@config.node
class ModernBertConfig(TextEncoderFields):
    """An encoder whose layers see all tokens in turn with windows of them.

    Paper: Warner et al. 2024, https://arxiv.org/abs/2412.13663.
    """

    kind: Literal["modernbert"] = "modernbert"
    activation: Activation = "gelu"
    """Gate function."""
    norm_eps: float = 1e-5
    """Added to the variance in norms."""
    max_sequence_length: int = 8192
    """Longest sequence in tokens that serving allows."""
    window: int = 64
    """Tokens seen to each side by local layers."""
    pattern: tuple[Reach, ...] = ("global", "local", "local")
    """Whether layers see all tokens or a window, repeated to the number of layers."""
    rope: RopeConfig = dataclasses.field(default_factory=lambda: RopeConfig(theta=160000.0))
    """Rotary position embedding of global layers."""
    local_rope: RopeConfig = dataclasses.field(default_factory=RopeConfig)
    """Rotary position embedding of local layers."""
    attention_bias: bool = False
    """Biases in attention."""
    mlp_bias: bool = False
    """Biases in feed-forward parts."""
    norm_bias: bool = False
    """Biases in norms."""
    head_bias: bool = False
    """A bias on the dense layer of a head."""
    head_activation: Activation = "gelu"
    """Function behind it."""
    head_pooling: Literal["first", "mean"] = "first"
    """States that a head of texts reads."""
    logit_bias: bool = True
    """A bias on logits of token ids."""

    def __post_init__(self):
        TextEncoderFields.__post_init__(self)
        config.require(self.window >= 0, "window", self.window, "a number >= 0")
        config.require(len(self.pattern) >= 1, "pattern", list(self.pattern), "global and local")
        dim = self.d_model // self.n_heads
        config.require(dim % 2 == 0, "n_heads", self.n_heads, "heads of an even number of channels")

    @property
    def reaches(self) -> tuple[Reach, ...]:
        """Whether each layer sees all tokens or a window."""
        return reach_of_layers(self.pattern, self.n_layers)

    def encoder(self) -> EncoderConfig:
        """The encoder this config stands for."""
        norm, bias = self.norm(bias=self.norm_bias), self.attention_bias
        block = BlockConfig(
            mixer=self.attention(bias=bias, out_bias=bias),
            mlp=GatedMlpConfig(
                hidden=self.feed_forward, activation=self.activation, bias=self.mlp_bias
            ),
            norm=norm,
        )
        local = dataclasses.replace(self.rule, window=self.window + 1)
        layers = [
            LayerConfig(block=block, rule=self.rule, rope=self.rope)
            if reach == "global"
            else LayerConfig(block=block, rule=local, rope=self.local_rope)
            for reach in self.reaches
        ]
        first = dataclasses.replace(block, mixer_norm=False)
        layers[0] = dataclasses.replace(layers[0], block=first)
        transform = TransformConfig(activation=self.head_activation, bias=self.head_bias, norm=norm)
        return EncoderConfig(
            d_model=self.d_model,
            input=TokenInputConfig(vocab_size=self.vocab_size, norm=norm),
            layers=tuple(layers),
            final_norm=norm,
            pooler=(
                StatePoolerConfig(pooling=self.head_pooling) if self.head == "sequence" else None
            ),
            head=self.head_config(
                sequence=transform, token=transform, masked=transform, bias=self.logit_bias
            ),
            init_std=self.init_std,
        )
