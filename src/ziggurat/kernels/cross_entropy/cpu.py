"""The linear cross-entropy on CPU by our C++ kernel; float32, one device.

As ``chunked``, it takes the gradient in the forward pass and has one chunk of logits in memory.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ziggurat.core.errors import ConfigError
from ziggurat.kernels.cpu.operation import operation, usable
from ziggurat.kernels.cross_entropy.chunked import (
    TokenStatistics,
    each_log_prob,
    scan_chunks,
    summed,
)
from ziggurat.kernels.cross_entropy.interface import (
    IMPLEMENTATIONS,
    LOG_PROBS,
    LinearCrossEntropy,
    Options,
)
from ziggurat.kernels.placement import one_device


def serves(hidden: jax.Array, weight: jax.Array, options: Options) -> bool:
    """Whether the C++ kernel supports these arrays and options on this machine."""
    alone = options.token_shards == 1 and one_device()
    wide = options.compute_dtype == jnp.float32
    return alone and wide and usable("cross_entropy", hidden, weight)


@IMPLEMENTATIONS.register("cpu")
def cpu_cross_entropy(
    hidden: Float[Array, "n d"],
    weight: Float[Array, "v d"],
    targets: Int[Array, " n"],
    weights: Float[Array, " n"],
    options: Options,
) -> LinearCrossEntropy:
    """The sums of :class:`LinearCrossEntropy` with one chunk of logits in memory at a time.

    Raises:
        ConfigError: the kernel is not built, or not for this platform, type or sharding.
    """
    _check(hidden, weight, options)
    return summed(hidden, weight, targets, weights, options, _scan)


@LOG_PROBS.register("cpu")
def cpu_log_probs(
    hidden: Float[Array, "n d"],
    weight: Float[Array, "v d"],
    targets: Int[Array, " n"],
    options: Options,
) -> Float[Array, " n"]:
    """Per-token log-probabilities; the backward pass computes the logits again.

    Raises:
        ConfigError: the kernel is not built, or not for this platform, type or sharding.
    """
    _check(hidden, weight, options)
    return each_log_prob(hidden, weight, targets, options, _scan)


def _check(hidden: jax.Array, weight: jax.Array, options: Options) -> None:
    if not serves(hidden, weight, options):
        raise ConfigError(
            "cross-entropy implementation",
            found=f"'cpu' for {options.compute_dtype} in {options.token_shards} shards",
            expected="float32 on one CPU device with built kernels",
            fix="use 'auto'; ziggurat kernels list says what is built",
        )


def _scan(
    hidden: Float[Array, "n d"],
    weight: Float[Array, "v d"],
    targets: Int[Array, " n"],
    weights: Float[Array, " n"],
    options: Options,
    want_hidden: bool,
    want_weight: bool,
) -> tuple[TokenStatistics, Float[Array, "n d"] | None, Float[Array, "v d"] | None]:
    """Results of :func:`scan_chunks`, by the C++ kernel."""
    log_prob, log_normalizer, correct, d_hidden, d_weight = _call(
        hidden,
        weight,
        targets.astype(jnp.int32),
        weights.astype(jnp.float32),
        z_loss=options.z_loss,
        softcap=float(options.logit_softcap or 0.0),
        chunk_tokens=options.chunk_tokens,
        want_hidden=want_hidden,
        want_weight=want_weight,
    )
    statistics = TokenStatistics(log_prob, log_normalizer, correct)
    return statistics, d_hidden if want_hidden else None, d_weight if want_weight else None


def _shapes(hidden, weight, targets, weights, *, want_hidden, want_weight, **_):
    n = hidden.shape[0]
    return [
        jax.ShapeDtypeStruct((n,), jnp.float32),
        jax.ShapeDtypeStruct((n,), jnp.float32),
        jax.ShapeDtypeStruct((n,), jnp.bool_),
        jax.ShapeDtypeStruct(hidden.shape if want_hidden else (0, 0), jnp.float32),
        jax.ShapeDtypeStruct(weight.shape if want_weight else (0, 0), jnp.float32),
    ]


def _plain(
    hidden, weight, targets, weights, *, z_loss, softcap, chunk_tokens, want_hidden, want_weight
):
    options = Options(z_loss, softcap or None, chunk_tokens, 1, jnp.dtype(jnp.float32))
    statistics, *gradients = scan_chunks(
        hidden, weight, targets, weights, options, want_hidden, want_weight
    )
    none = jnp.zeros((0, 0), jnp.float32)
    return [*statistics, *(none if x is None else x for x in gradients)]


_call = operation("cross_entropy", _shapes, _plain)
