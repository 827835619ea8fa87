"""MiniMax-M2 in Hugging Face's ``config.json`` and safetensors."""

from collections.abc import Mapping
from typing import Any

from ziggurat.models.conversion import block_names
from ziggurat.models.conversion.hf_config import HFConfig, checked
from ziggurat.models.conversion.rotary_settings import (
    hf_rope,
    partial_rotary_factor,
    read_rotary_dim,
)
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.decoder_fields import read_fields, read_rotary, write_fields
from ziggurat.models.families.minimax.config import MiniMaxM2Config
from ziggurat.models.families.mixture_fields import feed_forward_names
from ziggurat.nn.attention import GroupedAttentionConfig

MIXTURE = {
    "n_experts": "num_local_experts",
    "experts_per_token": "num_experts_per_tok",
    "d_ff_expert": "intermediate_size",
}
"""Dimensions of the mixtures, ours and theirs."""
EXPERT = {"gate": "w1", "up": "w3", "down": "w2"}
FIXED: dict[str, tuple[Any, ...]] = {
    "use_qk_norm": (True,),
    "qk_norm_type": ("per_layer",),
    "scoring_func": ("sigmoid",),
    "use_routing_bias": (True,),
    "shared_intermediate_size": (0,),
}
"""Switches of the publisher's own code, and the values that the architecture has."""
OF_PREDICTION = ("use_mtp", "num_mtp_modules", "mtp_transformer_layers")
"""Keys of layers that predict further tokens, which are not read."""


def from_hf(values: Mapping[str, Any]) -> MiniMaxM2Config:
    """``config.json`` of ``MiniMaxM2ForCausalLM`` to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    settings = read_fields(hf, dense=False)
    settings |= {ours: hf.get(theirs) for ours, theirs in MIXTURE.items()}
    settings |= read_rotary(hf, settings["max_sequence_length"], partial=True)
    head_dim = hf.whole("head_dim", 128)
    settings["rotary_dim"] = read_rotary_dim(hf, head_dim)
    channels = hf.given("rotary_dim")  # by the publisher's own code; the share goes before it
    if channels is not None and partial_rotary_factor(hf, 0.0) == 0.0:
        settings["rotary_dim"] = channels
    for key, accepted in FIXED.items():
        hf.refuse_unless(key, accepted)
    for key in OF_PREDICTION:
        hf.given(key)
    layers = hf.whole("num_hidden_layers")
    hf.refuse_unless("attn_type_list", ([1] * layers,), "all layers are softmax attention")
    hf.finish()
    return checked(MiniMaxM2Config, settings, "config.json")


def to_hf(config: MiniMaxM2Config) -> dict[str, Any]:
    """Config to ``config.json``."""
    dim = config.channels_per_head
    return {
        "architectures": ["MiniMaxM2ForCausalLM"],
        "model_type": "minimax_m2",
        **write_fields(config, dense=False),
        **hf_rope(config.rope, (config.rotary_dim or dim) / dim),
        **{theirs: getattr(config, ours) for ours, theirs in MIXTURE.items()},
    }


def hf_names(config: MiniMaxM2Config) -> list[WeightName]:
    """Weight names in safetensors files."""
    d = config.decoder()
    (block,) = d.stacks
    ((stack, layers),) = block_names.stacked_layers(d).items()
    assert isinstance(block.mixer, GroupedAttentionConfig)
    there = {"theirs": "block_sparse_moe", "correction": "e_score_correction_bias"}
    return [
        *block_names.ends(d),
        *block_names.scales(stack, block_names.PRE_NORMS, layers),
        *block_names.grouped_attention(stack, block.mixer, layers),
        *feed_forward_names(stack, block.mlp, layers, experts=EXPERT, **there),
    ]
