"""Hunyuan V1 with mixtures of experts."""

from typing import Literal

from ziggurat.core import config
from ziggurat.models.families.decoder_fields import DecoderFields
from ziggurat.nn.block import BlockConfig
from ziggurat.nn.decoder import DecoderConfig
from ziggurat.nn.moe import MixtureOfExpertsConfig
from ziggurat.nn.norm import NormConfig
from ziggurat.nn.router import RouterConfig


@config.node
class HunyuanMoeConfig(DecoderFields):
    """A decoder with norms over heads behind the rotation, and in every layer a mixture of experts
    with one shared expert, all ``d_ff`` wide.

    Source: Tencent 2025, https://huggingface.co/tencent/Hunyuan-A13B-Instruct.
    """

    kind: Literal["hunyuan_moe"] = "hunyuan_moe"
    n_experts: int = 64
    """Experts of each layer."""
    experts_per_token: int = 8
    """Experts each token is sent to."""
    attention_bias: bool = False
    """Biases on query, key, value and output projections."""
    norm_eps: float = 1e-5
    """Added to the mean square in norms."""

    def __post_init__(self):
        super().__post_init__()
        fits = 1 <= self.experts_per_token <= self.n_experts
        expected = f"1 to n_experts = {self.n_experts}"
        config.require(fits, "experts_per_token", self.experts_per_token, expected)

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        norm, bias, shared = NormConfig(eps=self.norm_eps), self.attention_bias, self.mlp()
        attention = self.attention(bias=bias, out_bias=bias, head_norm=norm, norm_rotated=True)
        mixture = MixtureOfExpertsConfig(
            router=RouterConfig(experts=self.n_experts, chosen=self.experts_per_token),
            hidden=shared.hidden,
            activation=self.activation,
            shared=shared,
        )
        return self.decoder_of(self.alike(BlockConfig(mixer=attention, mlp=mixture, norm=norm)))
