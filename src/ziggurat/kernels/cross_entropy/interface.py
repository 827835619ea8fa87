"""Interface of the linear cross-entropy: arguments and results of every implementation."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ziggurat.core.registry import Registry


class LinearCrossEntropy(NamedTuple):
    """Sums over tokens, each token counted ``weights`` times; all scalars.

    Only ``loss`` carries a gradient. The others are for reports: differentiating them gives zero.
    """

    loss: Float[Array, ""]
    """Loss to minimise, ``nll + z_loss``; float32, nats."""
    nll: Float[Array, ""]
    """Sum of ``weights * -log p(target)``; float32, nats."""
    z_loss: Float[Array, ""]
    """Sum of ``weights * z_loss * log_normalizer ** 2``; float32, 0 when the coefficient is 0."""
    log_normalizer: Float[Array, ""]
    """Sum of ``weights * logsumexp(logits)``; float32. Drift from 0 is what the z-loss holds."""
    weight: Float[Array, ""]
    """Sum of ``weights``; float32. Divide by it for a mean."""
    correct: Int[Array, ""]
    """Tokens of non-zero weight whose target has the largest logit (ties count); int32."""


class Options(NamedTuple):
    """Static arguments of a call, checked by the dispatching function."""

    z_loss: float
    logit_softcap: float | None
    chunk_tokens: int
    token_shards: int
    compute_dtype: jnp.dtype


Implementation = Callable[
    [Float[Array, "n d"], Float[Array, "v d"], Int[Array, " n"], Float[Array, " n"], Options],
    LinearCrossEntropy,
]
"""``hidden, weight, targets, weights, options`` to the sums."""

IMPLEMENTATIONS: Registry[Implementation] = Registry("cross-entropy implementation")
"""Implementations by name; a Pallas or FFI kernel registers itself here."""

LogProbs = Callable[
    [Float[Array, "n d"], Float[Array, "v d"], Int[Array, " n"], Options], Float[Array, " n"]
]
"""``hidden, weight, targets, options`` to log-probabilities; ``options.z_loss`` is 0."""

LOG_PROBS: Registry[LogProbs] = Registry("log-probability implementation")
"""Implementations of the per-token form by name."""
