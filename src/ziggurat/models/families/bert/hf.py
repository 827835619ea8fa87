"""BERT in Hugging Face's ``config.json`` and safetensors."""

from collections.abc import Iterable, Mapping
from typing import Any

from ziggurat.models.conversion.hf_config import HFConfig, checked
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.bert.config import BertConfig
from ziggurat.models.families.encoder_fields import (
    EncoderHead,
    head_names,
    hf_head,
    hf_sizes,
    left_out,
    linears,
    norms,
    read_head,
    read_sizes,
    read_tied,
    without,
)

WITHOUT_EFFECT = ("is_causal",)
"""An encoder sees both directions whatever this says."""
UNREAD = tuple(f"cls.seq_relationship.{part}" for part in ("weight", "bias"))
"""Tensors of the head that tells whether one text follows another, of pretraining."""
POOLER = "pooler.dense.weight"
"""A tensor that encoders with a pooler have; ``config.json`` does not say."""
TRANSFORM = "cls.predictions.transform"
CLASSES: Mapping[EncoderHead, str] = {
    "none": "BertModel",
    "masked_lm": "BertForMaskedLM",
    "sequence": "BertForSequenceClassification",
    "token": "BertForTokenClassification",
}

COPIES: Mapping[str, str] = {
    "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
"""Tensors that files may hold of a head of token ids, each of which repeats another."""


def from_hf(values: Mapping[str, Any]) -> BertConfig:
    """``config.json`` of ``BertModel``, or of one of its heads, to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    settings = common_settings(hf, values) | {
        "max_sequence_length": hf.get("max_position_embeddings")
    }
    hf.finish()
    return checked(BertConfig, settings, "config.json")


def common_settings(hf: HFConfig, values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that BERT and RoBERTa have in common."""
    for key in WITHOUT_EFFECT:
        hf.given(key)
    hf.refuse_unless("is_decoder", (False,), "attention here is in both directions")
    hf.refuse_unless("add_cross_attention", (False,))
    hf.refuse_unless("position_embedding_type", ("absolute",))
    settings = read_head(hf, values)
    read_tied(hf, settings["head"])
    return settings | read_sizes(hf) | {"token_types": hf.get("type_vocab_size")}


def to_hf(config: BertConfig) -> dict[str, Any]:
    """Config to ``config.json``."""
    return common_values(config, CLASSES) | {
        "model_type": "bert",
        "max_position_embeddings": config.max_sequence_length,
    }


def common_values(config: Any, classes: Mapping[EncoderHead, str]) -> dict[str, Any]:
    """Keys that BERT and RoBERTa have in common."""
    kinds = {"type_vocab_size": config.token_types}
    return hf_head(config, classes) | hf_sizes(config) | kinds


def as_found(config: BertConfig, present: Iterable[str]) -> BertConfig:
    """The config with the pooler and the head of token ids that a checkpoint holds."""
    return without(config, present, pooler=POOLER, masked_lm=f"{TRANSFORM}.dense.weight")


def ignored(config: BertConfig, name: str) -> bool:
    """Whether a tensor is of a head of pretraining that the config does not have."""
    return name.endswith(UNREAD) or left_out(config, name, "cls.predictions.", pooler=None)


def hf_names(config: BertConfig) -> list[WeightName]:
    """Weight names in safetensors files."""
    base = "" if config.head == "none" else "bert."
    names = encoder_names(base)
    names += linears({"pooler.dense": f"{base}pooler.dense"}) if config.pooler else []
    masked = f"{TRANSFORM}.dense", f"{TRANSFORM}.LayerNorm", "cls.predictions.bias"
    return names + head_names(config, masked)


def encoder_names(base: str) -> list[WeightName]:
    """Names of the embeddings and blocks under ``base``."""
    layer, embeddings = base + "encoder.layer.{layer}.", base + "embeddings."
    names = [
        WeightName("input.embedding.table", embeddings + "word_embeddings.weight"),
        WeightName("input.positions.table", embeddings + "position_embeddings.weight"),
        WeightName("input.token_types.table", embeddings + "token_type_embeddings.weight"),
    ]
    names += norms(
        {
            "input.norm": embeddings + "LayerNorm",
            "blocks.attention_norm": layer + "attention.output.LayerNorm",
            "blocks.mlp_norm": layer + "output.LayerNorm",
        }
    )
    return names + linears(
        {
            "blocks.attention.query": layer + "attention.self.query",
            "blocks.attention.key": layer + "attention.self.key",
            "blocks.attention.value": layer + "attention.self.value",
            "blocks.attention.out": layer + "attention.output.dense",
            "blocks.mlp.up": layer + "intermediate.dense",
            "blocks.mlp.down": layer + "output.dense",
        }
    )
