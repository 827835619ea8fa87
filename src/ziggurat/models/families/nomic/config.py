"""Nomic's encoder: BERT with rotary positions and gated feed-forward parts."""

import dataclasses
from typing import Literal

from ziggurat.core import config
from ziggurat.models.families.encoder_fields import TextEncoderFields
from ziggurat.nn.attention_context import AttentionRule
from ziggurat.nn.block import BlockConfig, LayerConfig
from ziggurat.nn.encoder import EncoderConfig
from ziggurat.nn.encoder_heads import TransformConfig
from ziggurat.nn.encoder_inputs import TokenInputConfig
from ziggurat.nn.mlp import Activation, GatedMlpConfig
from ziggurat.nn.pooling import StatePoolerConfig
from ziggurat.nn.rope import RopeConfig


@config.node
class NomicConfig(TextEncoderFields):
    """An encoder with rotary positions, token types, gates, and norms after each half of a block.

    Paper: Nussbaum et al. 2024, https://arxiv.org/abs/2402.01613.
    """

    kind: Literal["nomic"] = "nomic"
    activation: Activation = "silu"
    """Gate function."""
    max_sequence_length: int = 2048
    """Longest sequence in tokens that serving allows."""
    head_dim: int | None = None
    """Channels of one head; default ``d_model / n_heads``."""
    token_types: int = 2
    """Kinds of token, which tell a first text from a second."""
    rope: RopeConfig = dataclasses.field(default_factory=lambda: RopeConfig(theta=1000.0))
    """Rotary position embedding."""
    pooler: bool = False
    """A layer over the first token's state."""

    def __post_init__(self):
        TextEncoderFields.__post_init__(self)
        config.require(self.token_types >= 1, "token_types", self.token_types, "a number >= 1")
        dim = self.channels_per_head
        config.require(dim >= 2 and dim % 2 == 0, "head_dim", dim, "an even number")
        reads = self.head != "sequence" or self.pooler
        config.require(reads, "pooler", self.pooler, "true: the head of texts reads it")

    @property
    def channels_per_head(self) -> int:
        """Channels of one head: ``head_dim``, by default ``d_model`` over ``n_heads``."""
        return self.d_model // self.n_heads if self.head_dim is None else self.head_dim

    def encoder(self) -> EncoderConfig:
        """The encoder this config stands for."""
        attention = self.attention(bias=False, out_bias=False)
        block = BlockConfig(
            mixer=dataclasses.replace(attention, head_dim=self.channels_per_head),
            mlp=GatedMlpConfig(hidden=self.feed_forward, activation=self.activation),
            norm=self.norm(),
            norms="post",
        )
        rule = AttentionRule(self.channels_per_head**-0.5)
        pooler = StatePoolerConfig(dense=self.d_model, activation="tanh")
        return EncoderConfig(
            d_model=self.d_model,
            input=TokenInputConfig(
                vocab_size=self.vocab_size, token_types=self.token_types, norm=self.norm()
            ),
            layers=(LayerConfig(block=block, rule=rule, rope=self.rope),) * self.n_layers,
            pooler=pooler if self.pooler else None,
            head=self.head_config(
                masked=TransformConfig(activation=self.activation, norm=self.norm())
            ),
            init_std=self.init_std,
        )
