"""Ernie 4.5, dense and with mixtures of experts."""

import dataclasses
from typing import Literal

from ziggurat.core import config
from ziggurat.models.families.decoder_fields import DecoderFields
from ziggurat.models.families.mixture_fields import MixtureFields
from ziggurat.nn.attention_context import AttentionRule
from ziggurat.nn.block import BlockConfig, LayerConfig, MlpConfig
from ziggurat.nn.decoder import DecoderConfig
from ziggurat.nn.norm import NormConfig
from ziggurat.nn.rope import RopeConfig


@config.node
class ErnieFields(DecoderFields):
    """Config fields of all Ernie 4.5 models."""

    rope: RopeConfig = dataclasses.field(default_factory=lambda: RopeConfig(theta=5e5))
    """Rotary position embedding."""
    norm_eps: float = 1e-5
    """Added to the mean square in norms."""

    def mlp_of(self, layer: int) -> MlpConfig:
        """Feed-forward part of a layer (from 0)."""
        return self.mlp()

    def _decoder(self, bias: bool = False) -> DecoderConfig:
        norm = NormConfig(eps=self.norm_eps)
        attention = self.attention(bias=bias, out_bias=bias)
        rule = AttentionRule(self.channels_per_head**-0.5)
        layers = tuple(
            LayerConfig(
                block=BlockConfig(mixer=attention, mlp=self.mlp_of(number), norm=norm),
                rule=rule,
                rope=self.rope,
            )
            for number in range(self.n_layers)
        )
        return DecoderConfig(
            vocab_size=self.vocab_size,
            d_model=self.d_model,
            layers=layers,
            norm=norm,
            tie_embeddings=self.tie_embeddings,
            init_std=self.init_std,
        )


@config.node
class Ernie45Config(ErnieFields):
    """Ernie 4.5, dense: a Llama-like decoder.

    Source: Baidu 2025, https://huggingface.co/baidu/ERNIE-4.5-0.3B-PT.
    """

    kind: Literal["ernie4_5"] = "ernie4_5"
    bias: bool = False
    """Biases on the projections of all blocks."""

    def mlp_of(self, layer: int) -> MlpConfig:
        """Feed-forward part of a layer (from 0)."""
        return self.mlp(bias=self.bias)

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        return self._decoder(self.bias)


@config.node
class Ernie45MoeConfig(ErnieFields, MixtureFields):
    """Ernie 4.5 with mixtures of experts: a softmax router with a correction, and shared experts.

    Source: Baidu 2025, https://huggingface.co/baidu/ERNIE-4.5-21B-A3B-PT.
    """

    kind: Literal["ernie4_5_moe"] = "ernie4_5_moe"
    n_shared_experts: int = 2
    """Experts that every token goes through, as one block of that many times ``d_ff_expert``."""
    first_sparse: int = 1
    """First layer (from 0) that may be sparse."""
    last_sparse: int | None = None
    """Last layer that may be sparse; default the last of all."""
    sparse_every: int = 1
    """Every so many layers one is sparse: layer ``i`` (from 0) where ``i + 1`` is a multiple."""
    least_sum: float = 1e-12
    """Scores of the chosen experts are divided by no less than this."""

    def __post_init__(self):
        super().__post_init__()
        for name, least in (("n_shared_experts", 0), ("first_sparse", 0), ("sparse_every", 1)):
            value = getattr(self, name)
            config.require(value >= least, name, value, f"a number >= {least}")
        config.require(self.least_sum >= 0, "least_sum", self.least_sum, "a number >= 0")

    def mlp_of(self, layer: int) -> MlpConfig:
        """Feed-forward part of a layer (from 0)."""
        last = self.n_layers - 1 if self.last_sparse is None else self.last_sparse
        if not self.first_sparse <= layer <= last or (layer + 1) % self.sparse_every:
            return self.mlp()
        width = self.d_ff_expert * self.n_shared_experts
        return self.mixture(shared=width or None, correction=True, least_sum=self.least_sum)

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        return self._decoder()
