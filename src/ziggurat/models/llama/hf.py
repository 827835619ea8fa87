"""Llama and Mistral in Hugging Face's ``config.json`` and safetensors, and in GGUF."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ziggurat.core.errors import ModelError
from ziggurat.models.decoder_fields import decoder_names, read_fields, same_reach, write_fields
from ziggurat.models.hf_config import HFConfig, checked
from ziggurat.models.llama.config import LlamaConfig
from ziggurat.models.rotary_settings import hf_rope, read_rope
from ziggurat.models.weight_names import WeightName
from ziggurat.nn.attention import GroupedAttentionConfig
from ziggurat.nn.rope import Llama3Scaling, NoScaling, RopeConfig, frequencies


def from_hf(values: Mapping[str, Any]) -> LlamaConfig:
    """``config.json`` of ``LlamaForCausalLM`` or ``MistralForCausalLM`` to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    mistral = hf.model_type == "mistral"
    settings = read_fields(hf)
    settings["rope"] = read_rope(hf, settings["max_sequence_length"])
    if mistral:
        settings["window"] = hf.get("sliding_window")
    else:
        settings |= {key: hf.get(key) for key in ("attention_bias", "mlp_bias")}
    same_reach(hf, settings.get("window"))
    hf.finish()
    return checked(LlamaConfig, settings, "config.json")


def to_hf(config: LlamaConfig) -> dict[str, Any]:
    """Config to ``config.json``: Mistral where a sliding window is set, Llama otherwise.

    Raises:
        ModelError: a window together with biases, which no published architecture has.
    """
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
        **write_fields(config),
        **hf_rope(config.rope),
    }
    if mistral:
        return values | {"sliding_window": config.window}
    return values | {"attention_bias": config.attention_bias, "mlp_bias": config.mlp_bias}


def hf_names(config: LlamaConfig) -> list[WeightName]:
    """Weight names in safetensors files."""
    return decoder_names(config.decoder())


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
