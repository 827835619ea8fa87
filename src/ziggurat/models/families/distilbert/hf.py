"""DistilBERT in Hugging Face's ``config.json`` and safetensors."""

from collections.abc import Iterable, Mapping
from typing import Any

from ziggurat.models.conversion.hf_config import HFConfig, activation, checked, hf_activation
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.distilbert.config import DistilBertConfig
from ziggurat.models.families.encoder_fields import (
    ONE_LAYER,
    EncoderHead,
    head_names,
    hf_head,
    linears,
    norms,
    read_head,
    read_tied,
    without,
)

WITHOUT_EFFECT = ("is_causal", "is_decoder", "sinusoidal_pos_embds")
"""An encoder sees both directions; the table of positions is in the checkpoint whatever it was
filled with at first."""
CLASSES: Mapping[EncoderHead, str] = {
    "none": "DistilBertModel",
    "masked_lm": "DistilBertForMaskedLM",
    "sequence": "DistilBertForSequenceClassification",
    "token": "DistilBertForTokenClassification",
}

COPIES: Mapping[str, str] = {"vocab_projector.weight": "embeddings.word_embeddings.weight"}
"""A tensor that files may hold of a head of token ids; it repeats the embedding."""


def from_hf(values: Mapping[str, Any]) -> DistilBertConfig:
    """``config.json`` of DistilBERT, or of one of its heads, to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    for key in WITHOUT_EFFECT:
        hf.given(key)
    settings = read_head(hf, values)
    read_tied(hf, settings["head"])
    settings |= {
        "vocab_size": hf.need("vocab_size"),
        "d_model": hf.need("dim"),
        "n_layers": hf.need("n_layers"),
        "n_heads": hf.need("n_heads"),
        "d_ff": hf.need("hidden_dim"),
        "activation": activation(hf, "activation"),
        "max_sequence_length": hf.get("max_position_embeddings"),
        "init_std": hf.get("initializer_range"),
    }
    hf.finish()
    return checked(DistilBertConfig, settings, "config.json")


def to_hf(config: DistilBertConfig) -> dict[str, Any]:
    """Config to ``config.json``."""
    return hf_head(config, CLASSES) | {
        "model_type": "distilbert",
        "vocab_size": config.vocab_size,
        "dim": config.d_model,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "hidden_dim": config.feed_forward,
        "activation": hf_activation(config.activation),
        "max_position_embeddings": config.max_sequence_length,
        "initializer_range": config.init_std,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    }


def as_found(config: DistilBertConfig, present: Iterable[str]) -> DistilBertConfig:
    """The config without a head of token ids that a checkpoint does not hold."""
    return without(config, present, masked_lm="vocab_transform.weight")


def hf_names(config: DistilBertConfig) -> list[WeightName]:
    """Weight names in safetensors files."""
    base = "" if config.head == "none" else "distilbert."
    layer, embeddings = base + "transformer.layer.{layer}.", base + "embeddings."
    names = [
        WeightName("input.embedding.table", embeddings + "word_embeddings.weight"),
        WeightName("input.positions.table", embeddings + "position_embeddings.weight"),
    ]
    names += norms(
        {
            "input.norm": embeddings + "LayerNorm",
            "blocks.attention_norm": layer + "sa_layer_norm",
            "blocks.mlp_norm": layer + "output_layer_norm",
        }
    )
    names += linears(
        {
            "blocks.attention.query": layer + "attention.q_lin",
            "blocks.attention.key": layer + "attention.k_lin",
            "blocks.attention.value": layer + "attention.v_lin",
            "blocks.attention.out": layer + "attention.out_lin",
            "blocks.mlp.up": layer + "ffn.lin1",
            "blocks.mlp.down": layer + "ffn.lin2",
        }
    )
    masked = "vocab_transform", "vocab_layer_norm", "vocab_projector.bias"
    before = {"head.transform.dense": "pre_classifier"}
    return names + head_names(config, masked, {**before, **ONE_LAYER})
