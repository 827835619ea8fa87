"""ELECTRA in Hugging Face's ``config.json`` and safetensors."""

from collections.abc import Iterable, Mapping
from typing import Any

from ziggurat.models.conversion.hf_config import HFConfig, checked
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.bert.hf import common_settings, common_values, encoder_names
from ziggurat.models.families.electra.config import ElectraConfig
from ziggurat.models.families.encoder_fields import (
    TWO_LAYERS,
    EncoderHead,
    head_names,
    left_out,
    linears,
    without,
)

WITHOUT_EFFECT = ("summary_type", "summary_use_proj", "summary_activation")
"""Keys of a head that scores choices, which is not read."""
CLASSES: Mapping[EncoderHead, str] = {
    "none": "ElectraModel",
    "masked_lm": "ElectraForMaskedLM",
    "sequence": "ElectraForSequenceClassification",
    "token": "ElectraForTokenClassification",
    "replaced": "ElectraForPreTraining",
}
COPIES: Mapping[str, str] = {"generator_lm_head.weight": "embeddings.word_embeddings.weight"}
"""Tensors that files may hold of a head of token ids, each of which repeats another."""
GENERATOR = ("generator_predictions.", "generator_lm_head.")
DISCRIMINATOR = "discriminator_predictions."


def from_hf(values: Mapping[str, Any]) -> ElectraConfig:
    """``config.json`` of ``ElectraModel``, or of one of its heads, to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    for key in WITHOUT_EFFECT:
        hf.given(key)
    settings = common_settings(hf, values) | {
        "max_sequence_length": hf.get("max_position_embeddings"),
        "embedding_width": hf.get("embedding_size"),
    }
    hf.finish()
    return checked(ElectraConfig, settings, "config.json")


def to_hf(config: ElectraConfig) -> dict[str, Any]:
    """Config to ``config.json``."""
    return common_values(config, CLASSES) | {
        "model_type": "electra",
        "max_position_embeddings": config.max_sequence_length,
        "embedding_size": config.embedding_width,
    }


def as_found(config: ElectraConfig, present: Iterable[str]) -> ElectraConfig:
    """The config with the head of token ids that a checkpoint holds."""
    return without(config, present, masked_lm="generator_predictions.dense.weight")


def ignored(config: ElectraConfig, name: str) -> bool:
    """Whether a tensor is of a head of pretraining that the config does not have."""
    return left_out(config, name, *GENERATOR, DISCRIMINATOR, pooler=None)


def hf_names(config: ElectraConfig) -> list[WeightName]:
    """Weight names in safetensors files."""
    base = "" if config.head == "none" else "electra."
    names = encoder_names(base)
    if config.projects:
        names += linears({"input.projection": f"{base}embeddings_project"})
    dense, norm = (f"generator_predictions.{part}" for part in ("dense", "LayerNorm"))
    names += head_names(config, (dense, norm, "generator_lm_head.bias"), TWO_LAYERS)
    if config.head == "replaced":
        there = {"head.transform.dense": "dense", "head.out": "dense_prediction"}
        names += linears({ours: DISCRIMINATOR + theirs for ours, theirs in there.items()})
    return names
