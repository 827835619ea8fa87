"""Greedy decoding of one window of speech, as programs for the device.

The encoder runs once, and so do the keys and values of its states; then one program writes tokens
until the end token, one at a time through a key/value cache.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ziggurat.models.speech_model import SpeechModel
from ziggurat.models.speech_tokens import SpeechTokens
from ziggurat.models.traced_model import Params
from ziggurat.nn.attention_context import Cached
from ziggurat.nn.encoder_decoder import Memory

SHORT = 8
"""Tokens of the smaller of two prompts that programs are compiled for."""


class DecodedWindow(NamedTuple):
    """Tokens written for one window."""

    tokens: Int[Array, "t"]
    """Written tokens; behind :attr:`count` the end token."""
    count: Int[Array, ""]
    """How many were written, the end token among them where it was reached."""
    log_probability: Float[Array, ""]
    """Sum of the logarithms of their probabilities."""
    no_speech: Float[Array, ""]
    """Probability of the token for silence at the start token."""


class TimestampHistory(NamedTuple):
    """Tokens written so far, as far as the rules of timestamps depend on them."""

    count: Int[Array, ""]
    last: Int[Array, ""]
    """The newest token; -1: none yet."""
    before_last: Int[Array, ""]
    """The token before it; -1: none yet."""
    timestamp: Int[Array, ""]
    """The newest timestamp; -1: none yet."""

    @classmethod
    def empty(cls) -> "TimestampHistory":
        """Nothing is written yet."""
        return cls(jnp.int32(0), jnp.int32(-1), jnp.int32(-1), jnp.int32(-1))

    def add(self, token: Int[Array, ""], first_timestamp: int) -> "TimestampHistory":
        """The history with one more token."""
        newest = jnp.where(token >= first_timestamp, token, self.timestamp)
        return TimestampHistory(self.count + 1, token, self.last, newest)


class WindowDecoder:
    """Programs that turn a spectrogram into tokens.

    Args:
        model: the model.
        params: its parameters.
        tokens: its special tokens.
    """

    def __init__(self, model: SpeechModel, params: Params, tokens: SpeechTokens):
        self._model, self._params, self._tokens = model, params, tokens
        vocab = model.parts.vocab_size
        self._never = np.zeros(vocab, bool)
        self._never[[i for i in tokens.suppress if i >= 0]] = True
        self._not_first = self._never.copy()
        self._not_first[[i for i in tokens.suppress_first if i >= 0]] = True
        self.longest = model.parts.positions
        self._memory = jax.jit(model.memory)
        self._detect = jax.jit(self._language)
        self._decode = jax.jit(self._tokens_of)

    def memory(self, spectrogram: Float[np.ndarray, "m f"]) -> Memory:
        """Keys and values of the encoder's states, for one window."""
        return self._memory(self._params, jnp.asarray(spectrogram)[None])

    def language(self, memory: Memory) -> int:
        """The id of the likeliest language."""
        return int(self._detect(self._params, memory))

    def decode(self, memory: Memory, prompt: list[int], timestamps: bool) -> DecodedWindow:
        """Tokens that follow a prompt, written greedily.

        Args:
            memory: the window, from :meth:`memory`.
            prompt: token ids, the start token among them.
            timestamps: follow the rules of timestamps.
        """
        width = SHORT if len(prompt) <= SHORT else self.longest
        padded = np.full((1, width), self._tokens.end, np.int32)
        padded[0, : len(prompt)] = prompt
        start = len(prompt) - 1 - prompt[::-1].index(self._tokens.start)
        counts = np.array([len(prompt), start], np.int32)
        limit = min(len(prompt) + self._tokens.max_length, self.longest)
        found = self._decode(
            self._params, memory, padded, counts, np.int32(limit), np.bool_(timestamps)
        )
        return jax.device_get(found)

    def _language(self, params: Params, memory: Memory) -> Int[Array, ""]:
        start = jnp.full((1, 1), self._tokens.start, jnp.int32)
        cache = self._model.cache(1)
        states, _ = self._model.decode(params, start, jnp.zeros_like(start), cache, memory)
        ids = jnp.asarray(sorted(self._tokens.languages.values()), jnp.int32)
        return ids[jnp.argmax(self._model.project(params, states)[0, 0, ids])]

    def _tokens_of(
        self,
        params: Params,
        memory: Memory,
        prompt: Int[Array, "1 p"],
        counts: Int[Array, "2"],
        limit: Int[Array, ""],
        timestamps: Bool[Array, ""],
    ) -> DecodedWindow:
        """The whole program: the prompt, then token after token."""
        model, tokens = self._model, self._tokens
        positions = jnp.arange(prompt.shape[1], dtype=jnp.int32)[None]
        states, cache = model.decode(params, prompt, positions, model.cache(1), memory)
        # what the prompt was padded with lies behind its length, where nothing sees it
        cache = Cached(cache.states, counts[:1])
        asked = jnp.take(states, jnp.stack([counts[0] - 1, counts[1]]), axis=1)
        logits = model.project(params, asked)[0]
        silence = jax.nn.softmax(logits[1])[tokens.no_timestamps - 1]

        def more(carry: Any) -> Bool[Array, ""]:
            history = carry[3]
            return (history.last != tokens.end) & (counts[0] + history.count < limit)

        def step(carry: Any) -> Any:
            cache, logits, written, history, total = carry
            scores = self._scores(logits, history, timestamps)
            token = jnp.argmax(scores).astype(jnp.int32)
            total = total + jax.nn.log_softmax(scores)[token]
            written = written.at[history.count].set(token)
            states, cache = model.decode(
                params, token[None, None], cache.lengths[:, None], cache, memory
            )
            history = history.add(token, tokens.first_timestamp)
            return cache, model.project(params, states)[0, 0], written, history, total

        written = jnp.full(self.longest, tokens.end, jnp.int32)
        carry = (cache, logits[0], written, TimestampHistory.empty(), jnp.float32(0))
        _, _, written, history, total = jax.lax.while_loop(more, step, carry)
        return DecodedWindow(written, history.count, total, silence)

    def _scores(
        self, logits: Float[Array, "v"], history: TimestampHistory, timestamps: Bool[Array, ""]
    ) -> Float[Array, "v"]:
        """Logits, minus infinity at tokens that may not come next."""
        hidden = jnp.where(history.count == 0, self._not_first, self._never)
        scores = jnp.where(hidden, -jnp.inf, logits)
        ruled = by_timestamp_rules(scores, history, self._tokens)
        return jnp.where(timestamps, ruled, scores)


