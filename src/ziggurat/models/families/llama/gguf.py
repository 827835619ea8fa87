"""Llama and Mistral in GGUF."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from ziggurat.models.conversion import gguf_decoder
from ziggurat.models.conversion.hf_config import checked
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.llama.config import LlamaConfig
from ziggurat.models.families.llama.hf import hf_names

NAME = "llama"
"""llama.cpp's name of the family."""


def from_gguf(
    metadata: Mapping[str, Any],
    rope_divisors: np.ndarray | None = None,
    tensors: Collection[str] = (),
) -> LlamaConfig:
    """GGUF metadata of architecture ``llama`` to config.

    Args:
        metadata: the file's keys and values.
        rope_divisors: its tensor ``rope_freqs.weight``, in which the scaling of Llama 3.x stands.
        tensors: names of the file's tensors, which say nothing here.

    Raises:
        ModelError: a key is missing, or one is set that is not implemented; it is named.
    """
    settings, _ = gguf_decoder.read_decoder(metadata, NAME, rope_divisors)
    return checked(LlamaConfig, settings, "GGUF metadata")


def to_gguf(config: LlamaConfig) -> tuple[dict[str, Any], np.ndarray | None]:
    """Config to GGUF metadata below ``llama.``, and the divisors of rotary frequencies if it has
    Llama 3's scaling.

    Raises:
        ModelError: the config says something that :func:`from_gguf` would not read back.
    """
    mixer = config.decoder().layers[0].block.mixer
    values, divisors = gguf_decoder.write_decoder(config, mixer)
    again = from_gguf(gguf_decoder.as_file(values, NAME, config.vocab_size), divisors)
    gguf_decoder.check_alike(config, again, NAME)
    return values, divisors


def gguf_names(config: LlamaConfig) -> list[WeightName]:
    """Weight names in GGUF files, whose query and key rows are in interleaved rotary order."""
    attention = gguf_decoder.attention_of(config.decoder().layers[0].block.mixer)
    return gguf_decoder.gguf_names(hf_names(config), attention, interleaved=True)
