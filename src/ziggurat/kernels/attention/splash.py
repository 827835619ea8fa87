"""Attention on TPU by JAX's splash kernel: scores never leave the chip, hidden blocks are skipped.

The kernel is ``jax.experimental.pallas.ops.tpu.splash_attention``; what stands here gives it our
masks and runs it on each device's own rows and heads, since XLA cannot partition a Pallas kernel.
Method: Dao et al. 2022 (FlashAttention), https://arxiv.org/abs/2205.14135.
"""

import functools
from typing import Any

import jax
from jaxtyping import Array, Float, Int

from ziggurat.core.errors import ConfigError
from ziggurat.kernels.attention.mask import AttentionMask
from ziggurat.kernels.attention.per_device import on_each_device, whole_on_a_device
from ziggurat.kernels.placement import platform

LANES, LARGEST_BLOCK = 128, 512
"""A block's edge is a multiple of the first; the second is not tuned for any one chip."""


def serves(length: int, heads: int, mask: AttentionMask) -> bool:
    """Whether the kernel supports these rows: whole on a device, in blocks of full lanes."""
    whole = whole_on_a_device(heads)
    return whole and mask.aligned and mask.causal and length % LANES == 0


def splash_attention(
    query: Float[Array, "b t h c"],
    key: Float[Array, "b s k c"],
    value: Float[Array, "b s k z"],
    mask: AttentionMask,
    *,
    scale: float,
    softcap: float | None = None,
    sinks: Float[Array, "h"] | None = None,
) -> Float[Array, "b t h z"]:
    """Attention by Pallas' splash kernel, for aligned causal masks.

    On platforms other than TPU it runs in Pallas's interpreter, which is for tests.

    Raises:
        ConfigError: another mask, rows not whole on a device, or no multiple of 128 tokens.
    """
    if not serves(query.shape[1], query.shape[2], mask):
        raise ConfigError(
            "attention implementation",
            found=f"'splash' for {query.shape[1]} tokens a row",
            expected=f"whole rows of a multiple of {LANES} tokens under an aligned causal mask",
            fix="use 'auto'",
        )
    interpret = platform() != "tpu"
    attend = functools.partial(_local, window=mask.window, softcap=softcap, interpret=interpret)
    query = (query * scale).astype(query.dtype)
    segments = mask.query_segments, mask.key_segments
    return on_each_device(attend, query, key, value, segments, sinks)


def _local(
    query: Float[Array, "b t h c"],
    key: Float[Array, "b s k c"],
    value: Float[Array, "b s k z"],
    per_row: tuple[Int[Array, "b t"] | None, Int[Array, "b s"] | None],
    sinks: Float[Array, "h"] | None,
    *,
    window: int | None,
    softcap: float | None,
    interpret: bool,
) -> Float[Array, "b t h z"]:
    """One device's rows and heads."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    query_segments, key_segments = per_row
    length, heads = query.shape[1:3]
    size = max(n for n in (LANES, 2 * LANES, LARGEST_BLOCK) if length % n == 0)
    edges = dict.fromkeys(("block_q", "block_kv", "block_q_dkv", "block_kv_dkv"), size)
    edges |= dict.fromkeys(("block_q_dq", "block_kv_dq"), size)
    shape = (length, length)
    rule = (
        splash.CausalMask(shape)
        if window is None or window >= length
        else splash.LocalMask(shape, (window - 1, 0), offset=0)
    )
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([rule] * heads),
        block_sizes=splash.BlockSizes(**edges),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=softcap,
        interpret=interpret,
    )

    def row(q, k, v, q_segments, kv_segments):
        segments = None if q_segments is None else splash.SegmentIds(q_segments, kv_segments)
        heads_first = (x.swapaxes(0, 1) for x in (q, k, v))
        out: Any = kernel(*heads_first, segments, sinks)
        return out.swapaxes(0, 1)

    ids = None if query_segments is None else 0
    return jax.vmap(row, in_axes=(0, 0, 0, ids, ids))(
        query, key, value, query_segments, key_segments
    )
