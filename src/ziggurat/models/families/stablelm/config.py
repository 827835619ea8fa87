"""StableLM."""

from typing import Literal

from ziggurat.core import config
from ziggurat.models.families.decoder_fields import PartialRotaryFields
from ziggurat.nn.block import BlockConfig
from ziggurat.nn.decoder import DecoderConfig
from ziggurat.nn.norm import NormConfig


@config.node
class StableLmConfig(PartialRotaryFields):
    """A Llama-like decoder with LayerNorm, a part of whose channels rotate.

    Paper: Bellagente et al. 2024, https://arxiv.org/abs/2402.17834.
    """

    kind: Literal["stablelm"] = "stablelm"
    partial_rotary_factor: float = 0.25
    """Share of a head's channels that rotate, the first ones."""
    attention_bias: bool = False
    """Biases on query, key and value projections."""
    head_norm: bool = False
    """A norm over each head of queries and keys, with a scale of its own for each."""
    parallel: bool = False
    """Attention and feed-forward part read one norm, in parallel."""
    norm_eps: float = 1e-5
    """Added to the variance in norms."""

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        norm = NormConfig(kind="layer", eps=self.norm_eps)
        of_heads = NormConfig(kind="layer", eps=self.norm_eps, bias=False)
        switches = {"head_norm": of_heads, "norm_each_head": True} if self.head_norm else {}
        block = BlockConfig(
            mixer=self.attention(bias=self.attention_bias, rotary_dim=self.rotary_dim, **switches),
            mlp=self.mlp(),
            norm=norm,
            parallel=self.parallel,
            shared_norm=self.parallel,
        )
        return self.decoder_of(self.alike(block))
