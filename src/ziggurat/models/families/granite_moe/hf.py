"""Granite 3 with mixtures of experts in Hugging Face's ``config.json`` and safetensors."""

from collections.abc import Mapping
from typing import Any

from ziggurat.models.conversion import block_names
from ziggurat.models.conversion.hf_config import HFConfig, checked
from ziggurat.models.conversion.rotary_settings import hf_rope
from ziggurat.models.conversion.weight_names import AxisSlice, WeightName
from ziggurat.models.families.decoder_fields import read_fields, read_rotary, write_fields
from ziggurat.models.families.granite_moe.config import GraniteMoeConfig
from ziggurat.nn.attention import GroupedAttentionConfig
from ziggurat.nn.moe import MixtureOfExpertsConfig

SWITCHES = {
    "n_experts": "num_local_experts",
    "experts_per_token": "num_experts_per_tok",
    "attention_bias": "attention_bias",
    "embedding_multiplier": "embedding_multiplier",
    "residual_multiplier": "residual_multiplier",
    "attention_multiplier": "attention_multiplier",
    "logits_scaling": "logits_scaling",
}
"""Settings that only this family has, ours and theirs."""


def from_hf(values: Mapping[str, Any]) -> GraniteMoeConfig:
    """``config.json`` of ``GraniteMoeForCausalLM`` to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    settings = read_fields(hf)
    settings |= {ours: hf.get(theirs) for ours, theirs in SWITCHES.items()}
    settings |= read_rotary(hf, settings["max_sequence_length"])
    hf.finish()
    return checked(GraniteMoeConfig, settings, "config.json")


def to_hf(config: GraniteMoeConfig) -> dict[str, Any]:
    """Config to ``config.json``."""
    return {
        "architectures": ["GraniteMoeForCausalLM"],
        "model_type": "granitemoe",
        **write_fields(config),
        **hf_rope(config.rope),
        **{theirs: getattr(config, ours) for ours, theirs in SWITCHES.items()},
    }


def hf_names(config: GraniteMoeConfig) -> list[WeightName]:
    """Weight names in safetensors files."""
    d = config.decoder()
    (block,) = d.stacks
    ((stack, layers),) = block_names.stacked_layers(d).items()
    assert isinstance(block.mixer, GroupedAttentionConfig)
    assert isinstance(block.mlp, MixtureOfExpertsConfig)
    width, router = block.mlp.hidden, {"mlp.router": "block_sparse_moe.router.layer"}
    experts = [
        WeightName(
            f"{stack}.mlp.experts.{ours}.kernel",
            f"{block_names.LAYER}block_sparse_moe.{theirs}.weight",
            transpose=True,
            layers=layers,
            part=part,
        )
        for ours, theirs, part in (
            ("gate", "input_linear", AxisSlice(1, slice(0, width))),
            ("up", "input_linear", AxisSlice(1, slice(width, 2 * width))),
            ("down", "output_linear", None),
        )
    ]
    return [
        *block_names.ends(d),
        *block_names.scales(stack, block_names.PRE_NORMS, layers),
        *block_names.grouped_attention(stack, block.mixer, layers),
        *block_names.projections(stack, router, layers),
        *experts,
    ]
