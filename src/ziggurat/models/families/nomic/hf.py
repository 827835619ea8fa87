"""Nomic's encoder in Hugging Face's ``config.json`` and safetensors."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from ziggurat.core.errors import ModelError
from ziggurat.models.conversion.hf_config import HFConfig, activation, checked, hf_activation
from ziggurat.models.conversion.rotary_settings import hf_rope_parameters, read_rope
from ziggurat.models.conversion.weight_names import AxisSlice, WeightName
from ziggurat.models.families.encoder_fields import (
    EncoderHead,
    hf_head,
    linears,
    norms,
    read_head,
    read_tied,
    without,
)
from ziggurat.models.families.nomic.config import NomicConfig

POOLER = "pooler.dense.weight"
TRANSFORM = "cls.predictions.transform"
CLASSES: Mapping[EncoderHead, str] = {
    "none": "NomicBertModel",
    "masked_lm": "NomicBertForMaskedLM",
    "sequence": "NomicBertForSequenceClassification",
    "token": "NomicBertForTokenClassification",
}
EARLIER: Mapping[str, str] = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_positions": "max_position_embeddings",
    "layer_norm_epsilon": "layer_norm_eps",
    "rotary_emb_base": "rope_theta",
}
"""Keys of the publisher's own code, and what transformers calls them."""
ALWAYS: Mapping[str, tuple[Any, ...]] = {
    "activation_function": ("swiglu",),
    "causal": (False,),
    "dense_seq_output": (True, False),
    "fused_bias_fc": (True, False),
    "fused_dropout_add_ln": (True, False),
    "last_layer_subset": (False,),
    "max_trained_positions": (2048,),
    "mlp_fc1_bias": (False,),
    "mlp_fc2_bias": (False,),
    "pad_vocab_size_multiple": (1, 8, 64, 128),
    "parallel_block": (False,),
    "prenorm": (False,),
    "qkv_proj_bias": (False,),
    "rotary_emb_fraction": (1, 1.0),
    "rotary_emb_interleaved": (False,),
    "rotary_emb_scale_base": (None,),
    "rotary_scaling_factor": (None,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "scale_attn_weights": (True,),
    "use_rms_norm": (False,),
    "use_xentropy": (True, False),
}
"""Other keys of that code, and the values for which transformers' class computes the same."""
TRAINED_LENGTH = 2048
"""Tokens up to which rotary positions are as trained; that code stretches them beyond."""

COPIES: Mapping[str, str] = {
    "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
"""Tensors that files may hold of a head of token ids, each of which repeats another."""


def from_hf(values: Mapping[str, Any]) -> NomicConfig:
    """``config.json`` of Nomic's encoder, in transformers' form or its publisher's.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    values = _renamed(values)
    hf = HFConfig(values)
    for key in ("is_causal", "is_decoder"):  # without effect: both directions are seen
        hf.given(key)
    settings = read_head(hf, values)
    read_tied(hf, settings["head"])
    length = hf.whole("max_position_embeddings", 2048)
    settings |= {
        "vocab_size": hf.get("vocab_size"),
        "d_model": hf.get("hidden_size"),
        "n_layers": hf.get("num_hidden_layers"),
        "n_heads": hf.get("num_attention_heads"),
        "d_ff": hf.get("intermediate_size"),
        "head_dim": hf.given("head_dim"),
        "activation": activation(hf),
        "token_types": hf.get("type_vocab_size"),
        "max_sequence_length": length,
        "norm_eps": hf.get("layer_norm_eps"),
        "init_std": hf.get("initializer_range"),
        "rope": read_rope(hf, length),
        "pooler": settings["head"] == "sequence",
    }
    hf.finish()
    return checked(NomicConfig, settings, "config.json")


def _renamed(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The publisher's form in transformers' words."""
    if "n_embd" not in values:
        return values
    for key, accepted in ALWAYS.items():
        if key in values and values[key] not in accepted:
            raise ModelError(
                f"config.json: {key}",
                found=repr(values[key]),
                expected=" or ".join(map(repr, accepted)),
                fix="this switch is not implemented for the family",
            )
    found = {EARLIER.get(k, k): v for k, v in values.items() if k not in ALWAYS}
    longest = found.get("max_position_embeddings")
    if isinstance(longest, int):
        found["max_position_embeddings"] = min(longest, TRAINED_LENGTH)
    return {k: v for k, v in found.items() if not k.startswith("parallel_block")}


def to_hf(config: NomicConfig) -> dict[str, Any]:
    """Config to ``config.json``."""
    return hf_head(config, CLASSES) | {
        "model_type": "nomic_bert",
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "head_dim": config.channels_per_head,
        "intermediate_size": config.feed_forward,
        "hidden_act": hf_activation(config.activation),
        "type_vocab_size": config.token_types,
        "max_position_embeddings": config.max_sequence_length,
        "layer_norm_eps": config.norm_eps,
        "initializer_range": config.init_std,
        "rope_parameters": hf_rope_parameters(config.rope),
    }


def as_found(config: NomicConfig, present: Iterable[str]) -> NomicConfig:
    """The config with the pooler and the head of token ids that a checkpoint holds."""
    return without(config, present, pooler=POOLER, masked_lm=f"{TRANSFORM}.dense.weight")


def hf_names(config: NomicConfig) -> list[WeightName]:
    """Weight names in safetensors files."""
    base = "" if config.head == "none" else "nomic_bert."
    layer = base + "encoder.layers.{layer}."
    rows = config.n_heads * config.channels_per_head
    names = [
        WeightName("input.embedding.table", base + "embeddings.word_embeddings.weight"),
        WeightName("input.token_types.table", base + "embeddings.token_type_embeddings.weight"),
    ]
    names += norms(
        {
            "input.norm": base + "emb_ln",
            "blocks.attention_norm": layer + "norm1",
            "blocks.mlp_norm": layer + "norm2",
        }
    )
    for number, part in enumerate(("query", "key", "value")):
        (name,) = linears({f"blocks.attention.{part}": layer + "attn.Wqkv"}, bias=False)
        entries = slice(number * rows, (number + 1) * rows)
        names.append(dataclasses.replace(name, part=AxisSlice(0, entries)))
    projections = {
        "blocks.attention.out": layer + "attn.out_proj",
        "blocks.mlp.up": layer + "mlp.fc11",
        "blocks.mlp.gate": layer + "mlp.fc12",
        "blocks.mlp.down": layer + "mlp.fc2",
    }
    names += linears(projections, bias=False)
    names += linears({"pooler.dense": f"{base}pooler.dense"}) if config.pooler else []
    if config.head == "masked_lm":
        names += linears({"head.transform.dense": f"{TRANSFORM}.dense"})
        names += norms({"head.transform.norm": f"{TRANSFORM}.layer_norm"})
        names.append(WeightName("head.bias", "cls.predictions.bias"))
    elif config.head != "none":
        names += linears({"head.out": "classifier"})
    return names
