"""OLMoE."""

from typing import Literal

from ziggurat.core import config
from ziggurat.models.families.mixture_fields import MixtureFields
from ziggurat.nn.attention_context import AttentionRule
from ziggurat.nn.block import BlockConfig, LayerConfig
from ziggurat.nn.decoder import DecoderConfig
from ziggurat.nn.norm import NormConfig


@config.node
class OlmoeConfig(MixtureFields):
    """Mixtures of many small experts in every layer, and norms over all heads of queries and of
    keys together.

    Paper: Muennighoff et al. 2024, https://arxiv.org/abs/2409.02060.
    """

    kind: Literal["olmoe"] = "olmoe"
    n_experts: int = 64
    """Experts of each layer."""
    d_ff_expert: int = 1024
    """Feed-forward width of one expert."""
    normalise_weights: bool = False
    """The weights of the chosen experts sum to one."""
    attention_bias: bool = False
    """Biases on query, key, value and output projections."""
    norm_eps: float = 1e-5
    """Added to the mean square in norms."""

    def __post_init__(self):
        super().__post_init__()
        config.require(self.d_ff is None, "d_ff", self.d_ff, "none, as no layer is dense")

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        norm, bias = NormConfig(eps=self.norm_eps), self.attention_bias
        attention = self.attention(bias=bias, out_bias=bias, width_norm=norm)
        mixture = self.mixture(normalise=self.normalise_weights)
        layer = LayerConfig(
            block=BlockConfig(mixer=attention, mlp=mixture, norm=norm),
            rule=AttentionRule(self.channels_per_head**-0.5),
            rope=self.rope,
        )
        return DecoderConfig(
            vocab_size=self.vocab_size,
            d_model=self.d_model,
            layers=(layer,) * self.n_layers,
            norm=norm,
            tie_embeddings=self.tie_embeddings,
            init_std=self.init_std,
        )
