"""Layers in Flax NNX.

Linear, norm, rope, attention with an attention-context argument, gated MLP, embeddings, and the
scanned decoder made of them; convolutions, the diffusion transformer and the autoencoder of its
latents; with logical axis names on every parameter.
"""

from ziggurat.nn.attention import Attention, GroupedAttentionConfig
from ziggurat.nn.attention_context import (
    AttentionContext,
    AttentionRule,
    Bidirectional,
    Cached,
    Causal,
    Packed,
)
from ziggurat.nn.block import Block, BlockConfig, LayerConfig
from ziggurat.nn.convolution import Convolution, GroupNorm, ResidualBlock
from ziggurat.nn.decoder import Decoder, DecoderConfig
from ziggurat.nn.diffusion_transformer import DiffusionTransformer, DiffusionTransformerConfig
from ziggurat.nn.encoder import Encoder, EncoderConfig
from ziggurat.nn.gated_delta_net import GatedDeltaNet, GatedDeltaNetConfig
from ziggurat.nn.image_autoencoder import ImageAutoencoder, ImageAutoencoderConfig
from ziggurat.nn.latent_attention import LatentAttention, LatentAttentionConfig
from ziggurat.nn.layer_state import KeyValueSpec, RecurrentSpec, StateSpec
from ziggurat.nn.linear import Embedding, Linear
from ziggurat.nn.mamba2 import Mamba2, Mamba2Config
from ziggurat.nn.mlp import GatedMLP, GatedMlpConfig, PlainMLP, PlainMlpConfig
from ziggurat.nn.moe import MixtureOfExperts, MixtureOfExpertsConfig
from ziggurat.nn.multimodal import MultimodalInputs
from ziggurat.nn.norm import LayerNorm, NormConfig, RMSNorm
from ziggurat.nn.precision import Precision
from ziggurat.nn.rope import RopeConfig
from ziggurat.nn.router import RouterConfig, Routing
from ziggurat.nn.short_convolution import ShortConvolution, ShortConvolutionConfig

__all__ = [
    "Attention",
    "AttentionContext",
    "AttentionRule",
    "Bidirectional",
    "Block",
    "BlockConfig",
    "Cached",
    "Causal",
    "Convolution",
    "Decoder",
    "DecoderConfig",
    "DiffusionTransformer",
    "DiffusionTransformerConfig",
    "Embedding",
    "Encoder",
    "EncoderConfig",
    "GatedDeltaNet",
    "GatedDeltaNetConfig",
    "GatedMLP",
    "GatedMlpConfig",
    "GroupNorm",
    "GroupedAttentionConfig",
    "ImageAutoencoder",
    "ImageAutoencoderConfig",
    "KeyValueSpec",
    "LatentAttention",
    "LatentAttentionConfig",
    "LayerConfig",
    "LayerNorm",
    "Linear",
    "Mamba2",
    "Mamba2Config",
    "MixtureOfExperts",
    "MixtureOfExpertsConfig",
    "MultimodalInputs",
    "NormConfig",
    "Packed",
    "PlainMLP",
    "PlainMlpConfig",
    "Precision",
    "RMSNorm",
    "RecurrentSpec",
    "ResidualBlock",
    "RopeConfig",
    "RouterConfig",
    "Routing",
    "ShortConvolution",
    "ShortConvolutionConfig",
    "StateSpec",
]
