"""Qwen 2, 2.5 and 3 in GGUF."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from ziggurat.models.conversion import gguf_decoder
from ziggurat.models.conversion.hf_config import checked
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.qwen.config import Qwen2Config, Qwen3Config
from ziggurat.models.families.qwen.hf import hf_names


def from_gguf(
    metadata: Mapping[str, Any],
    rope_divisors: np.ndarray | None = None,
    tensors: Collection[str] = (),
) -> Qwen2Config | Qwen3Config:
    """GGUF metadata of architecture ``qwen2`` or ``qwen3`` to config.

    Args:
        metadata: the file's keys and values.
        rope_divisors: its tensor ``rope_freqs.weight``, where it has one.
        tensors: names of the file's tensors, which say nothing here.

    Raises:
        ModelError: a key is missing, or one is set that is not implemented; it is named.
    """
    name = metadata["general.architecture"]
    settings, given = gguf_decoder.read_decoder(metadata, name, rope_divisors)
    given.require("attention.sliding_window", 0)  # llama.cpp has no windows in these
    del settings["window"]
    return checked(Qwen3Config if name == "qwen3" else Qwen2Config, settings, "GGUF metadata")


def to_gguf(config: Qwen2Config | Qwen3Config) -> tuple[dict[str, Any], np.ndarray | None]:
    """Config to GGUF metadata below the architecture's name, and rotary divisors.

    Raises:
        ModelError: the config says something that :func:`from_gguf` would not read back.
    """
    if config.kind == "qwen2":
        gguf_decoder.check_square(config, config.kind)
    values, divisors = gguf_decoder.write_decoder(config, config.decoder().layers[0].block.mixer)
    file = gguf_decoder.as_file(values, config.kind, config.vocab_size)
    again = from_gguf(file | {"general.architecture": config.kind}, divisors)
    gguf_decoder.check_alike(config, again, config.kind)
    return values, divisors


def gguf_names(config: Qwen2Config | Qwen3Config) -> list[WeightName]:
    """Weight names in GGUF files."""
    attention = gguf_decoder.attention_of(config.decoder().layers[0].block.mixer)
    return gguf_decoder.gguf_names(hf_names(config), attention, interleaved=False)
