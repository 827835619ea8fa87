"""MPNet in Hugging Face's ``config.json`` and safetensors."""

from collections.abc import Iterable, Mapping
from typing import Any

from ziggurat.models.conversion.hf_config import HFConfig, checked
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.encoder_fields import (
    TWO_LAYERS,
    EncoderHead,
    head_names,
    hf_head,
    hf_sizes,
    linears,
    norms,
    read_head,
    read_sizes,
    read_tied,
    without,
)
from ziggurat.models.families.mpnet.config import PADDING_ID, MPNetConfig

POOLER = "pooler.dense.weight"
CLASSES: Mapping[EncoderHead, str] = {
    "none": "MPNetModel",
    "masked_lm": "MPNetForMaskedLM",
    "sequence": "MPNetForSequenceClassification",
    "token": "MPNetForTokenClassification",
}

COPIES: Mapping[str, str] = {
    "lm_head.decoder.weight": "embeddings.word_embeddings.weight",
    "lm_head.decoder.bias": "lm_head.bias",
}
"""Tensors that files may hold of a head of token ids, each of which repeats another."""


def from_hf(values: Mapping[str, Any]) -> MPNetConfig:
    """``config.json`` of MPNet, or of one of its heads, to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    for key in ("is_causal", "is_decoder"):  # without effect: both directions are seen
        hf.given(key)
    settings = read_head(hf, values) | read_sizes(hf)
    read_tied(hf, settings["head"])
    rows = hf.whole("max_position_embeddings", 512)
    settings |= {
        "relative_positions": hf.get("relative_attention_num_buckets"),
        "max_sequence_length": rows - PADDING_ID - 1,
        "pooler": settings["head"] != "sequence",
    }
    hf.finish()
    return checked(MPNetConfig, settings, "config.json")


def to_hf(config: MPNetConfig) -> dict[str, Any]:
    """Config to ``config.json``."""
    own = {
        "model_type": "mpnet",
        "relative_attention_num_buckets": config.relative_positions,
        "max_position_embeddings": config.max_sequence_length + PADDING_ID + 1,
    }
    return hf_head(config, CLASSES) | hf_sizes(config) | own


def as_found(config: MPNetConfig, present: Iterable[str]) -> MPNetConfig:
    """The config with the pooler and the head of token ids that a checkpoint holds."""
    return without(config, present, pooler=POOLER, masked_lm="lm_head.dense.weight")


def hf_names(config: MPNetConfig) -> list[WeightName]:
    """Weight names in safetensors files."""
    base = "" if config.head == "none" else "mpnet."
    layer, embeddings = base + "encoder.layer.{layer}.", base + "embeddings."
    names = [
        WeightName("input.embedding.table", embeddings + "word_embeddings.weight"),
        WeightName("input.positions.table", embeddings + "position_embeddings.weight"),
        WeightName("relative_positions.table", base + "encoder.relative_attention_bias.weight"),
    ]
    names += norms(
        {
            "input.norm": embeddings + "LayerNorm",
            "blocks.attention_norm": layer + "attention.LayerNorm",
            "blocks.mlp_norm": layer + "output.LayerNorm",
        }
    )
    names += linears(
        {
            "blocks.attention.query": layer + "attention.attn.q",
            "blocks.attention.key": layer + "attention.attn.k",
            "blocks.attention.value": layer + "attention.attn.v",
            "blocks.attention.out": layer + "attention.attn.o",
            "blocks.mlp.up": layer + "intermediate.dense",
            "blocks.mlp.down": layer + "output.dense",
        }
    )
    if config.pooler and config.head != "sequence":
        names += linears({"pooler.dense": f"{base}pooler.dense"})
    masked = "lm_head.dense", "lm_head.layer_norm", "lm_head.bias"
    return names + head_names(config, masked, TWO_LAYERS)