def by_timestamp_rules(
    scores: Float[Array, "v"], history: TimestampHistory, tokens: SpeechTokens
) -> Float[Array, "v"]:
    """Scores, minus infinity at tokens that the rules of timestamps forbid.

    The first token is a timestamp, of at most ``latest_first``. Timestamps come in pairs, but for
    one before the end token, and never decrease; the text between them is not empty. If all
    timestamps together are likelier than every other token, one of them comes next.

    Rules of OpenAI's ``ApplyTimestampRules`` (Radford et al. 2022, section 4.5).
    """
    first, v = tokens.first_timestamp, jnp.arange(scores.shape[0])
    stamp, nothing = v >= first, jnp.zeros(scores.shape, bool)
    last = (history.count >= 1) & (history.last >= first)
    before = (history.count < 2) | (history.before_last >= first)
    hidden = v == tokens.no_timestamps
    hidden |= jnp.where(last & before, stamp, nothing)
    hidden |= jnp.where(last & ~before, v < tokens.end, nothing)
    least = jnp.where(last & ~before, history.timestamp, history.timestamp + 1)
    hidden |= stamp & (v < least) & (history.timestamp >= 0)
    beyond = nothing
    if tokens.latest_first is not None:
        beyond = v > first + tokens.latest_first
    hidden |= jnp.where(history.count == 0, ~stamp | beyond, nothing)
    scores = jnp.where(hidden, -jnp.inf, scores)
    together = jax.nn.logsumexp(jnp.where(stamp, scores, -jnp.inf))
    likelier = together > jnp.max(jnp.where(stamp, -jnp.inf, scores))
    return jnp.where(likelier & ~stamp, -jnp.inf, scores)
