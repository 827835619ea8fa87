"""ViT in Hugging Face's ``config.json`` and safetensors."""

from collections.abc import Iterable, Mapping
from typing import Any

from ziggurat.models.conversion.hf_config import HFConfig, activation, checked, hf_activation
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.encoder_fields import (
    EncoderHead,
    hf_head,
    linears,
    norms,
    read_head,
    without,
)
from ziggurat.models.families.image_encoder_fields import hf_image, patch_names, read_image
from ziggurat.models.families.vit.config import VitConfig

POOLER = "pooler.dense.weight"
CLASSES: Mapping[EncoderHead, str] = {"none": "ViTModel", "sequence": "ViTForImageClassification"}


def from_hf(values: Mapping[str, Any]) -> VitConfig:
    """``config.json`` of ViT, or of its classifier, to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    for key in ("is_causal", "is_decoder", "encoder_stride"):  # without effect on the states
        hf.given(key)
    settings = read_head(hf, values) | read_image(hf)
    settings |= {
        "d_model": hf.get("hidden_size"),
        "n_layers": hf.get("num_hidden_layers"),
        "n_heads": hf.get("num_attention_heads"),
        "d_ff": hf.get("intermediate_size"),
        "activation": activation(hf),
        "norm_eps": hf.get("layer_norm_eps"),
        "init_std": hf.get("initializer_range"),
        "attention_bias": hf.get("qkv_bias"),
        "pooler_width": hf.given("pooler_output_size"),
        "pooler_activation": activation(hf, "pooler_act"),
        "pooler": settings["head"] == "none",
    }
    hf.finish()
    return checked(VitConfig, settings, "config.json")


def to_hf(config: VitConfig) -> dict[str, Any]:
    """Config to ``config.json``."""
    return (
        hf_head(config, CLASSES)
        | hf_image(config)
        | {
            "model_type": "vit",
            "hidden_size": config.d_model,
            "num_hidden_layers": config.n_layers,
            "num_attention_heads": config.n_heads,
            "intermediate_size": config.feed_forward,
            "hidden_act": hf_activation(config.activation),
            "layer_norm_eps": config.norm_eps,
            "initializer_range": config.init_std,
            "qkv_bias": config.attention_bias,
            "pooler_output_size": config.pooler_width or config.d_model,
            "pooler_act": hf_activation(config.pooler_activation),
        }
    )


def as_found(config: VitConfig, present: Iterable[str]) -> VitConfig:
    """The config with the pooler that a checkpoint holds."""
    return without(config, present, pooler=POOLER)


def hf_names(config: VitConfig) -> list[WeightName]:
    """Weight names in safetensors files."""
    base = "" if config.head == "none" else "vit."
    layer, embeddings = base + "encoder.layer.{layer}.", base + "embeddings."
    names = patch_names(
        config,
        {
            "projection": embeddings + "patch_embeddings.projection",
            "positions": embeddings + "position_embeddings",
            "class_token": embeddings + "cls_token",
        },
    )
    names += norms(
        {
            "blocks.attention_norm": layer + "layernorm_before",
            "blocks.mlp_norm": layer + "layernorm_after",
            "final_norm": base + "layernorm",
        }
    )
    inputs = {
        f"blocks.attention.{part}": f"{layer}attention.attention.{part}"
        for part in ("query", "key", "value")
    }
    names += linears(inputs, bias=config.attention_bias)
    names += linears(
        {
            "blocks.attention.out": layer + "attention.output.dense",
            "blocks.mlp.up": layer + "intermediate.dense",
            "blocks.mlp.down": layer + "output.dense",
        }
    )
    if config.head == "sequence":
        names += linears({"head.out": "classifier"})
    elif config.pooler:
        names += linears({"pooler.dense": "pooler.dense"})
    return names
