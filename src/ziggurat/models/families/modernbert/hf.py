"""ModernBERT in Hugging Face's ``config.json`` and safetensors."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from ziggurat.core.errors import ModelError
from ziggurat.models.conversion.block_names import stacked_layers
from ziggurat.models.conversion.hf_config import (
    ACTIVATIONS,
    HFConfig,
    activation,
    checked,
    hf_activation,
)
from ziggurat.models.conversion.rotary_settings import hf_rope_parameters, rope_of
from ziggurat.models.conversion.weight_names import AxisSlice, WeightName
from ziggurat.models.families.decoder_fields import read_pattern, write_pattern
from ziggurat.models.families.encoder_fields import (
    EncoderHead,
    hf_head,
    linears,
    norms,
    read_head,
    read_tied,
    without,
)
from ziggurat.models.families.modernbert.config import ModernBertConfig
from ziggurat.nn.mlp import Activation
from ziggurat.nn.rope import RopeConfig

CLASSES: Mapping[EncoderHead, str] = {
    "none": "ModernBertModel",
    "masked_lm": "ModernBertForMaskedLM",
    "sequence": "ModernBertForSequenceClassification",
    "token": "ModernBertForTokenClassification",
}
MLP_PARTS = ("gate", "up")
"""Projections that one tensor holds, in its order of rows."""

COPIES: Mapping[str, str] = {"decoder.weight": "embeddings.tok_embeddings.weight"}
"""A tensor that files may hold of a head of token ids; it repeats the embedding."""


def from_hf(values: Mapping[str, Any]) -> ModernBertConfig:
    """``config.json`` of ModernBERT, or of one of its heads, to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    # transformers reads none of these: norms go by norm_eps, positions are rotary
    for key in ("is_causal", "is_decoder", "layer_norm_eps", "position_embedding_type"):
        hf.given(key)
    settings = read_head(hf, values)
    read_tied(hf, settings["head"])
    layers, length = hf.whole("num_hidden_layers", 22), hf.get("max_position_embeddings")
    every = max(hf.whole("global_attn_every_n_layers", 3), 1)
    types = ["sliding_attention" if i % every else "full_attention" for i in range(layers)]
    pooling = hf.get("classifier_pooling")
    if pooling not in ("cls", "mean"):
        raise ModelError("config.json: classifier_pooling", found=pooling, expected="cls or mean")
    settings |= {
        "vocab_size": hf.get("vocab_size"),
        "d_model": hf.get("hidden_size"),
        "n_layers": layers,
        "n_heads": hf.get("num_attention_heads"),
        "d_ff": hf.get("intermediate_size"),
        "activation": activation(hf, "hidden_activation"),
        "max_sequence_length": length,
        "norm_eps": hf.get("norm_eps"),
        "init_std": hf.get("initializer_range"),
        "window": hf.whole("local_attention", 128) // 2,
        "pattern": read_pattern(hf, layers, types),
        "attention_bias": hf.get("attention_bias"),
        "mlp_bias": hf.get("mlp_bias"),
        "norm_bias": hf.get("norm_bias"),
        "head_bias": hf.get("classifier_bias"),
        "head_activation": _head_activation(hf, settings["head"]),
        "head_pooling": "first" if pooling == "cls" else "mean",
        "logit_bias": hf.get("decoder_bias"),
        **_ropes(hf, length),
    }
    hf.finish()
    return checked(ModernBertConfig, settings, "config.json")


def _head_activation(hf: HFConfig, head: str) -> Activation:
    """The activation of a head; without one, transformers does not look at it."""
    if head != "none":
        return activation(hf, "classifier_activation")
    name = hf.given("classifier_activation")
    return ACTIVATIONS.get(name, "gelu") if isinstance(name, str) else "gelu"


