"""The Llama family: Llama 2 and 3.x, SmolLM2, Mistral (dense)."""

from typing import Literal

from ziggurat.core import config
from ziggurat.models.families.decoder_fields import DecoderFields
from ziggurat.nn.attention_context import AttentionRule
from ziggurat.nn.block import BlockConfig, LayerConfig, MixerConfig
from ziggurat.nn.decoder import DecoderConfig
from ziggurat.nn.layer_state import KeyValueSpec
from ziggurat.nn.mixers import MixerChoice
from ziggurat.nn.norm import NormConfig


@config.node
class LlamaConfig(DecoderFields):
    """A pre-norm decoder with RMSNorm, rotary positions, grouped keys and a gated MLP.

    Paper: Touvron et al. 2023, https://arxiv.org/abs/2307.09288; sliding window: Jiang et al. 2023,
    https://arxiv.org/abs/2310.06825.
    """

    kind: Literal["llama"] = "llama"
    window: int | None = None
    """Sliding attention window in tokens; default none."""
    attention_bias: bool = False
    """Biases on query, key, value and output projections."""
    mlp_bias: bool = False
    """Biases in the feed-forward block."""
    norm_eps: float = 1e-5
    """Added to the mean square in norms."""
    mixer: MixerChoice | None = None
    """Mixer of positions in place of attention; such a model has no form of Hugging Face's."""

    def __post_init__(self):
        super().__post_init__()
        window = self.window
        config.require(window is None or window >= 1, "window", window, "a number >= 1")
        keeps_all = isinstance(self._mixer().state, KeyValueSpec)
        config.require(window is None or keeps_all, "window", window, "none with this mixer")

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        norm = NormConfig(eps=self.norm_eps)
        mixer = self._mixer()
        block = BlockConfig(
            mixer=mixer,
            mlp=self.mlp(self.mlp_bias),
            norm=norm,
        )
        rule = AttentionRule(self.channels_per_head**-0.5, window=self.window)
        layer = LayerConfig(block=block, rule=rule, rope=self.rope if mixer.rope_dim else None)
        return DecoderConfig(
            vocab_size=self.vocab_size,
            d_model=self.d_model,
            layers=(layer,) * self.n_layers,
            norm=norm,
            tie_embeddings=self.tie_embeddings,
            init_std=self.init_std,
        )

    def _mixer(self) -> MixerConfig:
        attention = self.attention(bias=self.attention_bias, out_bias=self.attention_bias)
        return attention if self.mixer is None else self.mixer.mixer(attention)
