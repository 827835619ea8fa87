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
from ziggurat.mesh import Layout, active_layout

LANES, LARGEST_BLOCK = 128, 512
"""A block's edge is a multiple of the first; the second is not tuned for any one chip."""


def platform() -> str:
    """Where what is traced now will run: the active layout's devices, else JAX's backend."""
    layout = active_layout()
    return jax.default_backend() if layout is None else layout.mesh.devices.flat[0].platform


def serves(length: int, heads: int, mask: AttentionMask) -> bool:
    """Whether the kernel can take these rows: whole on a device, in blocks of full lanes."""
    layout = active_layout()
    whole = layout is None or (
        layout.ways("sequence") == 1
        and layout.ways("heads") == layout.ways("kv_heads")
        and heads % layout.ways("heads") == 0
    )
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
    """The same as the reference for aligned causal masks; on another platform than TPU through
    Pallas's interpreter, which is for tests.

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
    layout = active_layout()
    if layout is not None and layout.mesh.size > 1:
        attend = _on_each_device(attend, layout)
    return attend(query, key, value, mask.query_segments, mask.key_segments, sinks)


def _on_each_device(attend, layout: Layout):
    rows = layout.spec(("batch", None))
    q = layout.spec(("batch", None, "heads", None))
    kv = layout.spec(("batch", None, "kv_heads", None))

    def call(query, key, value, query_segments, key_segments, sinks):
        specs = (q, kv, kv, rows, rows, layout.spec(("heads",)))
        given = (query, key, value, query_segments, key_segments, sinks)
        specs = tuple(None if x is None else spec for x, spec in zip(given, specs))
        # the kernel does not say over which axes its results vary, so that cannot be checked
        local = jax.shard_map(
            attend, mesh=layout.mesh, in_specs=specs, out_specs=q, check_vma=False
        )
        return local(*given)

    return call


def _local(
    query: Float[Array, "b t h c"],
    key: Float[Array, "b s k c"],
    value: Float[Array, "b s k z"],
    query_segments: Int[Array, "b t"] | None,
    key_segments: Int[Array, "b s"] | None,
    sinks: Float[Array, "h"] | None,
    *,
    window: int | None,
    softcap: float | None,
    interpret: bool,
) -> Float[Array, "b t h z"]:
    """One device's rows and heads."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

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
