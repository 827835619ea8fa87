"""Limits of an engine, and what follows from them and the model: context and cache."""

import dataclasses
from typing import Literal

from ziggurat.core import config
from ziggurat.core.errors import ConfigError

LONGEST_DEFAULT = 8192
"""Context in tokens where neither the model nor the user asks for less, and tokens in the cache
where that is no less: they cost memory."""


@config.node
class EngineConfig:
    """Settings of an engine: its limits, cache and queue."""

    max_sequence_length: int | None = None
    """Longest prompt and output together, in tokens; default the model's, at most 8192."""
    max_running: int = 16
    """Most generations served together."""
    max_batched_tokens: int = 512
    """Most tokens in one step, of all generations: those that decode, then prompts."""
    max_prefill_chunk: int = 512
    """Most prompt tokens of one request in one step; longer prompts take several."""
    max_queue: int = 64
    """Requests of one client that may wait, each with all of its prompts; more are refused."""
    max_queue_tokens: int = 4 * 2**20
    """Tokens of the prompts that one client's waiting requests may hold; at least the context."""
    block_size: int = 16
    """Tokens in a block of the cache."""
    cache_tokens: int | None = None
    """Tokens in the cache, of all generations; default what ``max_running`` longest sequences take,
    at most 8192, or one longest sequence if that is more. When it is full, the newest generations
    wait."""
    prefix_cache: bool = True
    """Keep blocks of ended requests for prompts that begin alike, until others need them. Logits
    may differ in the last bits from those of a prompt read whole."""
    kv_cache_dtype: Literal["auto", "int8", "fp8_e4m3", "fp8_e5m2"] = "auto"
    """Type of the keys and values in the cache: ``auto``, that of computing, or ``int8``,
    ``fp8_e4m3`` or ``fp8_e5m2``, rounded with a scale for each token and head, which takes about
    half of bfloat16's memory."""
    compile_cache: str | None = None
    """Directory in which compiled programs are kept for the next start; default none."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and not isinstance(value, bool):
                config.require(value >= 1, field.name, value, "a number >= 1")
        enough = self.max_batched_tokens >= self.max_running
        expected = f"at least max_running, {self.max_running}"
        config.require(enough, "max_batched_tokens", self.max_batched_tokens, expected)


@dataclasses.dataclass(frozen=True)
class CacheDimensions:
    """Dimensions of the paged cache."""

    blocks: int
    """Blocks that sequences can hold; there is one more, the sink."""
    block_size: int
    """Tokens in one."""
    width: int
    """Most blocks of a sequence."""


def context_length(settings: EngineConfig, longest: int) -> int:
    """Longest sequence in tokens that the engine serves; the model was made for ``longest``.

    Raises:
        ConfigError: more is asked for.
    """
    length = settings.max_sequence_length or min(longest, LONGEST_DEFAULT)
    if length > longest:
        raise ConfigError(
            "max_sequence_length",
            found=length,
            expected=f"at most {longest}, which the model was made for",
        )
    return length


def cache_dimensions(settings: EngineConfig, longest: int) -> CacheDimensions:
    """Dimensions of a cache for sequences of at most ``longest`` tokens.

    Raises:
        ConfigError: it would not hold one.
    """
    size = settings.block_size
    width = -(-longest // size)
    most = settings.max_running * width * size
    tokens = settings.cache_tokens or min(max(longest, LONGEST_DEFAULT), most)
    if -(-tokens // size) < width:
        raise ConfigError(
            "cache_tokens",
            found=tokens,
            expected=f"at least max_sequence_length, {longest}",
            fix="raise it, or lower max_sequence_length",
        )
    return CacheDimensions(blocks=-(-tokens // size), block_size=size, width=width)
