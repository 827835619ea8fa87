"""Granite 4, hybrid or of attention alone, dense or with mixtures of experts."""

from typing import Literal

from ziggurat.core import config
from ziggurat.models.families.decoder_fields import DecoderFields
from ziggurat.models.families.mamba_fields import MambaFields
from ziggurat.nn.attention_context import AttentionRule
from ziggurat.nn.block import BlockConfig, LayerConfig, MlpConfig
from ziggurat.nn.decoder import DecoderConfig
from ziggurat.nn.moe import MixtureOfExpertsConfig
from ziggurat.nn.norm import NormConfig
from ziggurat.nn.router import RouterConfig


@config.node
class GraniteHybridConfig(MambaFields, DecoderFields):
    """Mamba-2 layers, with grouped attention in a few; ``d_ff`` is the width of the feed-forward
    block that every token goes through.

    Release: IBM 2025, https://www.ibm.com/granite/docs/models/granite.
    """

    kind: Literal["granite_hybrid"] = "granite_hybrid"
    attention_layers: tuple[int, ...]
    """Layers (from 0) with attention; the others are Mamba-2."""
    rotary: bool = False
    """Whether queries and keys rotate; without, attention knows no positions."""
    attention_bias: bool = False
    """Biases on query, key, value and output projections."""
    n_experts: int = 0
    """Experts of each layer beside the block that every token goes through; 0: none."""
    experts_per_token: int = 2
    """Experts each token is sent to."""
    d_ff_expert: int = 512
    """Feed-forward width of one expert."""
    embedding_scale: float = 1.0
    """Multiplies the embeddings."""
    attention_scale: float = 1.0
    """Multiplies the scores of attention."""
    residual_scale: float = 1.0
    """Multiplies what each branch adds to the stream."""
    logit_divisor: float = 1.0
    """Divides the logits."""

    def __post_init__(self):
        super().__post_init__()
        self.require_mamba(self.d_model)
        same = self.mamba_activation == self.activation
        config.require(same, "mamba_activation", self.mamba_activation, "that of activation")
        channels = self.heads_of(self.d_model) * self.mamba_head_dim
        fits = channels % self.d_model == 0
        config.require(fits, "mamba_heads", self.mamba_heads, "heads of a multiple of d_model")
        fits = all(0 <= layer < self.n_layers for layer in self.attention_layers)
        expected = f"numbers of layers, 0 to {self.n_layers - 1}"
        config.require(fits, "attention_layers", list(self.attention_layers), expected)
        fits = self.n_experts == 0 or 1 <= self.experts_per_token <= self.n_experts
        expected = f"1 to n_experts = {self.n_experts}"
        config.require(fits, "experts_per_token", self.experts_per_token, expected)
        config.require(self.n_experts >= 0, "n_experts", self.n_experts, "a number >= 0")
        config.require(self.d_ff_expert >= 1, "d_ff_expert", self.d_ff_expert, "a number >= 1")
        config.require(self.logit_divisor > 0, "logit_divisor", self.logit_divisor, "above 0")

    def feed_forward(self) -> MlpConfig:
        """Feed-forward part of every layer."""
        if self.n_experts == 0:
            return self.mlp()
        router = RouterConfig(experts=self.n_experts, chosen=self.experts_per_token)
        return MixtureOfExpertsConfig(
            router=router,
            hidden=self.d_ff_expert,
            activation=self.activation,
            shared=self.mlp(),
        )

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        norm, bias = NormConfig(eps=self.norm_eps), self.attention_bias
        attention = self.attention(bias=bias, out_bias=bias)
        mamba = self.mamba(self.d_model, self.norm_eps)
        rule = AttentionRule(self.attention_scale)

        def layer(number: int) -> LayerConfig:
            attends = number in self.attention_layers
            block = BlockConfig(
                mixer=attention if attends else mamba,
                mlp=self.feed_forward(),
                norm=norm,
                residual_scale=self.residual_scale,
            )
            turns = attends and self.rotary
            return LayerConfig(block=block, rule=rule, rope=self.rope if turns else None)

        return DecoderConfig(
            vocab_size=self.vocab_size,
            d_model=self.d_model,
            layers=tuple(map(layer, range(self.n_layers))),
            norm=norm,
            tie_embeddings=self.tie_embeddings,
            init_std=self.init_std,
            embedding_scale=self.embedding_scale,
            logit_scale=1 / self.logit_divisor,
        )
