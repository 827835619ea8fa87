"""RoBERTa and XLM-RoBERTa in Hugging Face's ``config.json`` and safetensors."""

from collections.abc import Iterable, Mapping
from typing import Any

from ziggurat.models.conversion.hf_config import HFConfig, checked
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.bert.hf import (
    POOLER,
    common_settings,
    common_values,
    encoder_names,
)
from ziggurat.models.families.encoder_fields import (
    TWO_LAYERS,
    EncoderHead,
    head_names,
    linears,
    without,
)
from ziggurat.models.families.roberta.config import RobertaConfig

STEMS = {"roberta": "Roberta", "xlm-roberta": "XLMRoberta", "camembert": "Camembert"}
"""Beginnings of the names of transformers' classes, by type of model."""
ENDS: Mapping[EncoderHead, str] = {
    "none": "Model",
    "masked_lm": "ForMaskedLM",
    "sequence": "ForSequenceClassification",
    "token": "ForTokenClassification",
}

COPIES: Mapping[str, str] = {
    "lm_head.decoder.weight": "embeddings.word_embeddings.weight",
    "lm_head.decoder.bias": "lm_head.bias",
}
"""Tensors that files may hold of a head of token ids, each of which repeats another."""


def from_hf(values: Mapping[str, Any]) -> RobertaConfig:
    """``config.json`` of RoBERTa, or of one of its heads, to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    padding, rows = hf.whole("pad_token_id", 1), hf.whole("max_position_embeddings", 512)
    settings = common_settings(hf, values) | {
        "variant": hf.model_type,
        "padding_id": padding,
        "max_sequence_length": rows - padding - 1,
    }
    settings["pooler"] = settings["head"] != "sequence"
    hf.finish()
    return checked(RobertaConfig, settings, "config.json")


def to_hf(config: RobertaConfig) -> dict[str, Any]:
    """Config to ``config.json``."""
    classes: dict[EncoderHead, str] = {
        head: STEMS[config.variant] + end for head, end in ENDS.items()
    }
    return common_values(config, classes) | {
        "model_type": config.variant,
        "max_position_embeddings": config.max_sequence_length + config.padding_id + 1,
        "pad_token_id": config.padding_id,
    }


def as_found(config: RobertaConfig, present: Iterable[str]) -> RobertaConfig:
    """The config with the pooler and the head of token ids that a checkpoint holds."""
    return without(config, present, pooler=POOLER, masked_lm="lm_head.dense.weight")


def hf_names(config: RobertaConfig) -> list[WeightName]:
    """Weight names in safetensors files."""
    base = "" if config.head == "none" else "roberta."
    names = encoder_names(base)
    if config.pooler and config.head != "sequence":
        names += linears({"pooler.dense": f"{base}pooler.dense"})
    masked = "lm_head.dense", "lm_head.layer_norm", "lm_head.bias"
    return names + head_names(config, masked, TWO_LAYERS)
