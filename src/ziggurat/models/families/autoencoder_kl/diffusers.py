"""AutoencoderKL in diffusers' ``config.json`` and safetensors."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ziggurat.models.conversion.hf_config import HFConfig, activation, checked, hf_activation
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.autoencoder_kl.config import AutoencoderKLConfig

CLASS = "AutoencoderKL"
DOWN, UP = "DownEncoderBlock2D", "UpDecoderBlock2D"
PARTS = {
    "norm_in": "norm1",
    "convolution_in": "conv1",
    "norm_out": "norm2",
    "convolution_out": "conv2",
    "shortcut": "conv_shortcut",
}
"""Layers of a residual block, here and there."""
ATTENTION = {
    "norm": "group_norm",
    "attention.query": "to_q",
    "attention.key": "to_k",
    "attention.value": "to_v",
    "attention.out": "to_out.0",
}
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""Names of the same layers in files of before 2023."""
ENDS = {
    "convolution_in": "conv_in",
    "norm_out": "conv_norm_out",
    "convolution_out": "conv_out",
}


def from_diffusers(values: Mapping[str, Any]) -> AutoencoderKLConfig:
    """``config.json`` to config.

    Raises:
        ModelError: a switch is set that the family does not implement.
    """
    hf = HFConfig(values, CLASS)
    hf.get("force_upcast")  # which type to compute in is the caller's
    channels = tuple(hf.get("block_out_channels", (64,)))
    for key, block in (("down_block_types", DOWN), ("up_block_types", UP)):
        hf.refuse_unless(key, ([block] * len(channels),), "other blocks are not implemented")
    for key in ("latents_mean", "latents_std"):
        hf.refuse_unless(key, (), "latents are scaled by scaling_factor and shift_factor alone")
    settings = {
        "in_channels": hf.get("in_channels", 3),
        "out_channels": hf.get("out_channels", 3),
        "latent_channels": hf.get("latent_channels", 4),
        "level_channels": channels,
        "blocks_per_level": hf.get("layers_per_block", 1),
        "groups": hf.get("norm_num_groups", 32),
        "activation": activation(hf, "act_fn", "silu"),
        "middle_attention": hf.get("mid_block_add_attention", True),
        "quant": hf.get("use_quant_conv", True),
        "post_quant": hf.get("use_post_quant_conv", True),
        "image_size": hf.get("sample_size", 32),
        "scaling": float(hf.get("scaling_factor", 0.18215)),
        "shift": float(hf.get("shift_factor", 0.0)),
    }
    hf.finish()
    return checked(AutoencoderKLConfig, settings, "config.json")


def to_diffusers(config: AutoencoderKLConfig) -> dict[str, Any]:
    """Config to ``config.json``."""
    levels = len(config.level_channels)
    return {
        "_class_name": CLASS,
        "act_fn": hf_activation(config.activation),
        "block_out_channels": list(config.level_channels),
        "down_block_types": [DOWN] * levels,
        "in_channels": config.in_channels,
        "latent_channels": config.latent_channels,
        "layers_per_block": config.blocks_per_level,
        "mid_block_add_attention": config.middle_attention,
        "norm_num_groups": config.groups,
        "out_channels": config.out_channels,
        "sample_size": config.image_size,
        "scaling_factor": config.scaling,
        "shift_factor": config.shift or None,
        "up_block_types": [UP] * levels,
        "use_post_quant_conv": config.post_quant,
        "use_quant_conv": config.quant,
    }


def names(ours: Iterable[str], *, old_attention: bool = False) -> list[WeightName]:
    """Weight names in safetensors files.

    Args:
        ours: dotted names of the parameters.
        old_attention: whether attention's layers have their old names there.
    """
    return [_name(name, old_attention) for name in ours]


def _name(ours: str, old_attention: bool) -> WeightName:
    half, layer, *parts, leaf = ours.split(".")
    part = ".".join(parts)
    if layer in ("quant", "post_quant"):
        there = f"{layer}_conv"
    elif layer in ENDS:
        there = f"{half}.{ENDS[layer]}"
    elif layer == "middle_attention":
        name = ATTENTION[part]
        name = OLD_ATTENTION.get(name, name) if old_attention else name
        there = f"{half}.mid_block.attentions.0.{name}"
    elif layer.startswith("middle_block"):
        there = f"{half}.mid_block.resnets.{layer[-1]}.{PARTS[part]}"
    else:
        there = f"{half}.{_of_level(half, layer, part)}"
    matrix = leaf == "kernel" and part.startswith("attention.")
    return WeightName(ours, f"{there}.{'bias' if leaf == 'bias' else 'weight'}", transpose=matrix)


def _of_level(half: str, layer: str, part: str) -> str:
    match = re.fullmatch(r"level_(\d+)_(block|halving|doubling)(?:_(\d+))?", layer)
    assert match is not None, layer
    level, kind, number = match.groups()
    stage = f"{'down' if half == 'encoder' else 'up'}_blocks.{level}"
    if kind == "block":
        return f"{stage}.resnets.{number}.{PARTS[part]}"
    return f"{stage}.{'down' if kind == 'halving' else 'up'}samplers.0.conv"
