"""DiT in diffusers' ``config.json`` and safetensors (``DiTTransformer2DModel``)."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ziggurat.core.errors import CheckpointError, ModelError
from ziggurat.models.conversion.hf_config import HFConfig, checked
from ziggurat.models.conversion.weight_names import (
    AxisSlice,
    TensorSource,
    WeightName,
    export_weights,
)
from ziggurat.models.families.dit.config import DitConfig
from ziggurat.nn.diffusion_transformer import grid_positions

CLASS = "DiTTransformer2DModel"
OLD_CLASS = "Transformer2DModel"
"""Class name of published DiTs; other models have it too, which ``norm_type`` tells apart."""
ACTIVATIONS = {
    "gelu": ("gelu", False),
    "gelu-approximate": ("gelu_tanh", False),
    "geglu-approximate": ("quick_gelu", False),
    "linear-silu": ("silu", False),
    "geglu": ("gelu", True),
    "swiglu": ("silu", True),
}
"""Feed-forward blocks by diffusers' name: activation, and whether it is gated."""
WITHOUT_EFFECT = ("norm_num_groups", "upcast_attention", "use_linear_projection")
POSITIONS = "pos_embed.pos_embed"
"""Table of positions that some files hold; it is computed here."""
LAYER = "transformer_blocks.{layer}."
OF_LATER_BLOCKS = re.compile(r"transformer_blocks\.[1-9]\d*\.norm1\.emb\.")
"""Copies of the first block's embeddings of time and class, where all blocks share one."""


