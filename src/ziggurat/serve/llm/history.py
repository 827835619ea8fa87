"""Logits processing on the device: bias, penalties and masks of a batch of rows.

Token counts stay on the device, one row for each sequence with a bias or a penalty, so that a step
uploads only one bit per vocabulary entry. Batches without any of them skip this module.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from ziggurat.serve.llm.sampling import MAX_BIASES, NEVER, SamplingArrays, SamplingParams, sample

WORD = 32


class History(NamedTuple):
    """Token counts and logit bias by slot; the last row serves sequences without bias and
    penalties."""

    seen: Bool[Array, "slots v"]
    """Tokens in prompt or output."""
    counts: Int[Array, "slots v"]
    """How often the output holds each."""
    bias: Float[Array, "slots v"]

    @classmethod
    def empty(cls, slots: int, vocab: int) -> "History":
        """Empty rows for ``slots`` sequences, and the row of the others."""
        shape = (slots + 1, vocab)
        return cls(jnp.zeros(shape, bool), jnp.zeros(shape, jnp.int32), jnp.zeros(shape))


def load(
    history: History,
    slot: Int[Array, ""],
    tokens: Int[Array, "t"],
    prompt: Int[Array, ""],
    total: Int[Array, ""],
    bias: tuple[Int[Array, "biases"], Float[Array, "biases"]],
) -> History:
    """Write one sequence's row.

    Args:
        history: all rows.
        slot: which.
        tokens: prompt and output, padded.
        prompt: how many are the prompt's.
        total: how many there are.
        bias: ids, padded with ids out of range, and what is added to their logits.
    """
    vocab, at = history.seen.shape[1], jnp.arange(tokens.shape[0])
    every = jnp.where(at < total, tokens, vocab)
    output = jnp.where(at >= prompt, every, vocab)
    return History(
        history.seen.at[slot].set(jnp.zeros(vocab, bool).at[every].set(True, mode="drop")),
        history.counts.at[slot].set(jnp.zeros(vocab, jnp.int32).at[output].add(1, mode="drop")),
        history.bias.at[slot].set(jnp.zeros(vocab).at[bias[0]].set(bias[1], mode="drop")),
    )


def shape_logits(
    logits: Float[Array, "b v"],
    history: History,
    slots: Int[Array, "b"],
    sampling: SamplingArrays,
    words: UInt32[Array, "b words"],
) -> Float[Array, "b v"]:
    r"""Logits after bias, penalties and mask, in vLLM's order and with its formulas.

    :math:`z_i + b_i`; then, for tokens seen, divided by the repetition penalty if positive and
    multiplied if negative; then less frequency penalty times count, and less presence penalty where
    the count is not 0; then :math:`-\infty` for ids whose bit is not set.
    """
    seen, counts, bias = (rows[slots] for rows in history)
    z = logits + bias
    repetition = sampling.numbers["repetition_penalty"][:, None]
    z = jnp.where(seen, jnp.where(z > 0, z / repetition, z * repetition), z)
    frequency = sampling.numbers["frequency_penalty"][:, None]
    presence = sampling.numbers["presence_penalty"][:, None]
    z -= frequency * counts.astype(z.dtype) + presence * (counts > 0).astype(z.dtype)
    return jnp.where(_bits(words, logits.shape[1]), z, NEVER)


def sample_shaped(
    history: History,
    logits: Float[Array, "b v"],
    slots: Int[Array, "b"],
    sampling: SamplingArrays,
    words: UInt32[Array, "b words"],
    positions: Int[Array, "b"],
) -> tuple[History, Int[Array, "b"]]:
    """Sample a token per row from shaped logits, and count it in the history."""
    tokens = sample(shape_logits(logits, history, slots, sampling, words), sampling, positions)
    seen = history.seen.at[slots, tokens].set(True)
    counts = history.counts.at[slots, tokens].add(1)
    return History(seen, counts, history.bias), tokens


def _bits(words: Array, vocab: int) -> Array:
    bits = (words[:, :, None] >> jnp.arange(WORD, dtype=jnp.uint32)[None, None]) & 1
    return bits.reshape(words.shape[0], -1)[:, :vocab] > 0


def bias_of(params: SamplingParams, vocab: int) -> tuple[np.ndarray, np.ndarray]:
    """Convert a request's logit bias to the arrays that :func:`load` takes."""
    ids, values = np.full(MAX_BIASES, vocab, np.int32), np.zeros(MAX_BIASES, np.float32)
    for place, (token, value) in enumerate(params.logit_bias):
        ids[place], values[place] = token, value
    return ids, values


def keeps_history(params: SamplingParams) -> bool:
    """Whether a request needs a row in the history."""
    penalties = params.presence_penalty, params.frequency_penalty
    return bool(params.logit_bias) or penalties != (0, 0) or params.repetition_penalty != 1


def all_but(ids: Sequence[int], vocab: int) -> np.ndarray:
    """A mask of all ids but some.

    >>> [hex(word) for word in all_but([0, 33], 40)]
    ['0xfffffffe', '0xfffffffd']
    """
    words = np.full(-(-vocab // WORD), 0xFFFFFFFF, np.uint32)
    for token in ids:
        words[token // WORD] &= ~np.uint32(1 << (token % WORD))
    return words
