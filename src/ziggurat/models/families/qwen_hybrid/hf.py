"""Qwen3-Next and Qwen 3.5 in Hugging Face's ``config.json`` and safetensors."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ziggurat.core.errors import ModelError
from ziggurat.models.conversion.hf_config import HFConfig, checked
from ziggurat.models.conversion.rotary_settings import (
    hf_rope,
    read_rotary_dim,
    read_sections,
)
from ziggurat.models.families.decoder_fields import read_fields, read_rotary, write_fields
from ziggurat.models.families.mixture_fields import read_sparse_layers, write_sparse_layers
from ziggurat.models.families.qwen_hybrid.config import (
    HybridFields,
    Mixer,
    Qwen3NextConfig,
    Qwen35Config,
    Qwen35MoeConfig,
)

HybridConfig = Qwen3NextConfig | Qwen35Config | Qwen35MoeConfig
CLASSES: dict[str, type[HybridConfig]] = {
    "qwen3_next": Qwen3NextConfig,
    "qwen3_5_text": Qwen35Config,
    "qwen3_5_moe_text": Qwen35MoeConfig,
}
DELTA = {
    "delta_key_heads": "linear_num_key_heads",
    "delta_value_heads": "linear_num_value_heads",
    "delta_key_dim": "linear_key_head_dim",
    "delta_value_dim": "linear_value_head_dim",
    "delta_taps": "linear_conv_kernel_dim",
}
"""Dimensions of gated delta nets, ours and theirs."""
MIXERS: dict[str, Mixer] = {"linear_attention": "linear", "full_attention": "full"}
SHARE = 0.25
"""Share of the channels that rotate where a config does not say."""
SECTIONS = (11, 11, 10)
"""Frequencies of time, height and width where a config does not say."""


def from_hf(values: Mapping[str, Any]) -> HybridConfig:
    """``config.json`` of a causal language model of these types to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    cls = CLASSES[hf.model_type]
    settings = read_fields(hf, dense=cls is not Qwen35MoeConfig)
    settings |= {ours: hf.get(theirs) for ours, theirs in DELTA.items()}
    settings |= {
        "attention_bias": hf.get("attention_bias"),
        "pattern": _read_pattern(hf, hf.whole("num_hidden_layers")),
        **read_rotary(hf, settings["max_sequence_length"], partial=True),
        "rotary_dim": read_rotary_dim(hf, hf.whole("head_dim", 256), SHARE),
    }
    if cls is Qwen3NextConfig:
        settings |= read_sparse_layers(hf, settings["n_layers"])
    else:
        sections = read_sections(hf)
        if sections is None and sum(SECTIONS) == settings["rotary_dim"] // 2:
            sections = SECTIONS
        settings["rope"] = dataclasses.replace(
            settings["rope"], sections=sections or (), interleaved=bool(sections)
        )
    if cls is Qwen35MoeConfig:
        settings |= {
            "n_experts": hf.get("num_experts"),
            "experts_per_token": hf.get("num_experts_per_tok"),
            "d_ff_expert": hf.get("moe_intermediate_size"),
        }
    if cls is not Qwen35Config:
        settings["d_ff_shared"] = hf.get("shared_expert_intermediate_size")
    hf.finish()
    return checked(cls, settings, "config.json")


def _read_pattern(hf: HFConfig, n_layers: int) -> tuple[Mixer, ...]:
    """``layer_types``, or a layer of attention every ``full_attention_interval``, as the shortest
    pattern."""
    every = hf.whole("full_attention_interval", 4)
    if every < 1:
        raise ModelError("config.json: full_attention_interval", found=every, expected=">= 1")
    usual = [
        "full_attention" if (i + 1) % every == 0 else "linear_attention" for i in range(n_layers)
    ]
    types = hf.get("layer_types", usual)
    fits = isinstance(types, list) and len(types) == n_layers
    if not fits or any(entry not in MIXERS for entry in types):
        known = " or ".join(MIXERS)
        raise ModelError("config.json: layer_types", found=types, expected=f"{n_layers} of {known}")
    kinds: tuple[Mixer, ...] = tuple(MIXERS[entry] for entry in types)
    periods = range(1, n_layers + 1)
    period = next(n for n in periods if all(kinds[i] == kinds[i % n] for i in range(n_layers)))
    return kinds[:period]


def to_hf(config: HybridConfig) -> dict[str, Any]:
    """Config to ``config.json``."""
    kind = next(kind for kind, cls in CLASSES.items() if isinstance(config, cls))
    names = {kind: mixer for mixer, kind in MIXERS.items()}
    values = {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        **write_fields(config, dense=not isinstance(config, Qwen35MoeConfig)),
        **hf_rope(config.rope, config.rotary_dim / config.head_dim),
        "attention_bias": config.attention_bias,
        "layer_types": [names[mixer] for mixer in config.mixers()],
        **{theirs: getattr(config, ours) for ours, theirs in DELTA.items()},
    }
    if isinstance(config, Qwen3NextConfig):
        values |= write_sparse_layers(config)
    if isinstance(config, Qwen35MoeConfig):
        values |= {
            "num_experts": config.n_experts,
            "num_experts_per_tok": config.experts_per_token,
            "moe_intermediate_size": config.d_ff_expert,
        }
    if isinstance(config, Qwen3NextConfig | Qwen35MoeConfig):
        values["shared_expert_intermediate_size"] = config.d_ff_shared
    return values


ARCHITECTURES = {
    "qwen3_next": "Qwen3NextForCausalLM",
    "qwen3_5_text": "Qwen3_5ForCausalLM",
    "qwen3_5_moe_text": "Qwen3_5MoeForCausalLM",
}
"""Published architectures by type of model."""


def ignored(config: HybridFields, name: str) -> bool:
    """Whether a tensor is a part of layers that predict further tokens, which are not read."""
    return name.startswith("mtp.")
