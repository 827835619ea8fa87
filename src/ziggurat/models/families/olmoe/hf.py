"""OLMoE in Hugging Face's ``config.json`` and safetensors."""

from collections.abc import Mapping
from typing import Any

from ziggurat.models.conversion import block_names
from ziggurat.models.conversion.hf_config import HFConfig, checked
from ziggurat.models.conversion.rotary_settings import hf_rope
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.decoder_fields import read_fields, read_rotary, write_fields
from ziggurat.models.families.mixture_fields import feed_forward_names
from ziggurat.models.families.olmoe.config import OlmoeConfig
from ziggurat.nn.attention import GroupedAttentionConfig

MIXTURE = {
    "n_experts": "num_experts",
    "experts_per_token": "num_experts_per_tok",
    "d_ff_expert": "intermediate_size",
    "normalise_weights": "norm_topk_prob",
    "attention_bias": "attention_bias",
}
"""Settings that only this family has, ours and theirs."""


def from_hf(values: Mapping[str, Any]) -> OlmoeConfig:
    """``config.json`` of ``OlmoeForCausalLM`` to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    settings = read_fields(hf, dense=False)
    settings |= {ours: hf.get(theirs) for ours, theirs in MIXTURE.items()}
    settings |= read_rotary(hf, settings["max_sequence_length"])
    hf.finish()
    return checked(OlmoeConfig, settings, "config.json")


def to_hf(config: OlmoeConfig) -> dict[str, Any]:
    """Config to ``config.json``."""
    return {
        "architectures": ["OlmoeForCausalLM"],
        "model_type": "olmoe",
        **write_fields(config, dense=False),
        **hf_rope(config.rope),
        **{theirs: getattr(config, ours) for ours, theirs in MIXTURE.items()},
    }


def hf_names(config: OlmoeConfig) -> list[WeightName]:
    """Weight names in safetensors files."""
    d = config.decoder()
    (block,) = d.stacks
    ((stack, layers),) = block_names.stacked_layers(d).items()
    assert isinstance(block.mixer, GroupedAttentionConfig)
    return [
        *block_names.ends(d),
        *block_names.scales(stack, block_names.PRE_NORMS, layers),
        *block_names.grouped_attention(stack, block.mixer, layers),
        *feed_forward_names(stack, block.mlp, layers),
    ]
