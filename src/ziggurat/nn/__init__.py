"""Layers in Flax NNX.

Linear, norm, rope, attention with an attention-context argument, gated MLP, embeddings, and the
scanned decoder made of them, with logical axis names on every parameter.
"""

from ziggurat.nn.attention import Attention
from ziggurat.nn.attention_context import AttentionContext, AttentionRule, Cached, Causal, Packed
from ziggurat.nn.decoder import Block, Decoder, DecoderConfig
from ziggurat.nn.linear import Embedding, Linear
from ziggurat.nn.mlp import GatedMLP
from ziggurat.nn.norm import RMSNorm
from ziggurat.nn.precision import Precision
from ziggurat.nn.rope import RopeConfig

__all__ = [
    "Attention",
    "AttentionContext",
    "AttentionRule",
    "Block",
    "Cached",
    "Causal",
    "Decoder",
    "DecoderConfig",
    "Embedding",
    "GatedMLP",
    "Linear",
    "Packed",
    "Precision",
    "RMSNorm",
    "RopeConfig",
]
