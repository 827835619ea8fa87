"""Llama and Mistral in GGUF."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from ziggurat.core.errors import ModelError
from ziggurat.models.conversion import gguf_keys
from ziggurat.models.conversion.hf_config import checked
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.llama.config import LlamaConfig
from ziggurat.models.families.llama.hf import hf_names
from ziggurat.nn.attention import GroupedAttentionConfig
from ziggurat.nn.rope import LinearScaling, Llama3Scaling, NoScaling, RopeConfig, frequencies


class _Metadata:
    """Keys below ``llama.`` with errors that name them."""

    def __init__(self, values: Mapping[str, Any]):
        self._values = values

    def get(self, key: str, default: Any = None) -> Any:
        value = self._values.get(f"llama.{key}")
        return default if value is None else value

    def need(self, key: str) -> Any:
        if self.get(key) is None:
            raise ModelError(f"GGUF metadata llama.{key}", found="absent", expected="a value")
        return self.get(key)

    def alike(self, key: str, default: Any = None) -> Any:
        """A value that a file may give for each layer; it must be the same for all."""
        value = self.need(key) if default is None else self.get(key, default)
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise ModelError(f"GGUF metadata llama.{key}", found=value, expected="one value")
            value = value[0]
        return value

    def require(self, key: str, expected: Any) -> None:
        """Refuse a value other than one that follows from the rest."""
        value = self.get(key)
        if value is not None and not np.isclose(value, expected, rtol=1e-5, atol=0):
            raise ModelError(f"GGUF metadata llama.{key}", found=value, expected=expected)


def from_gguf(metadata: Mapping[str, Any], rope_divisors: np.ndarray | None = None) -> LlamaConfig:
    """GGUF metadata of architecture ``llama`` to config.

    Args:
        metadata: the file's keys and values.
        rope_divisors: its tensor ``rope_freqs.weight``, in which the scaling of Llama 3.x stands.

    Raises:
        ModelError: a key is missing, or one is set that is not implemented; it is named.
    """
    gguf_keys.check(metadata, "llama")
    given = _Metadata(metadata)
    if "tokenizer.ggml.tokens" not in metadata:
        raise ModelError("GGUF metadata tokenizer.ggml.tokens", found="absent", expected="a value")
    vocabulary = len(metadata["tokenizer.ggml.tokens"])
    given.require("vocab_size", vocabulary)
    heads, width = given.alike("attention.head_count"), given.need("embedding_length")
    dim = given.get("attention.key_length") or width // heads
    for key in ("attention.value_length", "rope.dimension_count"):
        given.require(key, dim)
    if given.get("attention.scale"):
        given.require("attention.scale", dim**-0.5)
    settings = {
        "vocab_size": vocabulary,
        "d_model": width,
        "n_layers": given.need("block_count"),
        "n_heads": heads,
        "n_kv_heads": given.alike("attention.head_count_kv", heads),
        "head_dim": dim,
        "d_ff": given.alike("feed_forward_length"),
        "max_sequence_length": given.need("context_length"),
        "rope": _rope(given, dim, rope_divisors),
        "window": given.get("attention.sliding_window") or None,
        "norm_eps": given.need("attention.layer_norm_rms_epsilon"),
        "tie_embeddings": True,
    }
    return checked(LlamaConfig, settings, "GGUF metadata")


def to_gguf(config: LlamaConfig) -> tuple[dict[str, Any], np.ndarray | None]:
    """Config to GGUF metadata below ``llama.``, and the divisors of rotary frequencies if it has
    Llama 3's scaling.

    Raises:
        ModelError: the config says something that :func:`from_gguf` would not read back.
    """
    attention = config.decoder().layers[0].block.mixer
    if not isinstance(attention, GroupedAttentionConfig):
        raise ModelError("export gguf", found=f"mixer {attention.name}", expected="attention")
    dim, scaling = attention.head_dim, config.rope.scaling
    values: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_sequence_length,
        "embedding_length": config.d_model,
        "block_count": config.n_layers,
        "feed_forward_length": config.d_ff,
        "attention.head_count": attention.heads,
        "attention.head_count_kv": attention.kv_heads,
        "attention.key_length": dim,
        "attention.value_length": dim,
        "rope.dimension_count": dim,
        "rope.freq_base": float(config.rope.theta),
        "attention.layer_norm_rms_epsilon": float(config.norm_eps),
    }
    divisors = None
    if isinstance(scaling, LinearScaling):
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(scaling.factor)}
    elif isinstance(scaling, Llama3Scaling):
        plain, _ = frequencies(RopeConfig(theta=config.rope.theta), dim)
        divisors = (plain / frequencies(config.rope, dim)[0]).astype(np.float32)
    metadata = {f"llama.{key}": value for key, value in values.items()}
    metadata |= {"tokenizer.ggml.tokens": [""] * config.vocab_size}
    _check_alike(config, from_gguf(metadata, divisors))
    return values, divisors


def _check_alike(config: LlamaConfig, again: LlamaConfig) -> None:
    """A config as it is read back must be the one that was written, but for what tensors say."""
    told = {"tie_embeddings", "init_std", "head_dim", "n_kv_heads", "d_ff"}
    for field in dataclasses.fields(config):
        found, expected = (getattr(one, field.name) for one in (config, again))
        if field.name not in told and found != expected:
            raise ModelError(
                f"export gguf: {field.name}",
                found=found,
                expected=f"{expected}, for GGUF's llama says nothing else of it here",
                fix="export hf, and convert with llama.cpp's convert_hf_to_gguf.py",
            )


def _rope(given: _Metadata, dim: int, divisors: np.ndarray | None) -> RopeConfig:
    """Rotary settings: as llama.cpp, a factor without a type divides positions."""
    plain = RopeConfig(theta=float(given.get("rope.freq_base", 10000.0)))
    kind = given.get("rope.scaling.type", "linear")
    if kind not in ("none", "linear"):
        raise ModelError(
            "GGUF metadata llama.rope.scaling.type", found=repr(kind), expected="none or linear"
        )
    factor = given.get("rope.scaling.factor", given.get("rope.scale_linear", 0.0))
    if kind == "none" or factor in (0, 1):
        return plain if divisors is None else _llama3(plain, dim, divisors)
    if divisors is not None:
        raise ModelError(
            "GGUF metadata llama.rope.scaling.factor",
            found=f"{factor} beside the tensor rope_freqs.weight",
            expected="one of them",
        )
    return RopeConfig(theta=plain.theta, scaling=LinearScaling(factor=float(factor)))


def _llama3(plain: RopeConfig, dim: int, divisors: np.ndarray) -> RopeConfig:
    """The Llama 3 scaling that divides the frequencies so; published models differ in its factor
    alone."""
    candidates = (NoScaling(), Llama3Scaling(factor=float(np.max(divisors))))
    omega, _ = frequencies(plain, dim)
    for scaling in candidates if divisors.shape == omega.shape else ():
        scaled, _ = frequencies(RopeConfig(theta=plain.theta, scaling=scaling), dim)
        if np.allclose(omega / divisors, scaled, rtol=1e-4, atol=0):
            return RopeConfig(theta=plain.theta, scaling=scaling)
    raise ModelError(
        "GGUF tensor rope_freqs.weight",
        found=f"{divisors.size} divisors of another scaling",
        expected=f"those of Llama 3.x for {dim} channels",
    )


def gguf_names(config: LlamaConfig) -> list[WeightName]:
    """Weight names in GGUF files, whose query and key rows are in interleaved rotary order."""
    attention = config.decoder().layers[0].block.mixer
    assert isinstance(attention, GroupedAttentionConfig)
    pairs = attention.head_dim // 2

    def uninterleave(heads: int):
        def reorder(weight: np.ndarray) -> np.ndarray:
            rows = weight.reshape(heads, pairs, 2, *weight.shape[1:])
            return rows.swapaxes(1, 2).reshape(weight.shape)

        return reorder

    def interleave(heads: int):
        def restore(weight: np.ndarray) -> np.ndarray:
            rows = weight.reshape(heads, 2, pairs, *weight.shape[1:])
            return rows.swapaxes(1, 2).reshape(weight.shape)

        return restore

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
    heads = {"attn_q": attention.heads, "attn_k": attention.kv_heads}
    reorders = {name: (uninterleave(count), interleave(count)) for name, count in heads.items()}
    names = []
    for name in hf_names(config):
        stem, _, suffix = name.theirs.rpartition(".")
        key = stem.removeprefix("model.layers.{layer}.")
        there = table[key]
        prefix = "blk.{layer}." if key != stem else ""
        names.append(
            WeightName(
                name.ours,
                f"{prefix}{there}.{suffix}",
                name.transpose,
                *reorders.get(there, (None, None)),
            )
        )
    return names
