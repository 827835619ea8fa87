"""DINOv2 in Hugging Face's ``config.json`` and safetensors."""

from collections.abc import Mapping
from typing import Any

from ziggurat.core.errors import ModelError
from ziggurat.models.conversion.hf_config import HFConfig, activation, checked, hf_activation
from ziggurat.models.conversion.weight_names import AxisSlice, WeightName
from ziggurat.models.families.dinov2.config import Dinov2Config
from ziggurat.models.families.encoder_fields import hf_head, linears, norms, read_head
from ziggurat.models.families.image_encoder_fields import hf_image, patch_names, read_image

OF_BACKBONES = ("apply_layernorm", "out_features", "out_indices", "reshape_hidden_states")
"""Keys of the class that gives the states of several layers, which is not read."""


def from_hf(values: Mapping[str, Any]) -> Dinov2Config:
    """``config.json`` of DINOv2, with or without registers, or of its classifier, to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    for key in ("is_causal", "is_decoder", "stage_names", *OF_BACKBONES):  # without effect
        hf.given(key)
    registers = hf.model_type == "dinov2_with_registers"
    settings = read_head(hf, values) | read_image(hf)
    width, ratio = hf.whole("hidden_size", 768), hf.get("mlp_ratio")
    if not isinstance(ratio, int) or isinstance(ratio, bool) or ratio < 1:
        raise ModelError("config.json: mlp_ratio", found=ratio, expected="a whole number >= 1")
    settings |= {
        "d_model": width,
        "n_layers": hf.get("num_hidden_layers"),
        "n_heads": hf.get("num_attention_heads"),
        "d_ff": width * ratio,
        "activation": activation(hf),
        "norm_eps": hf.get("layer_norm_eps"),
        "init_std": hf.get("initializer_range"),
        "attention_bias": hf.get("qkv_bias"),
        "gated": hf.get("use_swiglu_ffn"),
        "registers": hf.get("num_register_tokens") if registers else None,
        "mask_token": True if registers else hf.get("use_mask_token"),
    }
    hf.finish()
    return checked(Dinov2Config, settings, "config.json")


def to_hf(config: Dinov2Config) -> dict[str, Any]:
    """Config to ``config.json``."""
    with_registers = config.registers is not None
    stem = "Dinov2WithRegisters" if with_registers else "Dinov2"
    own: dict[str, Any] = {"use_mask_token": config.mask_token}
    if with_registers:
        own = {"num_register_tokens": config.registers}
    return (
        hf_head(config, {"none": f"{stem}Model", "sequence": f"{stem}ForImageClassification"})
        | hf_image(config)
        | own
        | {
            "model_type": "dinov2_with_registers" if with_registers else "dinov2",
            "hidden_size": config.d_model,
            "num_hidden_layers": config.n_layers,
            "num_attention_heads": config.n_heads,
            "mlp_ratio": config.feed_forward // config.d_model,
            "hidden_act": hf_activation(config.activation),
            "layer_norm_eps": config.norm_eps,
            "initializer_range": config.init_std,
            "qkv_bias": config.attention_bias,
            "use_swiglu_ffn": config.gated,
        }
    )


def hf_names(config: Dinov2Config) -> list[WeightName]:
    """Weight names in safetensors files."""
    stem = "dinov2" if config.registers is None else "dinov2_with_registers"
    base = "" if config.head == "none" else f"{stem}."
    layer, embeddings = base + "encoder.layer.{layer}.", base + "embeddings."
    table = {
        "projection": embeddings + "patch_embeddings.projection",
        "positions": embeddings + "position_embeddings",
        "class_token": embeddings + "cls_token",
    }
    table |= {"registers": embeddings + "register_tokens"} if config.registers else {}
    names = patch_names(config, table)
    if config.mask_token:
        names.append(WeightName("input.mask_token", embeddings + "mask_token"))
    names += norms(
        {
            "blocks.attention_norm": layer + "norm1",
            "blocks.mlp_norm": layer + "norm2",
            "final_norm": base + "layernorm",
        }
    )
    for ours, theirs in {"attention": "layer_scale1", "mlp": "layer_scale2"}.items():
        names.append(WeightName(f"blocks.{ours}_scale", f"{layer}{theirs}.lambda1"))
    inputs = {
        f"blocks.attention.{part}": f"{layer}attention.attention.{part}"
        for part in ("query", "key", "value")
    }
    names += linears(inputs, bias=config.attention_bias)
    names += linears({"blocks.attention.out": layer + "attention.output.dense"})
    names += _mlp_names(config, layer + "mlp.")
    return names + (linears({"head.out": "classifier"}) if config.head == "sequence" else [])


def _mlp_names(config: Dinov2Config, mlp: str) -> list[WeightName]:
    if not config.gated:
        return linears({"blocks.mlp.up": mlp + "fc1", "blocks.mlp.down": mlp + "fc2"})
    names, hidden = linears({"blocks.mlp.down": mlp + "weights_out"}), config.gated_width
    for number, part in enumerate(("gate", "up")):
        rows = AxisSlice(0, slice(number * hidden, (number + 1) * hidden))
        ours, theirs = f"blocks.mlp.{part}", mlp + "weights_in"
        names.append(WeightName(f"{ours}.kernel", f"{theirs}.weight", transpose=True, part=rows))
        names.append(WeightName(f"{ours}.bias", f"{theirs}.bias", part=rows))
    return names
