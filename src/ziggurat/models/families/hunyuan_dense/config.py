"""Hunyuan (dense)."""

from typing import Literal

from ziggurat.core import config
from ziggurat.models.families.decoder_fields import DecoderFields
from ziggurat.nn.block import BlockConfig
from ziggurat.nn.decoder import DecoderConfig
from ziggurat.nn.norm import NormConfig


@config.node
class HunyuanDenseConfig(DecoderFields):
    """A Llama-like decoder with norms over heads behind the rotation.

    Paper: Tencent Hunyuan 2025, https://github.com/Tencent-Hunyuan/Hunyuan-7B.
    """

    kind: Literal["hunyuan_dense"] = "hunyuan_dense"
    attention_bias: bool = False
    """Biases on query, key, value and output projections."""
    norm_eps: float = 1e-5
    """Added to the mean square in norms."""

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        norm, bias = NormConfig(eps=self.norm_eps), self.attention_bias
        attention = self.attention(bias=bias, out_bias=bias, head_norm=norm, norm_rotated=True)
        block = BlockConfig(mixer=attention, mlp=self.mlp(), norm=norm)
        return self.decoder_of(self.alike(block))
