"""Attention: one function, several implementations, the same result.

``implementation="auto"`` picks by platform; the names below may be forced. Other kernels join the
table in :data:`IMPLEMENTATIONS` without a change above it.
"""

from collections.abc import Callable

import jax
from jaxtyping import Array, Float

from ziggurat.core.errors import ConfigError
from ziggurat.core.registry import Registry
from ziggurat.kernels.attention import cpu
from ziggurat.kernels.attention.cpu import cpu_attention
from ziggurat.kernels.attention.mask import AttentionMask
from ziggurat.kernels.attention.reference import (
    SMALLEST_BLOCK,
    blocked_attention,
    grouped_attention,
    reference_attention,
)
from ziggurat.kernels.attention.splash import serves, splash_attention
from ziggurat.kernels.choices import chosen
from ziggurat.kernels.placement import platform
from ziggurat.mesh import active_ways

__all__ = ["IMPLEMENTATIONS", "AttentionMask", "attention"]

IMPLEMENTATIONS: Registry[Callable[..., Array]] = Registry("attention implementation")
IMPLEMENTATIONS.add("reference", reference_attention)
IMPLEMENTATIONS.add("grouped", grouped_attention)
IMPLEMENTATIONS.add("blocked", blocked_attention)
IMPLEMENTATIONS.add("splash", splash_attention)
IMPLEMENTATIONS.add("cpu", cpu_attention)
DENSE = ("grouped", "reference")
"""Implementations that add a bias to the scores, and take masks whose queries see later keys."""


def attention(
    query: Float[Array, "b t h c"],
    key: Float[Array, "b s k c"],
    value: Float[Array, "b s k z"],
    mask: AttentionMask,
    *,
    scale: float,
    softcap: float | None = None,
    sinks: Float[Array, "h"] | None = None,
    bias: Float[Array, "*rows h t s"] | None = None,
    implementation: str = "auto",
) -> Float[Array, "b t h z"]:
    r"""Grouped-query attention :math:`\mathrm{softmax}(s\,QK^T + M)V`, softmax in float32.

    Args:
        query: queries; ``h`` is a multiple of ``k``.
        key: keys, shared by ``h / k`` query heads each.
        value: values; their channels ``z`` may be others than the keys' ``c``.
        mask: who may see whom.
        scale: multiplies the scores, usually ``c ** -0.5``.
        softcap: if given, scores become ``softcap * tanh(scores / softcap)`` (Gemma 2).
        sinks: if given, a score per query head that joins the softmax with nothing to mix in, so
            that a head may attend to nothing (GPT-OSS; Xiao et al. 2023,
            https://arxiv.org/abs/2309.17453).
        bias: if given, added to the scores (relative positions), the same in every row or not;
            ``reference`` and ``grouped`` take it, and a mask with ``query_last``.
        implementation: ``"auto"`` or a name in :data:`IMPLEMENTATIONS`.

    Raises:
        ConfigError: no such implementation, or not for this mask.

    Papers: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762; Ainslie et al. 2023 (GQA),
    https://arxiv.org/abs/2305.13245.
    """
    dense = bias is not None or mask.query_last is not None
    if implementation == "auto":
        implementation = "grouped" if dense else _choose(query, key, value, mask)
    if dense and implementation not in DENSE:
        what = "queries that see later keys" if bias is None else "a bias on the scores"
        raise ConfigError(
            "attention implementation",
            found=f"{implementation!r} with {what}",
            expected="one of " + ", ".join(DENSE),
            fix="use 'auto'",
        )
    if implementation == "blocked" and not (mask.aligned and mask.causal):
        raise ConfigError(
            "attention implementation",
            found="'blocked' with keys that are not the queries' own tokens",
            expected="an aligned causal mask",
            fix="use 'auto'",
        )
    more = {} if bias is None else {"bias": bias}
    with jax.named_scope("attend"):  # scores and mixing, without the projections
        return IMPLEMENTATIONS[implementation](
            query, key, value, mask, scale=scale, softcap=softcap, sinks=sinks, **more
        )


def _choose(query: Array, key: Array, value: Array, mask: AttentionMask) -> str:
    """Blocks need whole rows on one device; short rows have nothing to skip."""
    length, heads = query.shape[1:3]
    if platform() == "tpu" and serves(length, heads, mask):
        return "splash"
    whole = mask.aligned and mask.causal and active_ways("sequence") == 1
    long = isinstance(length, int) and length >= cpu.LEAST_QUERIES  # an export may leave it open
    able = {"cpu": long and cpu.serves(query, key, value, mask), "blocked": whole, "grouped": True}
    tuned = chosen("attention", length) if long else None
    if tuned and able.get(tuned):
        return tuned
    if able["cpu"]:
        return "cpu"
    return "blocked" if whole and length >= 2 * SMALLEST_BLOCK else "grouped"