def from_diffusers(values: Mapping[str, Any]) -> DitConfig:
    """``config.json`` to config; whether conditioning is shared is told by the weights.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values, CLASS)
    for key in WITHOUT_EFFECT:
        hf.get(key)
    hf.refuse_unless("norm_type", ("ada_norm_zero",), "only class-conditional DiTs are read so")
    if values.get("_class_name") == OLD_CLASS:
        hf.need("norm_type")
    name = hf.get("activation_fn", "gelu-approximate")
    if name not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ModelError("config.json: activation_fn", found=repr(name), expected=f"one of {known}")
    activation, gated = ACTIVATIONS[name]
    channels = hf.get("in_channels", 4)
    out = hf.get("out_channels", channels)
    if out not in (channels, 2 * channels):
        expected = f"{channels} or {2 * channels}"
        raise ModelError("config.json: out_channels", found=out, expected=expected)
    heads = hf.whole("num_attention_heads", 16)
    settings = {
        "image_size": hf.get("sample_size", 32),
        "channels": channels,
        "classes": hf.get("num_embeds_ada_norm", 1000),
        "patch_size": hf.get("patch_size", 2),
        "d_model": heads * hf.whole("attention_head_dim", 72),
        "n_layers": hf.get("num_layers", 28),
        "n_heads": heads,
        "activation": activation,
        "gated": gated,
        "attention_bias": hf.get("attention_bias", True),
        "norm_eps": hf.get("norm_eps", 1e-5),
        "norm_affine": hf.get("norm_elementwise_affine", False),
        "learned_variance": out == 2 * channels,
        "shared_conditioning": False,
    }
    hf.finish()
    return checked(DitConfig, settings, "config.json")


def to_diffusers(config: DitConfig) -> dict[str, Any]:
    """Config to ``config.json``.

    Raises:
        ModelError: the feed-forward block has no counterpart there.
    """
    names = {block: name for name, block in ACTIVATIONS.items()}
    block = (config.activation, config.gated)
    if block not in names or config.d_ff not in (None, 4 * config.d_model):
        raise ModelError(
            "export to diffusers",
            found=f"a feed-forward block of {config.d_ff} with {config.activation}",
            expected=f"4 d_model = {4 * config.d_model} with one of {', '.join(ACTIVATIONS)}",
        )
    return {
        "_class_name": CLASS,
        "activation_fn": names[block],
        "attention_bias": config.attention_bias,
        "attention_head_dim": config.d_model // config.n_heads,
        "dropout": 0.0,
        "in_channels": config.channels,
        "norm_elementwise_affine": config.norm_affine,
        "norm_eps": config.norm_eps,
        "norm_type": "ada_norm_zero",
        "num_attention_heads": config.n_heads,
        "num_embeds_ada_norm": config.classes,
        "num_layers": config.n_layers,
        "out_channels": config.out_channels,
        "patch_size": config.patch_size,
        "sample_size": config.image_size,
    }


def names(config: DitConfig) -> list[WeightName]:
    """Weight names in safetensors files."""
    first = "transformer_blocks.0." if config.shared_conditioning else LAYER
    here = "conditioning." if config.shared_conditioning else "blocks.conditioning."
    emb = f"{first}norm1.emb."
    found = [
        WeightName("patch", "pos_embed.proj.weight"),
        WeightName("patch_bias", "pos_embed.proj.bias"),
        WeightName(f"{here}classes", f"{emb}class_embedder.embedding_table.weight"),
        *_linear(f"{here}time_in", f"{emb}timestep_embedder.linear_1"),
        *_linear(f"{here}time_out", f"{emb}timestep_embedder.linear_2"),
        *_linear("blocks.modulation", f"{LAYER}norm1.linear"),
        *_linear("blocks.attention.out", f"{LAYER}attn1.to_out.0"),
        *_linear("blocks.mlp.down", f"{LAYER}ff.net.2"),
        *_linear("final_modulation", "proj_out_1"),
        *_linear("out", "proj_out_2"),
    ]
    for name in ("query", "key", "value"):
        there = f"{LAYER}attn1.to_{name[0]}"
        found += _linear(f"blocks.attention.{name}", there)[: 2 if config.attention_bias else 1]
    into = f"{LAYER}ff.net.0.proj"
    if config.gated:
        width = config.d_ff or 4 * config.d_model
        found += _linear("blocks.mlp.up", into, AxisSlice(0, slice(0, width)))
        found += _linear("blocks.mlp.gate", into, AxisSlice(0, slice(width, 2 * width)))
    else:
        found += _linear("blocks.mlp.up", into)
    if config.norm_affine:
        found.append(WeightName("blocks.mlp_norm.scale", f"{LAYER}norm3.weight"))
        found.append(WeightName("blocks.mlp_norm.bias", f"{LAYER}norm3.bias"))
    return found


def _linear(ours: str, theirs: str, part: AxisSlice | None = None) -> list[WeightName]:
    return [
        WeightName(f"{ours}.kernel", f"{theirs}.weight", transpose=True, part=part),
        WeightName(f"{ours}.bias", f"{theirs}.bias", part=part),
    ]


def told_by_weights(config: DitConfig, tensors: TensorSource) -> DitConfig:
    """The config, with conditioning shared if all blocks' embeddings are the same numbers."""
    present = [name for name in tensors if OF_LATER_BLOCKS.match(name)]

    def copied(name: str) -> bool:
        first = re.sub(r"^transformer_blocks\.\d+", "transformer_blocks.0", name)
        return np.array_equal(tensors.read(name), tensors.read(first))

    return dataclasses.replace(config, shared_conditioning=all(map(copied, present)))


def ignored(config: DitConfig, name: str) -> bool:
    """Tensors that say nothing new."""
    copy = config.shared_conditioning and OF_LATER_BLOCKS.match(name)
    return bool(copy) or name == POSITIONS


def check_positions(config: DitConfig, tensors: TensorSource) -> None:
    """Refuse a stored table of positions that is not the one of sines and cosines.

    Raises:
        CheckpointError: it has other values.
    """
    if POSITIONS not in set(tensors):
        return
    stored = np.asarray(tensors.read(POSITIONS), np.float64)
    side = config.image_size // config.patch_size
    expected = grid_positions(side, side, side, config.d_model)
    good = stored.size == expected.size
    if not good or not np.allclose(stored.reshape(expected.shape), expected, atol=2**-8):
        raise CheckpointError(
            f"tensor {POSITIONS}",
            found=f"other values, shape {list(stored.shape)}",
            expected=f"fixed sines and cosines of {side} x {side} patches",
            fix="learned positions are not implemented",
        )


def export(config: DitConfig, params: dict[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Tensors of diffusers one by one; a shared embedding is written for every block."""
    for name, array in export_weights(names(config), params, layers=config.n_layers):
        yield name, array
        if config.shared_conditioning and ".norm1.emb." in name:
            for layer in range(1, config.n_layers):
                yield name.replace("transformer_blocks.0.", f"transformer_blocks.{layer}."), array
