"""Qwen 3 with mixtures of experts in GGUF."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from ziggurat.models.conversion import gguf_decoder
from ziggurat.models.conversion.hf_config import checked
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.qwen_moe.config import Qwen3MoeConfig
from ziggurat.models.families.qwen_moe.hf import hf_names

NAME = "qwen3moe"
"""llama.cpp's name of the family."""


def from_gguf(
    metadata: Mapping[str, Any],
    rope_divisors: np.ndarray | None = None,
    tensors: Collection[str] = (),
) -> Qwen3MoeConfig:
    """GGUF metadata of architecture ``qwen3moe`` to config: every layer has experts, whose weights
    sum to one, as llama.cpp computes them.

    Args:
        metadata: the file's keys and values.
        rope_divisors: its tensor ``rope_freqs.weight``, where it has one.
        tensors: names of the file's tensors, which say nothing here.

    Raises:
        ModelError: a key is missing, or one is set that is not implemented; it is named.
    """
    also = gguf_decoder.EXPERT_KEYS
    settings, given = gguf_decoder.read_decoder(metadata, NAME, rope_divisors, also)
    given.require("attention.sliding_window", 0)
    settings |= {
        "window": None,
        "n_experts": given.need("expert_count"),
        "experts_per_token": given.need("expert_used_count"),
        "d_ff_expert": given.need("expert_feed_forward_length"),
        "normalise_weights": True,
    }
    return checked(Qwen3MoeConfig, settings, "GGUF metadata")


def to_gguf(config: Qwen3MoeConfig) -> tuple[dict[str, Any], np.ndarray | None]:
    """Config to GGUF metadata below ``qwen3moe.``, and rotary divisors.

    Raises:
        ModelError: the config says something that :func:`from_gguf` would not read back.
    """
    values, divisors = gguf_decoder.write_decoder(config, config.decoder().layers[0].block.mixer)
    values |= {
        "expert_count": config.n_experts,
        "expert_used_count": config.experts_per_token,
        "expert_feed_forward_length": config.d_ff_expert,
    }
    again = from_gguf(gguf_decoder.as_file(values, NAME, config.vocab_size), divisors)
    gguf_decoder.check_alike(config, again, NAME)
    return values, divisors


def gguf_names(config: Qwen3MoeConfig) -> list[WeightName]:
    """Weight names in GGUF files."""
    attention = gguf_decoder.attention_of(config.decoder().layers[0].block.mixer)
    return gguf_decoder.gguf_names(hf_names(config), attention, interleaved=False)
