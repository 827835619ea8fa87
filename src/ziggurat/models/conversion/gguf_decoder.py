"""GGUF metadata and names of tensors that decoders of Llama's form share.

A family's own part names its architecture and the keys that it reads beside these; see
``families/llama/gguf.py``. llama.cpp's own tables are those of the ``gguf`` package.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from ziggurat.core.errors import ModelError
from ziggurat.models.conversion import gguf_keys
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.nn.attention import GroupedAttentionConfig
from ziggurat.nn.block import MixerConfig
from ziggurat.nn.rope import LinearScaling, Llama3Scaling, NoScaling, RopeConfig, frequencies

Reorder = Callable[[np.ndarray], np.ndarray]
TOKENS = "tokenizer.ggml.tokens"
RMS_NORM = "attention.layer_norm_rms_epsilon"
LAYER_NORM = "attention.layer_norm_epsilon"
EXPERT_KEYS = ("expert_count", "expert_used_count", "expert_feed_forward_length")
"""Keys of families with mixtures of experts."""
TENSORS: Mapping[str, str] = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Modules by Hugging Face's names, and llama.cpp's names of them."""
ROUTER = "ffn_gate_inp"
EXPERTS: Mapping[str, str] = {
    "gate": "ffn_gate_exps",
    "up": "ffn_up_exps",
    "down": "ffn_down_exps",
}
"""Projections of experts, and llama.cpp's tensors, each of which holds all of a layer's."""


class Metadata:
    """Keys below an architecture's name, with errors that name them.

    Args:
        values: the file's keys and values.
        architecture: llama.cpp's name of the family.
    """

    def __init__(self, values: Mapping[str, Any], architecture: str):
        self._values, self._architecture = values, architecture

    def name(self, key: str) -> str:
        """A key with what the file calls it, for errors."""
        return f"GGUF metadata {self._architecture}.{key}"

    def get(self, key: str, default: Any = None) -> Any:
        """A key's value, or ``default``."""
        value = self._values.get(f"{self._architecture}.{key}")
        return default if value is None else value

    def need(self, key: str) -> Any:
        """A key's value; an absent one raises ``ModelError``."""
        if self.get(key) is None:
            raise ModelError(self.name(key), found="absent", expected="a value")
        return self.get(key)

    def alike(self, key: str, default: Any = None) -> Any:
        """A value that a file may give for each layer; it must be the same for all."""
        value = self.need(key) if default is None else self.get(key, default)
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise ModelError(self.name(key), found=value, expected="one value")
            value = value[0]
        return value

    def require(self, key: str, expected: Any) -> None:
        """Refuse a value other than one that follows from the rest."""
        value = self.get(key)
        if value is not None and not np.isclose(value, expected, rtol=1e-5, atol=0):
            raise ModelError(self.name(key), found=value, expected=expected)


def read_decoder(
    values: Mapping[str, Any],
    architecture: str,
    rope_divisors: np.ndarray | None = None,
    also: Iterable[str] = (),
    *,
    norm: str = RMS_NORM,
    partial: bool = False,
) -> tuple[dict[str, Any], Metadata]:
    """Config settings that decoders share, and the metadata for a family's own keys.

    Args:
        values: the file's keys and values.
        architecture: llama.cpp's name of the family.
        rope_divisors: the tensor ``rope_freqs.weight``, in which the scaling of Llama 3.x stands.
        also: keys below the architecture's name that the family reads beside the shared ones.
        norm: key of the norms' epsilon.
        partial: whether fewer channels than a head's may rotate.

    Raises:
        ModelError: a key is missing, or one is set that is not implemented; it is named.
    """
    also = (*also, norm)
    gguf_keys.check(values, architecture, also)
    given = Metadata(values, architecture)
    if TOKENS not in values:
        raise ModelError(f"GGUF metadata {TOKENS}", found="absent", expected="a value")
    vocabulary = len(values[TOKENS])
    given.require("vocab_size", vocabulary)
    heads, width = given.alike("attention.head_count"), given.need("embedding_length")
    dim = given.get("attention.key_length") or width // heads
    rotary = given.get("rope.dimension_count") or dim
    given.require("attention.value_length", dim)
    if not partial:
        given.require("rope.dimension_count", dim)
    if given.get("attention.scale") and "attention.scale" not in also:
        given.require("attention.scale", dim**-0.5)
    return {
        **({"partial_rotary_factor": rotary / dim} if partial else {}),
        "vocab_size": vocabulary,
        "d_model": width,
        "n_layers": given.need("block_count"),
        "n_heads": heads,
        "n_kv_heads": given.alike("attention.head_count_kv", heads),
        "head_dim": dim,
        "d_ff": given.alike("feed_forward_length"),
        "max_sequence_length": given.need("context_length"),
        "rope": _rope(given, rotary, rope_divisors),
        "window": given.get("attention.sliding_window") or None,
        "norm_eps": given.need(norm),
        "tie_embeddings": True,
    }, given


def attention_of(mixer: MixerConfig) -> GroupedAttentionConfig:
    """A block's attention; another mixer raises ``ModelError``."""
    if not isinstance(mixer, GroupedAttentionConfig):
        raise ModelError("export gguf", found=f"mixer {mixer.name}", expected="attention")
    return mixer


