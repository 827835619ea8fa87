"""BERT in Hugging Face's ``config.json`` and safetensors."""

from collections.abc import Mapping
from typing import Any

from ziggurat.models.conversion.hf_config import HFConfig, activation, checked, hf_activation
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.bert.config import BertConfig

WITHOUT_EFFECT = ("tie_word_embeddings", "is_causal")
"""An encoder has no head to tie, and sees both directions whatever the second says."""
HEAD = tuple(
    f"cls.{layer}.{part}"
    for layer in (
        "predictions",
        "predictions.decoder",
        "predictions.transform.dense",
        "predictions.transform.LayerNorm",
        "seq_relationship",
    )
    for part in ("weight", "bias")
)
"""Tensors of the heads of pretraining, which the encoder's states do not go through."""
POOLER = "pooler.dense.weight"
"""A tensor that encoders with a pooler have; ``config.json`` does not say."""


def from_hf(values: Mapping[str, Any]) -> BertConfig:
    """``config.json`` of ``BertModel`` to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    for key in WITHOUT_EFFECT:
        hf.given(key)
    hf.refuse_unless("is_decoder", (False,), "attention here is in both directions")
    hf.refuse_unless("add_cross_attention", (False,))
    hf.refuse_unless("position_embedding_type", ("absolute",))
    settings = {
        "vocab_size": hf.need("vocab_size"),
        "d_model": hf.need("hidden_size"),
        "n_layers": hf.need("num_hidden_layers"),
        "n_heads": hf.need("num_attention_heads"),
        "d_ff": hf.need("intermediate_size"),
        "activation": activation(hf),
        "max_sequence_length": hf.get("max_position_embeddings"),
        "token_types": hf.get("type_vocab_size"),
        "norm_eps": hf.get("layer_norm_eps"),
        "init_std": hf.get("initializer_range"),
    }
    hf.finish()
    return checked(BertConfig, settings, "config.json")


def to_hf(config: BertConfig) -> dict[str, Any]:
    """Config to ``config.json``."""
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "intermediate_size": config.d_ff or 4 * config.d_model,
        "hidden_act": hf_activation(config.activation),
        "max_position_embeddings": config.max_sequence_length,
        "type_vocab_size": config.token_types,
        "layer_norm_eps": config.norm_eps,
        "initializer_range": config.init_std,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


def hf_names(config: BertConfig) -> list[WeightName]:
    """Weight names in safetensors files."""
    layer = "encoder.layer.{layer}."
    names = [
        WeightName("embedding.table", "embeddings.word_embeddings.weight"),
        WeightName("positions.table", "embeddings.position_embeddings.weight"),
        WeightName("token_types.table", "embeddings.token_type_embeddings.weight"),
    ]
    for ours, theirs in {
        "embedding_norm": "embeddings.LayerNorm",
        "blocks.attention_norm": layer + "attention.output.LayerNorm",
        "blocks.mlp_norm": layer + "output.LayerNorm",
    }.items():
        names.append(WeightName(f"{ours}.scale", f"{theirs}.weight"))
        names.append(WeightName(f"{ours}.bias", f"{theirs}.bias"))
    matrices = {
        "blocks.attention.query": layer + "attention.self.query",
        "blocks.attention.key": layer + "attention.self.key",
        "blocks.attention.value": layer + "attention.self.value",
        "blocks.attention.out": layer + "attention.output.dense",
        "blocks.mlp.up": layer + "intermediate.dense",
        "blocks.mlp.down": layer + "output.dense",
    } | ({"pooler": "pooler.dense"} if config.pooler else {})
    for ours, theirs in matrices.items():
        names.append(WeightName(f"{ours}.kernel", f"{theirs}.weight", transpose=True))
        names.append(WeightName(f"{ours}.bias", f"{theirs}.bias"))
    return names
