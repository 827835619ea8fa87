"""Llama and Mistral in Hugging Face's ``config.json`` and safetensors, and in GGUF."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ziggurat.core.errors import ModelError
from ziggurat.models.hf_config import (
    HFConfig,
    activation,
    checked,
    hf_activation,
    hf_rope,
    rope,
)
from ziggurat.models.llama.config import LlamaConfig
from ziggurat.models.weight_names import WeightName
from ziggurat.nn.attention import GroupedAttentionConfig
from ziggurat.nn.mlp import GatedMlpConfig
from ziggurat.nn.rope import Llama3Scaling, NoScaling, RopeConfig, frequencies


def from_hf(values: Mapping[str, Any]) -> LlamaConfig:
    """``config.json`` of ``LlamaForCausalLM`` or ``MistralForCausalLM`` to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    mistral = (values.get("architectures") or [""])[0].startswith("Mistral")
    length = hf.get("max_position_embeddings", 2048)
    hf.refuse_unless("attention_dropout", (0, 0.0), "dropout is not implemented; set it to 0")
    window = hf.get("sliding_window", 4096 if mistral and "sliding_window" not in values else None)
    if mistral:
        hf.refuse_unless("layer_types", (["sliding_attention"] * hf.need("num_hidden_layers"),))
    elif window is not None:
        raise ModelError("config.json: sliding_window", found=window, expected="null for Llama")
    settings = {
        "vocab_size": hf.need("vocab_size"),
        "d_model": hf.need("hidden_size"),
        "n_layers": hf.need("num_hidden_layers"),
        "n_heads": hf.need("num_attention_heads"),
        "n_kv_heads": hf.get("num_key_value_heads"),
        "head_dim": hf.get("head_dim"),
        "d_ff": hf.need("intermediate_size"),
        "activation": activation(hf),
        "max_sequence_length": length,
        "rope": rope(hf, length),
        "window": window,
        "attention_bias": hf.get("attention_bias", False),
        "mlp_bias": hf.get("mlp_bias", False),
        "tie_embeddings": hf.get("tie_word_embeddings", False),
        "norm_eps": hf.get("rms_norm_eps", 1e-6),
        "init_std": hf.get("initializer_range", 0.02),
    }
    hf.finish()
    return checked(LlamaConfig, settings, "config.json")


def to_hf(config: LlamaConfig) -> dict[str, Any]:
    """Config to ``config.json``: Mistral where a sliding window is set, Llama otherwise.

    Raises:
        ModelError: a window together with biases, which no published architecture has.
    """
    d = config.decoder()
    attention, mlp = d.layers[0].block.attention, d.layers[0].block.mlp
    assert isinstance(attention, GroupedAttentionConfig)
    assert isinstance(mlp, GatedMlpConfig)
    mistral = config.window is not None
    if mistral and (config.attention_bias or config.mlp_bias):
        raise ModelError(
            "export to Hugging Face",
            found="a sliding window together with biases",
            expected="one of the two",
        )
    values = {
        "architectures": ["MistralForCausalLM" if mistral else "LlamaForCausalLM"],
        "model_type": "mistral" if mistral else "llama",
        "vocab_size": d.vocab_size,
        "hidden_size": d.d_model,
        "intermediate_size": mlp.hidden,
        "num_hidden_layers": d.n_layers,
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        "hidden_act": hf_activation(mlp.activation),
        "max_position_embeddings": config.max_sequence_length,
        "initializer_range": d.init_std,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": d.tie_embeddings,
        "attention_dropout": 0.0,
        **hf_rope(config.rope),
    }
    if mistral:
        return values | {"sliding_window": config.window}
    return values | {"attention_bias": config.attention_bias, "mlp_bias": config.mlp_bias}


def hf_names(config: LlamaConfig) -> list[WeightName]:
    """Weight names in safetensors files."""
    layer = "model.layers.{layer}."
    names = [
        WeightName("embedding.table", "model.embed_tokens.weight"),
        WeightName("final_norm.scale", "model.norm.weight"),
        WeightName("blocks.attention_norm.scale", layer + "input_layernorm.weight"),
        WeightName("blocks.mlp_norm.scale", layer + "post_attention_layernorm.weight"),
    ]
    attention = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "o_proj"}
    mlp = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
    for part, theirs, table, bias in (
        ("attention", "self_attn", attention, config.attention_bias),
        ("mlp", "mlp", mlp, config.mlp_bias),
    ):
        for ours, name in table.items():
            stem, there = f"blocks.{part}.{ours}", f"{layer}{theirs}.{name}"
            names.append(WeightName(f"{stem}.kernel", f"{there}.weight", transpose=True))
            if bias:
                names.append(WeightName(f"{stem}.bias", f"{there}.bias"))
    if not config.tie_embeddings:
        names.append(WeightName("unembedding", "lm_head.weight"))
    return names


