"""DeBERTa-v2 in Hugging Face's ``config.json`` and safetensors."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from ziggurat.core.errors import ModelError
from ziggurat.models.conversion.hf_config import HFConfig, activation, checked, hf_activation
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.deberta.config import DebertaV2Config
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

CLASSES: Mapping[EncoderHead, str] = {
    "none": "DebertaV2Model",
    "masked_lm": "DebertaV2ForMaskedLM",
    "sequence": "DebertaV2ForSequenceClassification",
    "token": "DebertaV2ForTokenClassification",
}
COPIES: Mapping[str, str] = {
    "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
"""Tensors that files may hold of a head of token ids, each of which repeats another."""
LEGACY, HEAD = "cls.predictions.", "lm_predictions.lm_head."
"""Beginnings of the names of the two heads of token ids."""
PRETRAINING = (LEGACY, HEAD, "mask_predictions.")
TERMS = ("c2p", "p2c")


def from_hf(values: Mapping[str, Any]) -> DebertaV2Config:
    """``config.json`` of ``DebertaV2Model``, or of one of its heads, to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    settings = read_head(hf, values) | read_sizes(hf) | _inputs(hf)
    settings |= _distances(hf) | _convolution(hf)
    legacy = bool(hf.get("legacy"))
    read_tied(hf, settings["head"] if legacy else "none")  # the other head is tied in any case
    if settings["head"] == "sequence":
        settings["pooler_activation"] = activation(hf, "pooler_hidden_act")
    else:
        hf.given("pooler_hidden_act")
    hf.finish()
    return checked(DebertaV2Config, settings | {"legacy_head": legacy}, "config.json")


