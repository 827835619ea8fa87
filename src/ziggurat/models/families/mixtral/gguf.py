"""Mixtral in GGUF, where it is a ``llama`` with experts."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from ziggurat.models.conversion import gguf_decoder
from ziggurat.models.conversion.hf_config import checked
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.mixtral.config import MixtralConfig
from ziggurat.models.families.mixtral.hf import hf_names

NAME = "llama"
"""llama.cpp's name of the family."""


def from_gguf(
    metadata: Mapping[str, Any],
    rope_divisors: np.ndarray | None = None,
    tensors: Collection[str] = (),
) -> MixtralConfig:
    """GGUF metadata of architecture ``llama`` with experts to config.

    Args:
        metadata: the file's keys and values.
        rope_divisors: its tensor ``rope_freqs.weight``, where it has one.
        tensors: names of the file's tensors, which say nothing here.

    Raises:
        ModelError: a key is missing, or one is set that is not implemented; it is named.
    """
    also = gguf_decoder.EXPERT_KEYS
    settings, given = gguf_decoder.read_decoder(metadata, NAME, rope_divisors, also)
    given.require("expert_feed_forward_length", settings["d_ff"])
    settings |= {
        "n_experts": given.need("expert_count"),
        "experts_per_token": given.need("expert_used_count"),
    }
    return checked(MixtralConfig, settings, "GGUF metadata")


def to_gguf(config: MixtralConfig) -> tuple[dict[str, Any], np.ndarray | None]:
    """Config to GGUF metadata below ``llama.``, and rotary divisors.

    Raises:
        ModelError: the config says something that :func:`from_gguf` would not read back.
    """
    values, divisors = gguf_decoder.write_decoder(config, config.attention())
    values |= {
        "expert_count": config.n_experts,
        "expert_used_count": config.experts_per_token,
    }
    again = from_gguf(gguf_decoder.as_file(values, NAME, config.vocab_size), divisors)
    gguf_decoder.check_alike(config, again, NAME)
    return values, divisors


def gguf_names(config: MixtralConfig) -> list[WeightName]:
    """Weight names in GGUF files, whose query and key rows are in interleaved rotary order."""
    return gguf_decoder.gguf_names(hf_names(config), config.attention(), interleaved=True)
