"""Running the model: weights and cache laid out for decoding, and the few compiled programs."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ziggurat.models import LanguageModel, Params, unstacked
from ziggurat.models.unstacked import Unstacked
from ziggurat.serve.llm.cache import BLOCK, LayerCache, SlotContext
from ziggurat.serve.llm.sampling import Knobs, SamplingParams, log_probabilities, sample

SMALLEST_BUCKET = 16


class State(NamedTuple):
    """What a step owns and gives back changed."""

    cache: list[LayerCache]
    length: Int[Array, ""]
    """Tokens in the cache."""
    token: Int[Array, "b"]
    """The newest token, not in the cache yet."""


class ModelRunner:
    """One sequence at a time through a model.

    Args:
        model: the model.
        params: its parameters; copied, layer by layer.
        max_length: longest sequence in tokens, prompt and output together.
        max_chunk: most prompt tokens in one step; longer prompts take several.
    """

    def __init__(self, model: LanguageModel, params: Params, max_length: int, max_chunk: int):
        self.model, self.max_length = model, max_length
        self.buckets = bucket_table(min(max_chunk, max_length))
        slots = max_length + self.buckets[-1]  # room for the padding of the last chunk
        self.slots = slots if slots <= BLOCK else -(-slots // BLOCK) * BLOCK
        self._weights = Unstacked.of(model, params)
        self._state = self._empty()
        self._tokens: list[int] = []
        self._logits: Array | None = None
        self._programs: dict[str, Any] = {}
        self._compiling = threading.Lock()

    def warm_up(self) -> tuple[int, float]:
        """Compile every program; how many there are, and the seconds it took."""
        begun = time.perf_counter()
        for name in ("decode", "first", "logprobs", *(f"prefill {t}" for t in self.buckets)):
            self._program(name)
        return len(self._programs), time.perf_counter() - begun

    def prefill(
        self, tokens: Sequence[int], *, reuse: bool, go_on: Callable[[], bool] = lambda: True
    ) -> bool:
        """Read a prompt into the cache.

        Args:
            tokens: the prompt, at least one token.
            reuse: keep what the cache holds of the same beginning.
            go_on: asked before every chunk; the prompt is given up when it says no.

        Returns:
            Whether the whole prompt was read.
        """
        assert 1 <= len(tokens) <= self.max_length
        start = self._common(tokens) if reuse else 0
        while start < len(tokens):
            if not go_on():
                return False
            chunk = tokens[start : start + self.buckets[-1]]
            size = next(bucket for bucket in self.buckets if bucket >= len(chunk))
            padded = np.zeros((1, size), np.int32)
            padded[0, : len(chunk)] = chunk
            self._tokens = list(tokens[:start])
            self._state, self._logits = self._program(f"prefill {size}")(
                self._weights, self._state, padded, np.int32(start), np.int32(len(chunk))
            )
            start += len(chunk)
            self._tokens = list(tokens[:start])
        return True

    def first(self, prompt_length: int, knobs: Knobs, logits: Array | None = None) -> int:
        """Choose the token after the prompt; again, for a further generation from it.

        Args:
            prompt_length: tokens of the prompt.
            knobs: how to choose.
            logits: what :meth:`prompt_logits` gave; default: those of the prompt just read.
        """
        self._tokens = self._tokens[:prompt_length]
        self._logits = self._logits if logits is None else logits
        assert self._logits is not None
        assert len(self._tokens) == prompt_length
        self._state = self._program("first")(
            self._state, self._logits, knobs, np.int32(prompt_length)
        )
        return int(self._state.token[0])

    @property
    def prompt_logits(self) -> Array:
        """Logits ``[1, v]`` from which the newest token was chosen, on the device."""
        assert self._logits is not None
        return self._logits

    def decode(self, knobs: Knobs) -> int:
        """Read the newest token and choose the next: one program, one number back."""
        token = int(self._state.token[0])
        self._state, self._logits = self._program("decode")(self._weights, self._state, knobs)
        self._tokens.append(token)
        return int(self._state.token[0])

    def log_probabilities(self) -> tuple[float, list[float], list[int]]:
        """Of the newest token, and of the most likely ones with their ids."""
        found = self._program("logprobs")(self.prompt_logits, self._state.token)
        chosen, top, ids = (np.asarray(part)[0] for part in found)
        return float(chosen), top.tolist(), ids.tolist()

    def _common(self, tokens: Sequence[int]) -> int:
        """Tokens of the cache that can stay; the last of the prompt is always read."""
        count = 0
        for held, wanted in zip(self._tokens, tokens[:-1]):
            if held != wanted:
                break
            count += 1
        return count

    def _empty(self) -> State:
        dtype, cache = self.model.precision.compute_dtype, []
        for layer in self.model.decoder.layers:
            shape = layer.block.attention.cache
            dims = (shape.key_dim, shape.value_dim)
            pair = (jnp.zeros((1, shape.kv_heads, self.slots, dim), dtype) for dim in dims)
            cache.append(tuple(pair))
        return State(cache, jnp.zeros((), jnp.int32), jnp.zeros(1, jnp.int32))

    def _program(self, name: str) -> Any:
        with self._compiling:
            if name not in self._programs:
                self._programs[name] = self._compile(name)
            return self._programs[name]

    def _compile(self, name: str) -> Any:
        vocab = self.model.decoder.vocab_size
        number, logits = np.int32(0), jnp.zeros((1, vocab))
        state, knobs = self._state, Knobs.of(SamplingParams())
        if name == "decode":
            program = jax.jit(self._decode, donate_argnums=1)
            return program.lower(self._weights, state, knobs).compile()
        if name == "first":
            program = jax.jit(_first, donate_argnums=0)
            return program.lower(state, logits, knobs, number).compile()
        if name == "logprobs":
            return jax.jit(log_probabilities).lower(logits, state.token).compile()
        tokens = np.zeros((1, int(name.removeprefix("prefill "))), np.int32)
        program = jax.jit(self._prefill, donate_argnums=1)
        return program.lower(self._weights, state, tokens, number, number).compile()

    def _forward(
        self,
        weights: Unstacked,
        cache: list[LayerCache],
        tokens: Int[Array, "b t"],
        length: Int[Array, ""],
    ) -> tuple[Float[Array, "b t d"], list[LayerCache]]:
        positions = length + jnp.arange(tokens.shape[1])[None]
        return unstacked.hidden(self.model, weights, tokens, positions, SlotContext(length), cache)

    def _decode(self, weights: Unstacked, state: State, knobs: Knobs) -> tuple[State, Array]:
        hidden, cache = self._forward(weights, state.cache, state.token[:, None], state.length)
        logits = unstacked.project(self.model, weights, hidden[:, 0])
        token = sample(logits, knobs, state.length + 1)
        return State(cache, state.length + 1, token), logits

    def _prefill(
        self,
        weights: Unstacked,
        state: State,
        tokens: Int[Array, "b t"],
        start: Int[Array, ""],
        count: Int[Array, ""],
    ) -> tuple[State, Array]:
        hidden, cache = self._forward(weights, state.cache, tokens, start)
        last = jax.lax.dynamic_index_in_dim(hidden, count - 1, axis=1, keepdims=False)
        logits = unstacked.project(self.model, weights, last)
        return State(cache, start + count, state.token), logits


def _first(state: State, logits: Array, knobs: Knobs, length: Array) -> State:
    """The token after a prompt of ``length`` tokens; later slots count as empty again."""
    return State(state.cache, length, sample(logits, knobs, length))


def bucket_table(largest: int) -> tuple[int, ...]:
    """Powers of two from 16 on, and ``largest`` itself.

    >>> bucket_table(100), bucket_table(8)
    ((16, 32, 64, 100), (8,))
    """
    sizes = []
    size = SMALLEST_BUCKET
    while size < largest:
        sizes.append(size)
        size *= 2
    return (*sizes, largest)