def write_decoder(
    config: Any, mixer: MixerConfig, norm: str = RMS_NORM
) -> tuple[dict[str, Any], np.ndarray | None]:
    """Metadata below the architecture's name, and the divisors of rotary frequencies where the
    config has Llama 3's scaling: the reverse of :func:`read_decoder`.

    Args:
        config: the family's config.
        mixer: the mixer of its blocks.
        norm: key of the norms' epsilon.
    """
    attention, scaling = attention_of(mixer), config.rope.scaling
    dim = attention.head_dim
    values: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_sequence_length,
        "embedding_length": config.d_model,
        "block_count": config.n_layers,
        "feed_forward_length": _hidden(config),
        "attention.head_count": attention.heads,
        "attention.head_count_kv": attention.kv_heads,
        "attention.key_length": dim,
        "attention.value_length": dim,
        "rope.dimension_count": attention.rope_dim,
        "rope.freq_base": float(config.rope.theta),
        norm: float(config.norm_eps),
    }
    divisors = None
    if isinstance(scaling, LinearScaling):
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(scaling.factor)}
    elif isinstance(scaling, Llama3Scaling):
        plain, _ = frequencies(RopeConfig(theta=config.rope.theta), dim)
        divisors = (plain / frequencies(config.rope, dim)[0]).astype(np.float32)
    return values, divisors


def _hidden(config: Any) -> int:
    """Width of a block's MLP; of its experts where it has no other."""
    if getattr(config, "d_ff", None) is None and getattr(config, "d_ff_expert", None):
        return config.d_ff_expert
    return config.mlp().hidden if hasattr(config, "mlp") else config.d_ff


def as_file(values: Mapping[str, Any], architecture: str, vocabulary: int) -> dict[str, Any]:
    """Metadata as it stands in a file, for reading it back."""
    return {f"{architecture}.{k}": v for k, v in values.items()} | {TOKENS: [""] * vocabulary}


def check_alike(config: Any, again: Any, architecture: str) -> None:
    """Refuse a config that is not read back as it was written, but for what tensors say.

    Raises:
        ModelError: a setting has no form in the file; it is named.
    """
    told = {"tie_embeddings", "init_std", "head_dim", "n_kv_heads", "d_ff"}
    for field in dataclasses.fields(config):
        found, expected = (getattr(one, field.name) for one in (config, again))
        if field.name not in told and found != expected:
            raise ModelError(
                f"export gguf: {field.name}",
                found=found,
                expected=f"{expected}, for GGUF's {architecture} says nothing else of it here",
                fix="export hf, and convert with llama.cpp's convert_hf_to_gguf.py",
            )


def check_square(config: Any, architecture: str) -> None:
    """Refuse heads that are not together as wide as the model, which llama.cpp does not load.

    Raises:
        ModelError: they are not.
    """
    width = config.n_heads * (config.head_dim or config.d_model // config.n_heads)
    if width != config.d_model:
        raise ModelError(
            "export gguf: head_dim",
            found=f"{config.n_heads} heads of {config.head_dim}, together {width}",
            expected=f"{config.d_model}, the width of the model, in llama.cpp's {architecture}",
            fix="export hf",
        )


def _rope(given: Metadata, dim: int, divisors: np.ndarray | None) -> RopeConfig:
    """Rotary settings: as llama.cpp, a factor without a type divides positions."""
    plain = RopeConfig(theta=float(given.get("rope.freq_base", 10000.0)))
    kind = given.get("rope.scaling.type", "linear")
    if kind not in ("none", "linear"):
        raise ModelError(
            given.name("rope.scaling.type"), found=repr(kind), expected="none or linear"
        )
    factor = given.get("rope.scaling.factor", given.get("rope.scale_linear", 0.0))
    if kind == "none" or factor in (0, 1):
        return plain if divisors is None else _llama3(plain, dim, divisors)
    if divisors is not None:
        raise ModelError(
            given.name("rope.scaling.factor"),
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


def gguf_names(
    names: Iterable[WeightName], attention: GroupedAttentionConfig, *, interleaved: bool
) -> list[WeightName]:
    """Weights by llama.cpp's names, from those by Hugging Face's.

    Args:
        names: of :mod:`ziggurat.models.conversion.block_names`; experts, whose tensors hold all of
            a layer's there, and the router are renamed too.
        attention: of every block.
        interleaved: whether files hold query and key rows in the order of interleaved rotary pairs.
    """
    heads = {"attn_q": attention.heads, "attn_k": attention.kv_heads} if interleaved else {}
    orders = {name: pair_orders(count, attention.head_dim // 2) for name, count in heads.items()}
    renamed = []
    for name in names:
        stem, _, suffix = name.theirs.rpartition(".")
        key = stem.removeprefix("model.layers.{layer}.")
        there = _tensor(name.ours, key)
        reorder, restore = orders.get(there, (None, None))
        prefix = "blk.{layer}." if key != stem else ""
        renamed.append(
            dataclasses.replace(
                name,
                theirs=f"{prefix}{there}.{suffix}",
                reorder=reorder,
                restore=restore,
                experts=1,
            )
        )
    return renamed


def _tensor(ours: str, key: str) -> str:
    """Name of a module in llama.cpp."""
    if ".experts." in ours:
        return EXPERTS[ours.split(".")[-2]]
    return ROUTER if ours.endswith("mlp.router.kernel") else TENSORS[key]


def pair_orders(heads: int, pairs: int) -> tuple[Reorder, Reorder]:
    """Functions from rows in interleaved pairs to halves of a head, and back."""

    def reorder(weight: np.ndarray) -> np.ndarray:
        rows = weight.reshape(heads, pairs, 2, *weight.shape[1:])
        return rows.swapaxes(1, 2).reshape(weight.shape)

    def restore(weight: np.ndarray) -> np.ndarray:
        rows = weight.reshape(heads, 2, pairs, *weight.shape[1:])
        return rows.swapaxes(1, 2).reshape(weight.shape)

    return reorder, restore
