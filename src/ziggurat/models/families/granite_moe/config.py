"""Granite 3 with mixtures of experts."""

from typing import Literal

from ziggurat.core import config
from ziggurat.models.families.decoder_fields import DecoderFields
from ziggurat.nn.attention_context import AttentionRule
from ziggurat.nn.block import BlockConfig, LayerConfig
from ziggurat.nn.decoder import DecoderConfig
from ziggurat.nn.moe import MixtureOfExpertsConfig
from ziggurat.nn.norm import NormConfig
from ziggurat.nn.router import RouterConfig


@config.node
class GraniteMoeConfig(DecoderFields):
    """A Llama-like decoder with mixtures of experts, and multipliers on embeddings, residuals,
    scores and logits.

    Source: IBM 2024, https://huggingface.co/ibm-granite/granite-3.1-3b-a800m-instruct.
    """

    kind: Literal["granitemoe"] = "granitemoe"
    n_experts: int = 8
    """Experts of each layer; ``d_ff`` is the width of one."""
    experts_per_token: int = 2
    """Experts each token is sent to."""
    attention_bias: bool = False
    """Biases on query, key, value and output projections."""
    embedding_multiplier: float = 1.0
    """Multiplies the embeddings."""
    residual_multiplier: float = 1.0
    """Multiplies what a branch of a block adds to the stream."""
    attention_multiplier: float = 1.0
    """Multiplies the attention scores, in place of the root of a head's channels."""
    logits_scaling: float = 1.0
    """Divides the logits."""

    def __post_init__(self):
        super().__post_init__()
        fits = 1 <= self.experts_per_token <= self.n_experts
        expected = f"1 to n_experts = {self.n_experts}"
        config.require(fits, "experts_per_token", self.experts_per_token, expected)
        config.require(self.logits_scaling != 0, "logits_scaling", self.logits_scaling, "not 0")

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        norm, dense, bias = NormConfig(eps=self.norm_eps), self.mlp(), self.attention_bias
        mixture = MixtureOfExpertsConfig(
            router=RouterConfig(experts=self.n_experts, chosen=self.experts_per_token),
            hidden=dense.hidden,
            activation=dense.activation,
        )
        block = BlockConfig(
            mixer=self.attention(bias=bias, out_bias=bias),
            mlp=mixture,
            norm=norm,
            residual_scale=self.residual_multiplier,
        )
        rule = AttentionRule(self.attention_multiplier)
        return DecoderConfig(
            vocab_size=self.vocab_size,
            d_model=self.d_model,
            layers=(LayerConfig(block=block, rule=rule, rope=self.rope),) * self.n_layers,
            norm=norm,
            tie_embeddings=self.tie_embeddings,
            init_std=self.init_std,
            embedding_scale=self.embedding_multiplier,
            logit_scale=1 / self.logits_scaling,
        )