def _inputs(hf: HFConfig) -> dict[str, Any]:
    """Settings of what is added to embeddings; widths that differ elsewhere are refused."""
    width, heads = hf.whole("hidden_size"), hf.whole("num_attention_heads")
    hf.refuse_unless("pooler_hidden_size", (width,), "the pooler is as wide as the states here")
    if heads:
        hf.refuse_unless("attention_head_size", (width // heads,))
    kinds = hf.get("type_vocab_size")
    return {
        "embedding_width": hf.given("embedding_size"),
        "learned_positions": bool(hf.get("position_biased_input")),
        "token_types": max(0, kinds) if isinstance(kinds, int) else kinds,
        "max_sequence_length": hf.get("max_position_embeddings"),
    }


def _distances(hf: HFConfig) -> dict[str, Any]:
    """Settings of distances in attention; those without effect are left at their defaults."""
    names = hf.given("pos_att_type")
    if isinstance(names, str):
        names = [name.strip() for name in names.lower().split("|") if name.strip()]
    relative = bool(hf.get("relative_attention"))
    unknown = isinstance(names, list) and set(map(str, names)) - set(TERMS)
    if (relative and unknown) or not isinstance(names or [], list):
        raise ModelError(
            "config.json: pos_att_type", found=repr(names), expected="c2p, p2c or both"
        )
    terms = [term for term in TERMS if term in (names or [])]
    settings: dict[str, Any] = {
        "position_terms": terms,
        "relative": relative and bool(terms),
    }
    longest, buckets = hf.get("max_relative_positions"), hf.get("position_buckets")
    shared, normed = hf.get("share_att_key"), hf.get("norm_rel_ebd")
    if not settings["relative"]:
        return settings
    settings["shared_projections"] = bool(shared)
    settings["normed_distances"] = "layer_norm" in [x.strip() for x in normed.lower().split("|")]
    # numbers below 1 say that there is none
    for name, value in (("longest_distance", longest), ("buckets", buckets)):
        none = isinstance(value, int) and value < 1
        settings[name] = None if none else value
    return settings


def _convolution(hf: HFConfig) -> dict[str, Any]:
    """Settings of the convolution; an absent size means that there is none."""
    size = hf.given("conv_kernel_size")
    act, groups = hf.given("conv_act"), hf.given("conv_groups")
    if size is None or (isinstance(size, int) and size <= 0):
        return {}
    return {
        "convolution": size,
        "convolution_activation": "tanh" if act is None else activation(hf, "conv_act"),
        "convolution_groups": 1 if groups is None else groups,
    }


def to_hf(config: DebertaV2Config) -> dict[str, Any]:
    """Config to ``config.json``."""
    values = hf_head(config, CLASSES) | hf_sizes(config)
    values |= {
        "model_type": "deberta-v2",
        "max_position_embeddings": config.max_sequence_length,
        "position_biased_input": config.learned_positions,
        "type_vocab_size": config.token_types,
        "relative_attention": config.relative,
        "pos_att_type": list(config.position_terms),
        "max_relative_positions": config.longest_distance or -1,
        "position_buckets": config.buckets or -1,
        "share_att_key": config.shared_projections,
        "norm_rel_ebd": "layer_norm" if config.normed_distances else "none",
        "pooler_hidden_act": hf_activation(config.pooler_activation),
        "legacy": config.legacy_head,
    }
    if config.projects:
        values["embedding_size"] = config.embedding_width
    if config.convolution:
        values |= {
            "conv_kernel_size": config.convolution,
            "conv_act": hf_activation(config.convolution_activation),
            "conv_groups": config.convolution_groups,
        }
    return values


def as_found(config: DebertaV2Config, present: Iterable[str]) -> DebertaV2Config:
    """The config with the head of token ids that a checkpoint holds, by either of its names."""
    if config.head != "masked_lm":
        return config
    names = list(present)
    if any(name.endswith(f"{HEAD}dense.weight") for name in names):
        config = dataclasses.replace(config, legacy_head=False)
    elif any(name.endswith(f"{LEGACY}transform.dense.weight") for name in names):
        config = dataclasses.replace(config, legacy_head=True)
    dense = f"{LEGACY}transform" if config.legacy_head else HEAD.removesuffix(".")
    return without(config, names, masked_lm=f"{dense}.dense.weight")


def ignored(config: DebertaV2Config, name: str) -> bool:
    """Whether a tensor is of a part that the config does not have: a head of pretraining, positions
    or distances."""
    if name.endswith("embeddings.position_embeddings.weight"):
        return not config.learned_positions
    if name.endswith(("encoder.rel_embeddings.weight", "encoder.LayerNorm.weight")):
        return not config.relative
    if name.endswith("encoder.LayerNorm.bias"):
        return not config.relative
    return name.startswith("mask_predictions.") or left_out(config, name, *PRETRAINING, pooler=None)


def hf_names(config: DebertaV2Config) -> list[WeightName]:
    """Weight names in safetensors files."""
    base = "" if config.head == "none" else "deberta."
    names = [*_embeddings(config, base), *_blocks(config, base)]
    before, bias = (f"{LEGACY}transform.", LEGACY) if config.legacy_head else (HEAD, HEAD)
    names += head_names(config, (f"{before}dense", f"{before}LayerNorm", f"{bias}bias"))
    if config.head == "sequence":
        names += linears({"pooler.dense": "pooler.dense"})
    return names


def _embeddings(config: DebertaV2Config, base: str) -> list[WeightName]:
    """Names of embeddings, vectors of distances and the convolution."""
    embeddings, encoder = f"{base}embeddings.", f"{base}encoder."
    tables = {"input.embedding": f"{embeddings}word_embeddings"}
    if config.learned_positions:
        tables["input.positions"] = f"{embeddings}position_embeddings"
    if config.token_types:
        tables["input.token_types"] = f"{embeddings}token_type_embeddings"
    if config.relative:
        tables["relative_embeddings"] = f"{encoder}rel_embeddings"
    names = [WeightName(f"{ours}.table", f"{theirs}.weight") for ours, theirs in tables.items()]
    names += norms({"input.norm": f"{embeddings}LayerNorm"})
    if config.projects:
        names += linears({"input.projection": f"{embeddings}embed_proj"}, bias=False)
    if config.relative and config.normed_distances:
        names += norms({"relative_embeddings.norm": f"{encoder}LayerNorm"})
    if config.convolution:
        names.append(WeightName("convolution.kernel", f"{encoder}conv.conv.weight"))
        names.append(WeightName("convolution.bias", f"{encoder}conv.conv.bias"))
        names += norms({"convolution.norm": f"{encoder}conv.LayerNorm"})
    return names


def _blocks(config: DebertaV2Config, base: str) -> list[WeightName]:
    """Names of the blocks."""
    layer = f"{base}encoder.layer.{{layer}}."
    table = {
        "attention.query": "attention.self.query_proj",
        "attention.key": "attention.self.key_proj",
        "attention.value": "attention.self.value_proj",
        "attention.out": "attention.output.dense",
        "mlp.up": "intermediate.dense",
        "mlp.down": "output.dense",
    }
    own = config.relative and not config.shared_projections
    if own and "c2p" in config.position_terms:
        table["attention.distance_key"] = "attention.self.pos_key_proj"
    if own and "p2c" in config.position_terms:
        table["attention.distance_query"] = "attention.self.pos_query_proj"
    ends = {"attention_norm": "attention.output.LayerNorm", "mlp_norm": "output.LayerNorm"}
    return [
        *norms({f"blocks.{ours}": layer + theirs for ours, theirs in ends.items()}),
        *linears({f"blocks.{ours}": layer + theirs for ours, theirs in table.items()}),
    ]
