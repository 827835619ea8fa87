"""GLM-4.5, dots.llm1 and Solar Open in Hugging Face's ``config.json`` and safetensors."""

import re
from collections.abc import Mapping
from typing import Any

from ziggurat.models.conversion import block_names
from ziggurat.models.conversion.hf_config import HFConfig, checked
from ziggurat.models.conversion.rotary_settings import hf_rope, read_rotary_dim
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.decoder_fields import (
    read_fields,
    read_pattern,
    read_rotary,
    write_fields,
    write_pattern,
)
from ziggurat.models.families.glm_moe.config import Dots1Config, Glm4MoeConfig, SolarOpenConfig
from ziggurat.models.families.mixture_fields import GROUP_ROUTED, feed_forward_names
from ziggurat.nn.attention import GroupedAttentionConfig

GlmMoeConfig = Glm4MoeConfig | Dots1Config | SolarOpenConfig
CLASSES: dict[str, type[GlmMoeConfig]] = {
    "glm4_moe": Glm4MoeConfig,
    "dots1": Dots1Config,
    "solar_open": SolarOpenConfig,
}
ARCHITECTURES = {
    "glm4_moe": "Glm4MoeForCausalLM",
    "dots1": "Dots1ForCausalLM",
    "solar_open": "SolarOpenForCausalLM",
}
"""Published architectures by type of model."""
DENSE = {"n_dense_layers": "first_k_dense_replace"}
"""Key of families in which the first layers may be dense, here and there."""


def from_hf(values: Mapping[str, Any]) -> GlmMoeConfig:
    """``config.json`` of one of :data:`ARCHITECTURES` to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    cls = CLASSES[hf.model_type]
    dense = cls is not SolarOpenConfig
    settings = read_fields(hf, dense=dense)
    table = GROUP_ROUTED | {"attention_bias": "attention_bias"} | (DENSE if dense else {})
    settings |= {ours: hf.get(theirs) for ours, theirs in table.items()}
    length = settings["max_sequence_length"]
    if cls is Glm4MoeConfig:
        settings |= read_rotary(hf, length, partial=True)
        heads = max(1, hf.whole("num_attention_heads"))
        head_dim = hf.whole("head_dim", hf.whole("hidden_size") // heads)
        settings["rotary_dim"] = read_rotary_dim(hf, head_dim, 0.5)
        settings["head_norms"] = hf.get("use_qk_norm")
    else:
        settings |= read_rotary(hf, length)
    if cls is Dots1Config:
        settings |= _windows(hf)
    hf.finish()
    return checked(cls, settings, "config.json")


def _windows(hf: HFConfig) -> dict[str, Any]:
    """Window and pattern: layers from ``max_window_layers`` on slide."""
    layers, first = hf.whole("num_hidden_layers"), hf.whole("max_window_layers", 62)
    window = hf.get("sliding_window")
    full = layers if window is None else min(first, layers)
    usual = ["full_attention"] * full + ["sliding_attention"] * (layers - full)
    pattern = read_pattern(hf, layers, usual)
    return {"pattern": pattern, "window": window if "local" in pattern else None}


def to_hf(config: GlmMoeConfig) -> dict[str, Any]:
    """Config to ``config.json``."""
    dense = not isinstance(config, SolarOpenConfig)
    table = GROUP_ROUTED | {"attention_bias": "attention_bias"} | (DENSE if dense else {})
    part = None
    if isinstance(config, Glm4MoeConfig):
        part = (config.rotary_dim or config.channels_per_head) / config.channels_per_head
    values = {
        "architectures": [ARCHITECTURES[config.kind]],
        "model_type": config.kind,
        **write_fields(config, dense=dense),
        **hf_rope(config.rope, part),
        **{theirs: getattr(config, ours) for ours, theirs in table.items()},
    }
    if isinstance(config, Glm4MoeConfig):
        values["use_qk_norm"] = config.head_norms
    if isinstance(config, Dots1Config):
        values |= {
            "sliding_window": config.window,
            "max_window_layers": config.n_layers,
            "layer_types": write_pattern(config.pattern, config.n_layers),
        }
    return values


def hf_names(config: GlmMoeConfig) -> list[WeightName]:
    """Weight names in safetensors files."""
    d = config.decoder()
    names = block_names.ends(d)
    for (stack, layers), block in zip(block_names.stacked_layers(d).items(), d.stacks):
        assert isinstance(block.mixer, GroupedAttentionConfig)
        names += block_names.scales(stack, block_names.PRE_NORMS, layers)
        names += block_names.grouped_attention(stack, block.mixer, layers)
        names += feed_forward_names(stack, block.mlp, layers, shared="shared_experts")
    return names


def ignored(config: GlmMoeConfig, name: str) -> bool:
    """Whether a tensor belongs to layers behind the last, which predict further tokens."""
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    return layer is not None and int(layer[1]) >= config.n_layers
