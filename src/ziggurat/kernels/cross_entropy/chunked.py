"""Chunks of tokens under ``lax.scan``; the gradient is taken in the forward pass.

The loss is a scalar, so its gradient up to a factor is known before the backward pass begins. While
a chunk's logits ``[c, v]`` are at hand, this code also turns them into the chunk's gradient of
``hidden`` and adds to the gradient of ``weight``; the backward pass only multiplies both by the
incoming scalar. That is three matmuls of ``n * v * d`` in all, and at most one chunk of
logits is alive. Without differentiation only the loss is computed (one matmul).

Method: Hsu et al., "Liger Kernel: Efficient Triton Kernels for LLM Training",
https://arxiv.org/abs/2410.10989, section 3.2 (fused linear cross-entropy).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero
from jaxtyping import Array, Float, Int

from ziggurat.kernels.cross_entropy.interface import (
    IMPLEMENTATIONS,
    LOG_PROBS,
    LinearCrossEntropy,
    Options,
)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Wanted:
    """Which gradients are wanted; static, so that it may travel among residuals."""

    hidden: bool
    weight: bool


class TokenStatistics(NamedTuple):
    """Per token of a chunk, float32 unless said."""

    log_prob: Float[Array, "*c"]
    log_normalizer: Float[Array, "*c"]
    correct: Array
    """bool"""


Scan = Callable[..., tuple[TokenStatistics, Array | None, Array | None]]
"""Type of :func:`scan_chunks`."""


def split(n: int, options: Options) -> tuple[int, int]:
    """``(chunks, tokens per chunk and shard)`` such that little is padded.

    >>> split(2050, Options(0.0, None, 1024, 1, jnp.dtype("float32")))
    (3, 684)
    """
    rows = -(-n // options.token_shards)
    chunks = -(-rows * options.token_shards // options.chunk_tokens)
    return chunks, -(-rows // chunks)


def to_chunks(x: Array, chunks: int, rows: int, shards: int) -> Array:
    """``[n, ...]`` to ``[chunks, shards, rows, ...]`` (``[chunks, rows, ...]`` for one shard),
    padded with zeros.

    A chunk takes every ``chunks``-th token of each shard, so that tokens sharded over devices stay
    where they are: each device holds its part of every chunk.
    """
    padding = chunks * rows * shards - x.shape[0]
    if padding:
        x = jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1))
    x = x.reshape(shards, rows, chunks, *x.shape[1:])
    x = jnp.moveaxis(x, 2, 0)
    return x[:, 0] if shards == 1 else x


def from_chunks(x: Array, n: int, shards: int) -> Array:
    """The inverse of :func:`to_chunks`."""
    x = x[:, None] if shards == 1 else x
    x = jnp.moveaxis(x, 0, 2)
    return x.reshape(-1, *x.shape[3:])[:n]


def chunk_logits(
    hidden: Float[Array, "c d"], weight: Float[Array, "v d"], cap: float | None
) -> Float[Array, "c v"]:
    """Float32 logits of one chunk; operands are in the compute dtype already."""
    logits = jax.lax.dot_general(
        hidden, weight, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
    )
    return logits if cap is None else cap * jnp.tanh(logits / cap)


def target_mask(targets: Int[Array, " c"], vocab: int) -> Array:
    """Where the target sits, ``[c, v]`` bool; fuses into its consumers, and works when the
    vocabulary is sharded, where a gather or scatter would communicate."""
    return jax.lax.broadcasted_iota(targets.dtype, (targets.shape[0], vocab), 1) == targets[:, None]


def token_statistics(logits: Float[Array, "c v"], targets: Int[Array, " c"]) -> TokenStatistics:
    """Log-probability of each target and the rest of :class:`TokenStatistics`."""
    vocab = logits.shape[-1]
    log_normalizer = jax.nn.logsumexp(logits, axis=-1)
    logit = jnp.sum(jnp.where(target_mask(targets, vocab), logits, 0.0), axis=-1)
    inside = (targets >= 0) & (targets < vocab)
    return TokenStatistics(
        log_prob=jnp.where(inside, logit - log_normalizer, jnp.nan),
        log_normalizer=log_normalizer,
        correct=inside & (logit >= logits.max(axis=-1)),
    )


def logit_gradient(
    logits: Float[Array, "c v"],
    targets: Int[Array, " c"],
    weights: Float[Array, " c"],
    log_normalizer: Float[Array, " c"],
    options: Options,
) -> Float[Array, "c v"]:
    """Gradient with respect to the logits before the soft cap, in the compute dtype.

    ``weights * ((1 + 2 z_loss log_normalizer) softmax(logits) - onehot(targets))``, times the
    slope of the soft cap.
    """
    scale = weights * (1.0 + 2.0 * options.z_loss * log_normalizer)
    probabilities = jnp.exp(logits - log_normalizer[:, None])
    mask = target_mask(targets, logits.shape[-1])
    gradient = scale[:, None] * probabilities - jnp.where(mask, weights[:, None], 0.0)
    if options.logit_softcap is not None:
        gradient *= 1.0 - (logits / options.logit_softcap) ** 2
    return gradient.astype(options.compute_dtype)


def scan_chunks(
    hidden: Float[Array, "n d"],
    weight: Float[Array, "v d"],
    targets: Int[Array, " n"],
    weights: Float[Array, " n"],
    options: Options,
    want_hidden: bool,
    want_weight: bool,
) -> tuple[TokenStatistics, Float[Array, "n d"] | None, Float[Array, "v d"] | None]:
    """Scan over chunks of tokens: statistics of every token, and the requested gradients."""
    n, shards = hidden.shape[0], options.token_shards
    chunks, rows = split(n, options)
    compute_weight = weight.astype(options.compute_dtype)

    def one(h: Array, t: Array, w: Array) -> tuple[TokenStatistics, Array | None, Array | None]:
        h = h.astype(options.compute_dtype)
        logits = chunk_logits(h, compute_weight, options.logit_softcap)
        statistics = token_statistics(logits, t)
        if not (want_hidden or want_weight):
            return statistics, None, None
        gradient = logit_gradient(logits, t, w, statistics.log_normalizer, options)
        dot = functools.partial(jax.lax.dot_general, preferred_element_type=jnp.float32)
        d_hidden = dot(gradient, compute_weight, (((1,), (0,)), ((), ()))) if want_hidden else None
        d_weight = dot(gradient, h, (((0,), (0,)), ((), ()))) if want_weight else None
        return statistics, None if d_hidden is None else d_hidden.astype(hidden.dtype), d_weight

    def step(total: Array | None, chunk: tuple[Array, Array, Array]):
        statistics, d_hidden, d_weight = (one if shards == 1 else jax.vmap(one))(*chunk)
        total = None if total is None or d_weight is None else total + d_weight
        return total, (statistics, d_hidden)

    shape = weight.shape if shards == 1 else (shards, *weight.shape)
    total = jnp.zeros(shape, jnp.float32) if want_weight else None
    h, t, w = (to_chunks(x, chunks, rows, shards) for x in (hidden, targets, weights))
    total, stacked = jax.lax.scan(step, total, (h, t, w))
    statistics, d_hidden = jax.tree.map(lambda x: from_chunks(x, n, shards), stacked)
    if total is not None:
        total = (total if shards == 1 else total.sum(axis=0)).astype(weight.dtype)
    return statistics, d_hidden, total


def _sums(
    statistics: TokenStatistics, weights: Float[Array, " n"], options: Options
) -> tuple[LinearCrossEntropy, Float[Array, " n"]]:
    """The result, and the loss of each token before weighting."""
    counts = weights != 0
    nll = jnp.where(counts, -statistics.log_prob, 0.0)
    z_loss = options.z_loss * statistics.log_normalizer**2
    total_nll, total_z = jnp.sum(weights * nll), jnp.sum(weights * z_loss)
    result = LinearCrossEntropy(
        loss=total_nll + total_z,
        nll=total_nll,
        z_loss=total_z,
        log_normalizer=jnp.sum(weights * statistics.log_normalizer),
        weight=jnp.sum(weights),
        correct=jnp.sum(counts & statistics.correct, dtype=jnp.int32),
    )
    return result, nll + z_loss


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _cross_entropy(
    hidden: Array, weight: Array, targets: Array, weights: Array, options: Options, scan: Scan
) -> LinearCrossEntropy:
    statistics, _, _ = scan(hidden, weight, targets, weights, options, False, False)
    return _sums(statistics, weights, options)[0]


def _forward(
    hidden: CustomVJPPrimal,
    weight: CustomVJPPrimal,
    targets: CustomVJPPrimal,
    weights: CustomVJPPrimal,
    options: Options,
    scan: Scan,
):
    arrays = (hidden.value, weight.value, targets.value, weights.value)
    statistics, d_hidden, d_weight = scan(*arrays, options, hidden.perturbed, weight.perturbed)
    result, token_loss = _sums(statistics, weights.value, options)
    return result, (d_hidden, d_weight, token_loss if weights.perturbed else None)


def _backward(
    options: Options, scan: Scan, residuals: tuple[Array | None, ...], cotangent: LinearCrossEntropy
):
    factor = cotangent.loss

    def scaled(x: Array | None) -> Array | None:
        if x is None or isinstance(factor, SymbolicZero):
            return None
        return (factor * x.astype(factor.dtype)).astype(x.dtype)

    d_hidden, d_weight, d_weights = map(scaled, residuals)
    return d_hidden, d_weight, None, d_weights


_cross_entropy.defvjp(_forward, _backward, symbolic_zeros=True)


@IMPLEMENTATIONS.register("chunked")
def chunked(
    hidden: Float[Array, "n d"],
    weight: Float[Array, "v d"],
    targets: Int[Array, " n"],
    weights: Float[Array, " n"],
    options: Options,
) -> LinearCrossEntropy:
    """The sums of :class:`LinearCrossEntropy` with one chunk of logits in memory at a time."""
    return summed(hidden, weight, targets, weights, options, scan_chunks)


def summed(
    hidden: Float[Array, "n d"],
    weight: Float[Array, "v d"],
    targets: Int[Array, " n"],
    weights: Float[Array, " n"],
    options: Options,
    scan: Scan,
) -> LinearCrossEntropy:
    """Gradients by a function of the type of :func:`scan_chunks`."""
    result: Any = _cross_entropy(hidden, weight, targets, weights, options, scan)
    loss, *reports = result
    return LinearCrossEntropy(loss, *(jax.lax.stop_gradient(x) for x in reports))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _log_probs(hidden: Array, weight: Array, targets: Array, options: Options, scan: Scan) -> Array:
    ones = jnp.ones(targets.shape, jnp.float32)
    return scan(hidden, weight, targets, ones, options, False, False)[0].log_prob


def _log_probs_forward(
    hidden: CustomVJPPrimal,
    weight: CustomVJPPrimal,
    targets: CustomVJPPrimal,
    options: Options,
    scan: Scan,
):
    arrays = hidden.value, weight.value, targets.value
    wanted = _Wanted(hidden.perturbed, weight.perturbed)
    return _log_probs(*arrays, options, scan), (arrays, wanted)


def _log_probs_backward(
    options: Options,
    scan: Scan,
    residuals: tuple[tuple[Array, ...], _Wanted],
    cotangent: Array | SymbolicZero,
):
    (hidden, weight, targets), wanted = residuals
    if isinstance(cotangent, SymbolicZero):
        return None, None, None
    weights = -cotangent.astype(jnp.float32)
    _, d_hidden, d_weight = scan(
        hidden, weight, targets, weights, options, wanted.hidden, wanted.weight
    )
    return d_hidden, d_weight, None


_log_probs.defvjp(_log_probs_forward, _log_probs_backward, symbolic_zeros=True)


@LOG_PROBS.register("chunked")
def chunked_log_probs(
    hidden: Float[Array, "n d"],
    weight: Float[Array, "v d"],
    targets: Int[Array, " n"],
    options: Options,
) -> Float[Array, " n"]:
    """Per-token log-probabilities. Each token's factor in the gradient is known only in the
    backward pass, which therefore computes the logits again, chunk by chunk."""
    return each_log_prob(hidden, weight, targets, options, scan_chunks)


def each_log_prob(
    hidden: Float[Array, "n d"],
    weight: Float[Array, "v d"],
    targets: Int[Array, " n"],
    options: Options,
    scan: Scan,
) -> Float[Array, " n"]:
    """Statistics by a function of the type of :func:`scan_chunks`."""
    result: Any = _log_probs(hidden, weight, targets, options, scan)
    return result
