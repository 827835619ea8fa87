"""MPNet in Hugging Face's ``config.json`` and safetensors."""

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
    settings = read_head(hf, values)
    if settings["head"] == "masked_lm":
        hf.refuse_unless("tie_word_embeddings", (True,), "the head's matrix is the embedding here")
    else:
        hf.given("tie_word_embeddings")
    rows = hf.whole("max_position_embeddings", 512)
    settings |= {
        "vocab_size": hf.need("vocab_size"),
        "d_model": hf.need("hidden_size"),
        "n_layers": hf.need("num_hidden_layers"),
        "n_heads": hf.need("num_attention_heads"),
        "d_ff": hf.need("intermediate_size"),
        "activation": activation(hf),
        "relative_positions": hf.get("relative_attention_num_buckets"),
        "max_sequence_length": rows - PADDING_ID - 1,
        "norm_eps": hf.get("layer_norm_eps"),
        "init_std": hf.get("initializer_range"),
        "pooler": settings["head"] != "sequence",
    }
    hf.finish()
    return checked(MPNetConfig, settings, "config.json")


def to_hf(config: MPNetConfig) -> dict[str, Any]:
    """Config to ``config.json``."""
    return hf_head(config, CLASSES) | {
        "model_type": "mpnet",
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "intermediate_size": config.feed_forward,
        "hidden_act": hf_activation(config.activation),
        "relative_attention_num_buckets": config.relative_positions,
        "max_position_embeddings": config.max_sequence_length + PADDING_ID + 1,
        "layer_norm_eps": config.norm_eps,
        "initializer_range": config.init_std,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


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
    if config.head == "masked_lm":
        names += linears({"head.transform.dense": "lm_head.dense"})
        names += norms({"head.transform.norm": "lm_head.layer_norm"})
        names.append(WeightName("head.bias", "lm_head.bias"))
    elif config.head == "sequence":
        names += linears(
            {"head.transform.dense": "classifier.dense", "head.out": "classifier.out_proj"}
        )
    elif config.head == "token":
        names += linears({"head.out": "classifier"})
    return names
