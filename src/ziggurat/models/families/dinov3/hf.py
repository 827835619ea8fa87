"""DINOv3's vision transformers in Hugging Face's ``config.json`` and safetensors."""

from collections.abc import Mapping
from typing import Any

from ziggurat.core.errors import ModelError
from ziggurat.models.conversion.hf_config import HFConfig, activation, checked, hf_activation
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.dinov3.config import Dinov3Config
from ziggurat.models.families.encoder_fields import hf_head, linears, norms
from ziggurat.models.families.image_encoder_fields import hf_image, patch_names, read_image

WITHOUT_EFFECT = (
    *("apply_layernorm", "out_features", "out_indices", "reshape_hidden_states", "stage_names"),
    "return_class_token",  # of the class that gives the states of several layers
    *("pos_embed_jitter", "pos_embed_rescale", "pos_embed_shift"),  # in training only
    *("is_causal", "is_decoder"),
)
REGISTERS = "embeddings.register_tokens"


def from_hf(values: Mapping[str, Any]) -> Dinov3Config:
    """``config.json`` of ``DINOv3ViTModel`` to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    for key in WITHOUT_EFFECT:
        hf.given(key)
    bias = hf.get("query_bias")
    if hf.get("value_bias") != bias:
        raise ModelError(
            "config.json: value_bias",
            found=f"{hf.get('value_bias')!r}, with query_bias {bias!r}",
            expected="biases on both queries and values, or on neither",
        )
    settings = read_image(hf) | {
        "d_model": hf.get("hidden_size"),
        "n_layers": hf.get("num_hidden_layers"),
        "n_heads": hf.get("num_attention_heads"),
        "d_ff": hf.get("intermediate_size"),
        "activation": activation(hf),
        "norm_eps": hf.get("layer_norm_eps"),
        "init_std": hf.get("initializer_range"),
        "registers": hf.get("num_register_tokens"),
        "rope_theta": hf.get("rope_theta"),
        "attention_bias": bias,
        "key_bias": hf.get("key_bias"),
        "out_bias": hf.get("proj_bias"),
        "mlp_bias": hf.get("mlp_bias"),
        "gated": hf.get("use_gated_mlp"),
    }
    hf.finish()
    return checked(Dinov3Config, settings, "config.json")


def to_hf(config: Dinov3Config) -> dict[str, Any]:
    """Config to ``config.json``."""
    return (
        hf_head(config, {"none": "DINOv3ViTModel"})
        | hf_image(config)
        | {
            "model_type": "dinov3_vit",
            "hidden_size": config.d_model,
            "num_hidden_layers": config.n_layers,
            "num_attention_heads": config.n_heads,
            "intermediate_size": config.feed_forward,
            "hidden_act": hf_activation(config.activation),
            "layer_norm_eps": config.norm_eps,
            "initializer_range": config.init_std,
            "num_register_tokens": config.registers,
            "rope_theta": config.rope_theta,
            "query_bias": config.attention_bias,
            "key_bias": config.key_bias,
            "value_bias": config.attention_bias,
            "proj_bias": config.out_bias,
            "mlp_bias": config.mlp_bias,
            "use_gated_mlp": config.gated,
        }
    )


def ignored(config: Dinov3Config, name: str) -> bool:
    """Whether a tensor is of registers of a model without any: it has no entries."""
    return not config.registers and name.endswith(REGISTERS)


def hf_names(config: Dinov3Config) -> list[WeightName]:
    """Weight names in safetensors files."""
    layer = "layer.{layer}."
    table = {
        "projection": "embeddings.patch_embeddings",
        "class_token": "embeddings.cls_token",
        "mask_token": "embeddings.mask_token",
    }
    names = patch_names(config, table | ({"registers": REGISTERS} if config.registers else {}))
    ends = {"blocks.attention_norm": f"{layer}norm1", "blocks.mlp_norm": f"{layer}norm2"}
    names += norms(ends | {"final_norm": "norm"})
    for ours, theirs in {"attention": "layer_scale1", "mlp": "layer_scale2"}.items():
        names.append(WeightName(f"blocks.{ours}_scale", f"{layer}{theirs}.lambda1"))
    for part, bias in (
        ("query", config.attention_bias),
        ("key", config.attention_bias and config.key_bias),
        ("value", config.attention_bias),
        ("out", config.out_bias),
    ):
        theirs = f"{layer}attention.{part[0]}_proj"
        names += linears({f"blocks.attention.{part}": theirs}, bias=bias)
    parts = ("gate", "up", "down") if config.gated else ("up", "down")
    table = {f"blocks.mlp.{part}": f"{layer}mlp.{part}_proj" for part in parts}
    return names + linears(table, bias=config.mlp_bias)
