"""Falcon."""

from typing import Literal

from ziggurat.core import config
from ziggurat.models.families.decoder_fields import DecoderFields
from ziggurat.nn.block import BlockConfig
from ziggurat.nn.decoder import DecoderConfig
from ziggurat.nn.mlp import Activation
from ziggurat.nn.norm import NormConfig


@config.node
class FalconConfig(DecoderFields):
    """A decoder with LayerNorm and an MLP without a gate, whose branches may be parallel.

    Paper: Almazrouei et al. 2023, https://arxiv.org/abs/2311.16867.
    """

    kind: Literal["falcon"] = "falcon"
    n_kv_heads: int = 1
    """Key/value heads; one is multi-query attention."""
    activation: Activation = "gelu"
    """Function between the two matmuls of the feed-forward block."""
    parallel: bool = True
    """Attention and feed-forward part both read the block's input."""
    shared_norm: bool = True
    """Parallel branches read one norm; where false, a norm each (Falcon-40B)."""
    bias: bool = False
    """Biases on all projections."""
    norm_eps: float = 1e-5
    """Added to the variance in norms."""

    def __post_init__(self):
        super().__post_init__()
        shared = self.shared_norm
        config.require(
            self.parallel or not shared, "shared_norm", shared, "false where parallel is false"
        )

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        block = BlockConfig(
            mixer=self.attention(bias=self.bias, out_bias=self.bias),
            mlp=self.plain_mlp(self.bias),
            norm=NormConfig(kind="layer", eps=self.norm_eps),
            parallel=self.parallel,
            shared_norm=self.shared_norm,
        )
        return self.decoder_of(self.alike(block))
