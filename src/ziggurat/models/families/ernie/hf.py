"""Ernie 4.5 in Hugging Face's ``config.json`` and safetensors."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ziggurat.models.conversion import block_names
from ziggurat.models.conversion.hf_config import HFConfig, checked
from ziggurat.models.conversion.rotary_order import attention_orders, reordered
from ziggurat.models.conversion.rotary_settings import hf_rope
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.decoder_fields import (
    read_fields,
    read_rotary,
    with_head_dim,
    write_fields,
)
from ziggurat.models.families.ernie.config import Ernie45Config, Ernie45MoeConfig
from ziggurat.models.families.mixture_fields import feed_forward_names
from ziggurat.nn.attention import GroupedAttentionConfig

MIXTURE = {
    "n_experts": "moe_num_experts",
    "experts_per_token": "moe_k",
    "d_ff_expert": "moe_intermediate_size",
    "n_shared_experts": "moe_num_shared_experts",
    "first_sparse": "moe_layer_start_index",
    "sparse_every": "moe_layer_interval",
    "least_sum": "moe_norm_min",
}
"""Settings of the mixtures, ours and theirs."""
FIXED: dict[str, tuple[Any, ...]] = {
    "moe_use_aux_free": (True,),
    "moe_gate": ("topk",),
    "moe_capacity": ([64, 64, 64],),
    "compression_ratio": (1.0,),
    "rope_ratio": (1.0,),
}
"""Switches of the publisher's own code, and the values that change nothing."""
CORRECTION = "moe_statics.e_score_correction_bias"


def from_hf(values: Mapping[str, Any]) -> Ernie45Config | Ernie45MoeConfig:
    """``config.json`` of ``Ernie4_5ForCausalLM`` or ``Ernie4_5_MoeForCausalLM`` to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(with_head_dim(values))
    settings = read_fields(hf)
    settings |= read_rotary(hf, settings["max_sequence_length"])
    mixture = hf.model_type == "ernie4_5_moe"
    if mixture:
        hf.refuse_unless("use_bias", (False,), "a bias of the output matrix is not implemented")
        settings |= {ours: hf.get(theirs) for ours, theirs in MIXTURE.items()}
        last = hf.get("moe_layer_end_index")
        settings["last_sparse"] = None if last == -1 else last
    else:
        settings["bias"] = hf.get("use_bias")
    for key, accepted in FIXED.items():
        hf.refuse_unless(key, accepted)
    hf.finish()
    return checked(Ernie45MoeConfig if mixture else Ernie45Config, settings, "config.json")


def to_hf(config: Ernie45Config | Ernie45MoeConfig) -> dict[str, Any]:
    """Config to ``config.json``."""
    mixture = isinstance(config, Ernie45MoeConfig)
    values = {
        "architectures": ["Ernie4_5_MoeForCausalLM" if mixture else "Ernie4_5ForCausalLM"],
        "model_type": config.kind,
        **write_fields(config),
        **hf_rope(config.rope),
    }
    if not isinstance(config, Ernie45MoeConfig):
        return values | {"use_bias": config.bias}
    last = -1 if config.last_sparse is None else config.last_sparse
    values |= {theirs: getattr(config, ours) for ours, theirs in MIXTURE.items()}
    return values | {"moe_layer_end_index": last}


def hf_names(config: Ernie45Config | Ernie45MoeConfig) -> list[WeightName]:
    """Weight names in safetensors files."""
    d = config.decoder()
    names = block_names.ends(d)
    for (stack, layers), block in zip(block_names.stacked_layers(d).items(), d.stacks):
        assert isinstance(block.mixer, GroupedAttentionConfig)
        orders = attention_orders(block.mixer)
        attention = block_names.grouped_attention(stack, block.mixer, layers)
        names += block_names.scales(stack, block_names.PRE_NORMS, layers)
        names += [reordered(name, orders) for name in attention]
        names += feed_forward_names(
            stack, block.mlp, layers, shared="shared_experts", correction=CORRECTION
        )
    if not isinstance(config, Ernie45MoeConfig):
        return names
    shape = 1, config.n_experts
    return [
        dataclasses.replace(name, stored_shape=shape) if name.theirs.endswith(CORRECTION) else name
        for name in names
    ]


def ignored(config: Ernie45Config | Ernie45MoeConfig, name: str) -> bool:
    """Whether a tensor belongs to layers that predict further tokens."""
    return "mtp" in name
