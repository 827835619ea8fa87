"""CLIP in Hugging Face's ``config.json`` and safetensors."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ziggurat.core.errors import ModelError
from ziggurat.models.conversion.hf_config import HFConfig, activation, checked, hf_activation
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.clip.config import ClipConfig
from ziggurat.models.families.encoder_fields import linears, norms
from ziggurat.models.families.image_encoder_fields import hf_image, patch_names, read_image

OLD_END_ID = 2
"""End id of configs from before 2023, which name a token that no text holds."""
EARLIER = ("text_config_dict", "vision_config_dict")
"""Second copies of the towers' tables in files of 2021; transformers reads these first."""


def from_hf(values: Mapping[str, Any]) -> ClipConfig:
    """``config.json`` of ``CLIPModel`` to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    projection = hf.whole("projection_dim", 512)
    text, image = tower_values(hf, values, "text"), tower_values(hf, values, "vision")
    settings = {
        "text": _text(text) | {"projection": projection},
        "image": image_settings(image) | {"projection": projection},
        "logit_scale": hf.get("logit_scale_init_value"),
    }
    hf.finish()
    return checked(ClipConfig, settings, "config.json")


def tower_values(hf: HFConfig, values: Mapping[str, Any], tower: str) -> dict[str, Any]:
    """The keys of a tower: its table, over which that of files of 2021 goes.

    Raises:
        ModelError: it is no table.
    """
    keys = (f"{tower}_config", f"{tower}_config_dict")
    for key in keys:
        hf.given(key)
    found: dict[str, Any] = {}
    for key in keys:
        table = values.get(key)
        if table is not None and not isinstance(table, Mapping):
            raise ModelError(f"config.json: {key}", found=repr(table), expected="a table")
        found |= table or {}
    return found


def common_settings(hf: HFConfig) -> dict[str, Any]:
    """Settings of a block, which both towers have."""
    return {
        "d_model": hf.get("hidden_size"),
        "n_layers": hf.get("num_hidden_layers"),
        "n_heads": hf.get("num_attention_heads"),
        "d_ff": hf.get("intermediate_size"),
        "activation": activation(hf),
        "norm_eps": hf.get("layer_norm_eps"),
    }


def _text(values: Mapping[str, Any]) -> dict[str, Any]:
    hf = HFConfig(values, "clip_text_model")
    for key in ("is_causal", "is_decoder", "projection_dim", "tie_word_embeddings"):
        hf.given(key)  # without effect in a tower: the whole model's config holds the projection
    end = hf.get("eos_token_id")
    if not isinstance(end, int) or isinstance(end, bool):
        raise ModelError("config.json: eos_token_id", found=repr(end), expected="a token id")
    settings = common_settings(hf) | {
        "vocab_size": hf.get("vocab_size"),
        "max_sequence_length": hf.get("max_position_embeddings"),
        "init_std": hf.get("initializer_range"),
        "end_id": -1 if end == OLD_END_ID else end,
    }
    hf.finish()
    return settings


def image_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the encoder of images, without the length of its vectors."""
    hf = HFConfig(values, "clip_vision_model")
    for key in ("is_causal", "is_decoder", "projection_dim", "tie_word_embeddings"):
        hf.given(key)
    settings = common_settings(hf) | read_image(hf) | {"init_std": hf.get("initializer_range")}
    hf.finish()
    return settings


def common_values(tower: Any) -> dict[str, Any]:
    """The reverse of :func:`common_settings`."""
    return {
        "hidden_size": tower.d_model,
        "num_hidden_layers": tower.n_layers,
        "num_attention_heads": tower.n_heads,
        "intermediate_size": tower.feed_forward,
        "hidden_act": hf_activation(tower.activation),
        "layer_norm_eps": tower.norm_eps,
    }


def to_hf(config: ClipConfig) -> dict[str, Any]:
    """Config to ``config.json``."""
    text, image = config.text, config.image
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": text.projection,
        "logit_scale_init_value": config.logit_scale,
        "text_config": common_values(text)
        | {
            "model_type": "clip_text_model",
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.max_sequence_length,
            "initializer_range": text.init_std,
            "projection_dim": text.projection,
            "eos_token_id": OLD_END_ID if text.end_id == -1 else text.end_id,
        },
        "vision_config": common_values(image)
        | hf_image(image)
        | {
            "model_type": "clip_vision_model",
            "initializer_range": image.init_std,
            "projection_dim": image.projection,
        },
    }


def hf_names(config: ClipConfig) -> list[WeightName]:
    """Weight names in safetensors files."""
    text, image = "text_model.", "vision_model."
    table = {
        "projection": image + "embeddings.patch_embedding",
        "positions": image + "embeddings.position_embedding.weight",
        "class_token": image + "embeddings.class_embedding",
    }
    return [
        WeightName("logit_scale", "logit_scale"),
        *text_input_names(text),
        *tower_names("text", text, config.text.n_layers),
        *norms({"text.final_norm": text + "final_layer_norm"}),
        *linears({"text.pooler.dense": "text_projection"}, bias=False),
        *image_input_names(config.image, table, bias=False),
        *tower_names("image", image, config.image.n_layers),
        *norms({"image.input.norm": image + "pre_layrnorm"}),
        *norms({"image.pooler.norm": image + "post_layernorm"}),
        *linears({"image.pooler.dense": "visual_projection"}, bias=False),
    ]


def text_input_names(base: str) -> list[WeightName]:
    """Names of the embeddings of texts."""
    return [
        WeightName("text.input.embedding.table", base + "embeddings.token_embedding.weight"),
        WeightName("text.input.positions.table", base + "embeddings.position_embedding.weight"),
    ]


def image_input_names(image: Any, table: Mapping[str, str], *, bias: bool) -> list[WeightName]:
    """Names of the embeddings of images, whose tables and tokens have no leading axis of one."""
    names = []
    for name in patch_names(image, table, bias=bias):
        shape = name.stored_shape
        if shape is not None and len(shape) == 3:
            shape = shape[2:] if name.ours == "input.class_token" else shape[1:]
        names.append(dataclasses.replace(name, ours=f"image.{name.ours}", stored_shape=shape))
    return names


def tower_names(ours: str, theirs: str, layers: int) -> list[WeightName]:
    """Names of a tower's blocks."""
    blocks, layer = f"{ours}.blocks.", theirs + "encoder.layers.{layer}."
    names = norms(
        {
            f"{blocks}attention_norm": layer + "layer_norm1",
            f"{blocks}mlp_norm": layer + "layer_norm2",
        }
    )
    names += linears(
        {
            f"{blocks}attention.query": layer + "self_attn.q_proj",
            f"{blocks}attention.key": layer + "self_attn.k_proj",
            f"{blocks}attention.value": layer + "self_attn.v_proj",
            f"{blocks}attention.out": layer + "self_attn.out_proj",
            f"{blocks}mlp.up": layer + "mlp.fc1",
            f"{blocks}mlp.down": layer + "mlp.fc2",
        }
    )
    return [dataclasses.replace(name, layers=tuple(range(layers))) for name in names]
