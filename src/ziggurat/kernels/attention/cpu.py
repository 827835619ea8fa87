"""Attention on CPU by our C++ kernel, which stores no scores; float32, every mask but windows that
reach to both sides.

Gradients recompute the scores from the stored log-sums. Method: Dao et al. 2022 (FlashAttention),
https://arxiv.org/abs/2205.14135.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ziggurat.core.errors import ConfigError
from ziggurat.kernels.attention.mask import AttentionMask
from ziggurat.kernels.attention.per_device import on_each_device, whole_on_a_device
from ziggurat.kernels.attention.reference import HIDDEN
from ziggurat.kernels.cpu.operation import operation, usable

LEAST_QUERIES = 16
"""Shorter rows, single tokens above all, are not worth the copies that the kernel makes."""


class _Rule(NamedTuple):
    """The static part of a call, as the C++ takes it."""

    scale: float
    softcap: float
    """0: none."""
    window: int
    """0: all keys."""
    causal: bool
    segments: bool


def serves(query: jax.Array, key: jax.Array, value: jax.Array, mask: AttentionMask) -> bool:
    """Whether the C++ kernel supports these arrays and this mask on this machine."""
    one_sided = mask.causal or mask.window is None  # the C++ knows no other window
    whole = whole_on_a_device(query.shape[2])
    return one_sided and whole and usable("attention", query, key, value)


def cpu_attention(
    query: Float[Array, "b t h c"],
    key: Float[Array, "b s k c"],
    value: Float[Array, "b s k z"],
    mask: AttentionMask,
    *,
    scale: float,
    softcap: float | None = None,
    sinks: Float[Array, "h"] | None = None,
) -> Float[Array, "b t h z"]:
    """Attention of the C++ kernel; a query that sees no key gives 0, with gradient 0.

    Raises:
        ConfigError: the kernel is not built, or not for this platform, type, mask or sharding.
    """
    if not serves(query, key, value, mask):
        raise ConfigError(
            "attention implementation",
            found=f"'cpu' for {query.dtype}",
            expected="float32 on CPU with built kernels, whole rows on a device, no window in both "
            "directions",
            fix="use 'auto'; ziggurat kernels list says what is built",
        )
    segments = mask.query_segments is not None and mask.key_segments is not None
    rule = _Rule(float(scale), float(softcap or 0.0), mask.window or 0, mask.causal, segments)
    attend = functools.partial(_local, rule=rule)
    per_row = (
        mask.query_positions,
        mask.key_positions,
        mask.query_segments if segments else None,
        mask.key_segments if segments else None,
    )
    return on_each_device(attend, query, key, value, per_row, sinks)


def _local(query, key, value, per_row, sinks, *, rule: _Rule) -> jax.Array:
    """One device's rows and heads."""
    none = jnp.zeros((1, 1), jnp.int32)
    rows = [none if x is None else x.astype(jnp.int32) for x in per_row]
    sinks = None if sinks is None else sinks.astype(jnp.float32)
    return _attend(query, key, value, sinks, *rows, rule)


@functools.partial(jax.custom_vjp, nondiff_argnums=(8,))
def _attend(query, key, value, sinks, at, key_at, segments, key_segments, rule):
    return _forward(query, key, value, sinks, at, key_at, segments, key_segments, rule)[0]


def _forward(query, key, value, sinks, at, key_at, segments, key_segments, rule):
    there = sinks is not None
    sink = sinks if there else jnp.zeros(1, jnp.float32)
    arrays = query, key, value, at, key_at, segments, key_segments
    out, log_sums = _call_forward(*arrays, sink, sinks=there, **rule._asdict())
    return out, (*arrays, sinks, out, log_sums)


def _backward(rule, kept, d_out):
    *arrays, sinks, out, log_sums = kept
    d_query, d_key, d_value = _call_backward(*arrays, out, log_sums, d_out, **rule._asdict())
    d_sinks = None
    if sinks is not None:  # a sink's weight times what its constant zero would have to change
        weights = jnp.exp(sinks[None, :, None] - log_sums)
        d_sinks = -jnp.einsum("bht,bth->h", weights, (d_out * out).sum(-1))
    return d_query, d_key, d_value, d_sinks, None, None, None, None


_attend.defvjp(_forward, _backward)


def _shapes(query, key, value, *rest, **rule):
    b, t, h, _ = query.shape
    out = jax.ShapeDtypeStruct((b, t, h, value.shape[-1]), jnp.float32)
    return [out, jax.ShapeDtypeStruct((b, h, t), jnp.float32)]


def _gradient_shapes(query, key, value, *rest, **rule):
    return [jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in (query, key, value)]


def _scores(query, key, rule) -> jax.Array:
    """``[b, h, t, s]`` before the mask."""
    key = jnp.repeat(key, query.shape[2] // key.shape[2], axis=2)
    scores = jnp.einsum("bthc,bshc->bhts", query, key) * rule["scale"]
    cap = rule["softcap"]
    return cap * jnp.tanh(scores / cap) if cap else scores


def _weights(scores, masks, log_sums, rule) -> jax.Array:
    """Softmax by known log-sums; 0 where hidden."""
    at, key_at, segments, key_segments = masks
    both = (segments, key_segments) if rule["segments"] else (None, None)
    who = AttentionMask(at, key_at, *both, causal=rule["causal"], window=rule["window"] or None)
    visible = who.dense()[:, None]
    if log_sums is None:
        return jnp.where(visible, scores, HIDDEN)
    return jnp.where(visible, jnp.exp(scores - log_sums[..., None]), 0.0)


def _plain(query, key, value, *masks_and_sink, sinks, **rule):
    *masks, sink = masks_and_sink
    scores = _scores(query, key, rule)
    hidden = _weights(scores, masks, None, rule)
    if sinks:
        rows = jnp.broadcast_to(sink[None, :, None, None], (*hidden.shape[:3], 1))
        hidden = jnp.concatenate([hidden, rows], -1)
    log_sums = jax.nn.logsumexp(hidden, axis=-1)
    log_sums = jnp.where(log_sums <= HIDDEN / 2, 0.0, log_sums)
    weights = _weights(scores, masks, log_sums, rule)
    value = jnp.repeat(value, query.shape[2] // value.shape[2], axis=2)
    return jnp.einsum("bhts,bshz->bthz", weights, value), log_sums


def _plain_gradient(query, key, value, *rest, **rule):
    *masks, out, log_sums, d_out = rest
    groups = query.shape[2] // key.shape[2]
    scores, scored = jax.vjp(lambda query, key: _scores(query, key, rule), query, key)
    weights = _weights(scores, masks, log_sums, rule)
    wide = jnp.repeat(value, groups, axis=2)
    inner = (d_out * out).sum(-1).transpose(0, 2, 1)[..., None]
    slopes = weights * (jnp.einsum("bthz,bshz->bhts", d_out, wide) - inner)
    d_value = jnp.einsum("bhts,bthz->bshz", weights, d_out)
    d_value = d_value.reshape(*value.shape[:3], groups, -1).sum(3)
    return *scored(slopes), d_value


_call_forward = operation("attention", _shapes, _plain)
_call_backward = operation("attention_gradient", _gradient_shapes, _plain_gradient)
