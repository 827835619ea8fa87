"""GLM-4.5 to 4.7, dots.llm1 and Solar Open: grouped attention with DeepSeek-V3's mixtures."""

from typing import Literal

from ziggurat.core import config
from ziggurat.models.families.decoder_fields import Reach, reach_of_layers
from ziggurat.models.families.mixture_fields import GroupRoutedFields
from ziggurat.nn.attention import GroupedAttentionConfig
from ziggurat.nn.attention_context import AttentionRule
from ziggurat.nn.block import BlockConfig, LayerConfig
from ziggurat.nn.decoder import DecoderConfig
from ziggurat.nn.norm import NormConfig


@config.node
class GlmMoeFields(GroupRoutedFields):
    """Config fields that these families share."""

    attention_bias: bool = False
    """Biases on the projections of attention; on the output only in dots.llm1."""

    def _decoder(
        self, attention: GroupedAttentionConfig, windows: tuple[int | None, ...]
    ) -> DecoderConfig:
        norm, scale = NormConfig(eps=self.norm_eps), self.channels_per_head**-0.5
        layers = tuple(
            LayerConfig(
                block=BlockConfig(mixer=attention, mlp=self.mlp_of(number), norm=norm),
                rule=AttentionRule(scale, window=window),
                rope=self.rope,
            )
            for number, window in enumerate(windows)
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
class Glm4MoeConfig(GlmMoeFields):
    """GLM-4.5, 4.6 and 4.7.

    Paper: GLM-4.5 team 2025, https://arxiv.org/abs/2508.06471.
    """

    kind: Literal["glm4_moe"] = "glm4_moe"
    rotary_dim: int | None = None
    """First channels of a head that rotate; default all."""
    head_norms: bool = False
    """A norm over each head of queries and keys (GLM-4.5, not GLM-4.5-Air)."""
    n_dense_layers: int = 1
    """Layers at the beginning that are dense."""

    def __post_init__(self):
        super().__post_init__()
        dim, most = self.rotary_dim, self.channels_per_head
        fits = dim is None or (dim % 2 == 0 and 2 <= dim <= most)
        config.require(fits, "rotary_dim", dim, f"an even number, 2 to {most}")

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        attention = self.attention(
            bias=self.attention_bias,
            head_norm=NormConfig(eps=self.norm_eps) if self.head_norms else None,
            rotary_dim=self.rotary_dim,
        )
        return self._decoder(attention, (None,) * self.n_layers)


@config.node
class Dots1Config(GlmMoeFields):
    """Dots.llm1: with norms over each head of queries and keys, and windows in some layers.

    Paper: rednote-hilab 2025, https://arxiv.org/abs/2506.05767.
    """

    kind: Literal["dots1"] = "dots1"
    window: int | None = None
    """Tokens that local layers see; default none, which no layer may need then."""
    pattern: tuple[Reach, ...] = ("global",)
    """Which layers see all (global) and which a window (local), repeated from the first on."""

    def __post_init__(self):
        super().__post_init__()
        config.require(len(self.pattern) >= 1, "pattern", self.pattern, "at least one entry")
        needed = "local" in reach_of_layers(self.pattern, self.n_layers)
        fits = self.window is None if not needed else (self.window or 0) >= 1
        expected = "a number >= 1 if layers are local, otherwise none"
        config.require(fits, "window", self.window, expected)

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        norm, bias = NormConfig(eps=self.norm_eps), self.attention_bias
        attention = self.attention(bias=bias, out_bias=bias, head_norm=norm)
        reaches = reach_of_layers(self.pattern, self.n_layers)
        windows = tuple(self.window if reach == "local" else None for reach in reaches)
        return self._decoder(attention, windows)


@config.node
class SolarOpenConfig(GlmMoeFields):
    """Solar Open: experts in every layer.

    Source: Upstage 2026, https://huggingface.co/upstage/Solar-Open-100B.
    """

    kind: Literal["solar_open"] = "solar_open"

    def __post_init__(self):
        super().__post_init__()
        fits = self.n_dense_layers == 0
        config.require(fits, "n_dense_layers", self.n_dense_layers, "0, as all layers are sparse")
        config.require(self.d_ff is None, "d_ff", self.d_ff, "none, as no layer is dense")

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        return self._decoder(self.attention(bias=self.attention_bias), (None,) * self.n_layers)