def _ropes(hf: HFConfig, length: Any) -> dict[str, RopeConfig]:
    """Rotary settings of global and local layers: nested in ``rope_parameters`` by type of layer
    (transformers 5), or ``global_rope_theta`` and ``local_rope_theta`` (transformers 4)."""
    given = hf.given("rope_parameters") or {}
    if not isinstance(given, Mapping) or given.keys() - {"full_attention", "sliding_attention"}:
        raise ModelError(
            "config.json: rope_parameters",
            found=repr(given),
            expected="full_attention and sliding_attention",
        )
    scaling = hf.given("rope_scaling") or {}
    # theirs begin as this, so that a scaling which names its kind by type alone is none
    usual = {"rope_type": "default"}
    whole, local = (given.get(k) or usual for k in ("full_attention", "sliding_attention"))
    theta, local_theta = hf.get("global_rope_theta", 160000.0), hf.get("local_rope_theta", 10000.0)
    for table in (whole, local, scaling):
        if not isinstance(table, Mapping):
            raise ModelError("config.json: rope settings", found=repr(table), expected="a table")
    return {
        "rope": rope_of({**whole, **scaling}, theta, length),
        "local_rope": rope_of({**local, **scaling}, local_theta, length),
    }


def to_hf(config: ModernBertConfig) -> dict[str, Any]:
    """Config to ``config.json``."""
    return hf_head(config, CLASSES) | {
        "model_type": "modernbert",
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "intermediate_size": config.feed_forward,
        "hidden_activation": hf_activation(config.activation),
        "max_position_embeddings": config.max_sequence_length,
        "norm_eps": config.norm_eps,
        "norm_bias": config.norm_bias,
        "initializer_range": config.init_std,
        "local_attention": 2 * config.window,
        "layer_types": write_pattern(config.pattern, config.n_layers),
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "classifier_bias": config.head_bias,
        "classifier_activation": hf_activation(config.head_activation),
        "classifier_pooling": "cls" if config.head_pooling == "first" else "mean",
        "decoder_bias": config.logit_bias,
        "rope_parameters": {
            "full_attention": hf_rope_parameters(config.rope),
            "sliding_attention": hf_rope_parameters(config.local_rope),
        },
    }


def as_found(config: ModernBertConfig, present: Iterable[str]) -> ModernBertConfig:
    """The config without a head of token ids that a checkpoint does not hold."""
    return without(config, present, masked_lm="head.dense.weight")


def hf_names(config: ModernBertConfig) -> list[WeightName]:
    """Weight names in safetensors files."""
    base = "" if config.head == "none" else "model."
    names = [WeightName("input.embedding.table", base + "embeddings.tok_embeddings.weight")]
    ends = {"input.norm": base + "embeddings.norm", "final_norm": base + "final_norm"}
    names += norms(ends, bias=config.norm_bias)
    for stack, layers in stacked_layers(config.encoder()).items():
        for name in _block_names(config, stack, base + "layers.{layer}."):
            names.append(dataclasses.replace(name, layers=layers))
    if config.head != "none":
        names += linears({"head.transform.dense": "head.dense"}, bias=config.head_bias)
        names += norms({"head.transform.norm": "head.norm"}, bias=config.norm_bias)
    if config.head == "masked_lm":
        names += [WeightName("head.bias", "decoder.bias")] if config.logit_bias else []
    elif config.head != "none":
        names += linears({"head.out": "classifier"})
    return names


def _block_names(config: ModernBertConfig, stack: str, layer: str) -> list[WeightName]:
    """Names of a stack of blocks, of which the first has no norm before attention."""
    table = {"mlp_norm": "mlp_norm"} | (
        {} if stack == "blocks" else {"attention_norm": "attn_norm"}
    )
    names = norms(
        {f"{stack}.{ours}": layer + theirs for ours, theirs in table.items()},
        bias=config.norm_bias,
    )
    for parts, ours, theirs, rows, bias in (
        (
            ("query", "key", "value"),
            "attention",
            "attn.Wqkv",
            config.d_model,
            config.attention_bias,
        ),
        (MLP_PARTS, "mlp", "mlp.Wi", config.feed_forward, config.mlp_bias),
    ):
        for number, part in enumerate(parts):
            entries = AxisSlice(0, slice(number * rows, (number + 1) * rows))
            for name in linears({f"{stack}.{ours}.{part}": layer + theirs}, bias=bias):
                names.append(dataclasses.replace(name, part=entries))
    out = {f"{stack}.attention.out": layer + "attn.Wo"}
    down = {f"{stack}.mlp.down": layer + "mlp.Wo"}
    return [
        *names,
        *linears(out, bias=config.attention_bias),
        *linears(down, bias=config.mlp_bias),
    ]
