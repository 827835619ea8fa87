"""Log-probabilities of a prompt's own tokens, computed chunk by chunk as the prompt is prefilled.

The first token has none: nothing stands before it. A sequence that asks for them reads no blocks of
the prefix cache, since the hidden states of cached tokens are gone.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ziggurat.serve.llm.buckets import SMALLEST_CHUNK
from ziggurat.serve.llm.sampling import log_probabilities

Head = Callable[[Float[Array, "b d"]], Float[Array, "b v"]]


class PromptLogprobs(NamedTuple):
    """Log-probabilities of consecutive tokens under the model, before temperature."""

    chosen: Float[np.ndarray, "t"]
    ranks: Int[np.ndarray, "t"]
    """Places of the tokens among all, from 1: one more than there are likelier ones."""
    top: Float[np.ndarray, "t top"]
    """Greatest log-probabilities, greatest first."""
    ids: Int[np.ndarray, "t top"]
    """Token ids of ``top``."""

    @classmethod
    def empty(cls) -> "PromptLogprobs":
        """Log-probabilities of no token."""
        none, wide = np.zeros(0, np.float32), np.zeros((0, 0), np.float32)
        return cls(none, none.astype(np.int32), wide, wide.astype(np.int32))

    def after(self, start: int, more: "PromptLogprobs") -> "PromptLogprobs":
        """Join those before ``start`` and ``more``."""
        if start == 0:
            return more
        return PromptLogprobs(*(np.concatenate([a[:start], b]) for a, b in zip(self, more)))

    def cut(self, count: int, width: int) -> "PromptLogprobs":
        """Copy those of the first ``count`` tokens, with ``width`` likely ones each."""
        chosen, ranks, top, ids = (np.asarray(part)[:count] for part in self)
        return PromptLogprobs(chosen, ranks, top[:, :width].copy(), ids[:, :width].copy())


def prompt_log_probabilities(
    head: Head, hidden: Float[Array, "t d"], tokens: Int[Array, "t"]
) -> tuple[Float[Array, "t"], Int[Array, "t"], Float[Array, "t top"], Int[Array, "t top"]]:
    r"""Log-probability :math:`\log p(x_{i+1} \mid x_{\le i})` of each token, its rank, and the
    likeliest tokens.

    Logits are made for a few tokens at a time: those of a whole chunk would be as large as the
    model's widest weight.

    Args:
        head: hidden states to logits.
        hidden: hidden states of the tokens before.
        tokens: the tokens.
    """
    count, step = tokens.shape[0], SMALLEST_CHUNK
    more = -count % step
    padded = jnp.pad(hidden, ((0, more), (0, 0))), jnp.pad(tokens, (0, more))

    def some(part: tuple[Array, Array]) -> tuple[Array, Array, Array, Array]:
        states, targets = part
        logits = head(states)
        chosen, top, ids = log_probabilities(logits, targets)
        own = jnp.take_along_axis(logits, targets[:, None], axis=-1)
        return chosen, jnp.sum(logits > own, axis=-1, dtype=jnp.int32) + 1, top, ids

    parts = jax.lax.map(some, jax.tree.map(lambda x: x.reshape(-1, step, *x.shape[1:]), padded))
    chosen, ranks, top, ids = (x.reshape(-1, *x.shape[2:])[:count] for x in parts)
    return chosen, ranks, top, ids
