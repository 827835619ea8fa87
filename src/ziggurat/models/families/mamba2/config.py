"""Mamba-2."""

from typing import Literal

from ziggurat.core import config
from ziggurat.models.families.mamba_fields import MambaFields
from ziggurat.nn.attention_context import AttentionRule
from ziggurat.nn.block import BlockConfig, LayerConfig
from ziggurat.nn.decoder import DecoderConfig
from ziggurat.nn.norm import NormConfig


@config.node
class Mamba2ModelConfig(MambaFields):
    """A stack of Mamba-2 layers, without attention or feed-forward blocks.

    Paper: Dao and Gu 2024, https://arxiv.org/abs/2405.21060.
    """

    kind: Literal["mamba2"] = "mamba2"
    vocab_size: int
    """Vocabulary entries."""
    d_model: int
    """Model width."""
    n_layers: int
    """Layers."""
    max_sequence_length: int = 1 << 20
    """Longest sequence in tokens that serving allows; the state is as large for any."""
    tie_embeddings: bool = False
    """One matrix for input embedding and output head."""
    norm_eps: float = 1e-5
    """Added to the mean square in norms."""
    init_std: float = 0.1
    """Standard deviation of initial weights."""

    def __post_init__(self):
        for name in ("vocab_size", "d_model", "n_layers", "max_sequence_length"):
            config.require(getattr(self, name) >= 1, name, getattr(self, name), "a number >= 1")
        self.require_mamba(self.d_model)
        fits = self.heads_of(self.d_model) * self.mamba_head_dim % self.d_model == 0
        config.require(fits, "mamba_heads", self.mamba_heads, "heads of a multiple of d_model")

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        norm = NormConfig(eps=self.norm_eps)
        mixer = self.mamba(self.d_model, self.norm_eps)
        block = BlockConfig(mixer=mixer, mlp=None, norm=norm)
        layer = LayerConfig(block=block, rule=AttentionRule(1.0), rope=None)
        return DecoderConfig(
            vocab_size=self.vocab_size,
            d_model=self.d_model,
            layers=(layer,) * self.n_layers,
            norm=norm,
            tie_embeddings=self.tie_embeddings,
            init_std=self.init_std,
        )