def from_gguf(metadata: Mapping[str, Any], rope_divisors: np.ndarray | None = None) -> LlamaConfig:
    """GGUF metadata of architecture ``llama`` to config.

    Args:
        metadata: the file's keys and values.
        rope_divisors: its tensor ``rope_freqs.weight``, in which the scaling of Llama 3.x stands.

    Raises:
        ModelError: a key is missing, or a rope scaling is set that is not implemented.
    """

    def need(key: str, prefix: str = "llama.") -> Any:
        if prefix + key not in metadata:
            raise ModelError(f"GGUF metadata {prefix}{key}", found="absent", expected="a value")
        return metadata[prefix + key]

    scaling = metadata.get("llama.rope.scaling.type", "none")
    if scaling != "none":
        raise ModelError("GGUF metadata llama.rope.scaling.type", found=scaling, expected="none")
    if metadata.get("llama.expert_count", 0):
        raise ModelError("GGUF metadata llama.expert_count", found="experts", expected="none")
    heads, width = need("attention.head_count"), need("embedding_length")
    if not isinstance(heads, int):
        raise ModelError("GGUF metadata llama.attention.head_count", found=heads, expected="one")
    dim = metadata.get("llama.attention.key_length") or width // heads
    rotated = metadata.get("llama.rope.dimension_count", dim)
    if rotated != dim:
        raise ModelError("GGUF metadata llama.rope.dimension_count", found=rotated, expected=dim)
    settings = {
        "vocab_size": len(need("tokens", "tokenizer.ggml.")),
        "d_model": width,
        "n_layers": need("block_count"),
        "n_heads": heads,
        "n_kv_heads": metadata.get("llama.attention.head_count_kv", heads),
        "head_dim": dim,
        "d_ff": need("feed_forward_length"),
        "max_sequence_length": need("context_length"),
        "rope": _gguf_rope(
            float(metadata.get("llama.rope.freq_base", 10000.0)), dim, rope_divisors
        ),
        "window": metadata.get("llama.attention.sliding_window"),
        "norm_eps": need("attention.layer_norm_rms_epsilon"),
        "tie_embeddings": True,
    }
    return checked(LlamaConfig, settings, "GGUF metadata")


def _gguf_rope(theta: float, dim: int, divisors: np.ndarray | None) -> RopeConfig:
    """The Llama 3 scaling that divides the frequencies so; published models differ in its factor
    alone."""
    plain = RopeConfig(theta=theta)
    if divisors is None:
        return plain
    candidates = (NoScaling(), Llama3Scaling(factor=float(np.max(divisors))))
    omega, _ = frequencies(plain, dim)
    for scaling in candidates if divisors.shape == omega.shape else ():
        scaled, _ = frequencies(RopeConfig(theta=theta, scaling=scaling), dim)
        if np.allclose(omega / divisors, scaled, rtol=1e-4, atol=0):
            return RopeConfig(theta=theta, scaling=scaling)
    raise ModelError(
        "GGUF tensor rope_freqs.weight",
        found=f"{divisors.size} divisors of another scaling",
        expected=f"those of Llama 3.x for {dim} channels",
    )


def gguf_names(config: LlamaConfig) -> list[WeightName]:
    """Weight names in GGUF files, whose query and key rows are in interleaved rotary order."""
    attention = config.decoder().layers[0].block.attention
    assert isinstance(attention, GroupedAttentionConfig)
    pairs = attention.head_dim // 2

    def uninterleave(heads: int):
        def reorder(weight: np.ndarray) -> np.ndarray:
            rows = weight.reshape(heads, pairs, 2, *weight.shape[1:])
            return rows.swapaxes(1, 2).reshape(weight.shape)

        return reorder

    table = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    reorders = {
        "attn_q": uninterleave(attention.heads),
        "attn_k": uninterleave(attention.kv_heads),
    }
    names = []
    for name in hf_names(config):
        stem, _, suffix = name.theirs.rpartition(".")
        key = stem.removeprefix("model.layers.{layer}.")
        there = table[key]
        prefix = "blk.{layer}." if key != stem else ""
        names.append(
            WeightName(name.ours, f"{prefix}{there}.{suffix}", name.transpose, reorders.get(there))
        )
    return names
