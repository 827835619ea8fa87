"""Cross-entropy of a linear output layer that never holds the logits of all tokens.

>>> import jax, jax.numpy as jnp
>>> hidden, weight = jnp.eye(4, 8), jnp.zeros((16, 8))
>>> out = linear_cross_entropy(
...     hidden, weight, jnp.arange(4), jnp.ones(4), chunk_tokens=2
... )
>>> print(f"{out.loss / out.weight:.4f} nats, log(16) is {jnp.log(16):.4f}")
2.7726 nats, log(16) is 2.7726
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ziggurat.core.errors import ConfigError, ShapeError
from ziggurat.kernels.choices import chosen
from ziggurat.kernels.cross_entropy import chunked as _chunked  # noqa: F401  registers itself
from ziggurat.kernels.cross_entropy import cpu
from ziggurat.kernels.cross_entropy import reference as _reference  # noqa: F401
from ziggurat.kernels.cross_entropy.interface import (
    IMPLEMENTATIONS,
    LOG_PROBS,
    Implementation,
    LinearCrossEntropy,
    Options,
)

__all__ = [
    "IMPLEMENTATIONS",
    "LOG_PROBS",
    "Implementation",
    "LinearCrossEntropy",
    "Options",
    "linear_cross_entropy",
    "linear_log_probs",
]


def linear_cross_entropy(
    hidden: Float[Array, "n d"],
    weight: Float[Array, "v d"],
    targets: Int[Array, " n"],
    weights: Float[Array, " n"],
    *,
    z_loss: float = 0.0,
    logit_softcap: float | None = None,
    chunk_tokens: int,
    implementation: str = "auto",
    compute_dtype: jax.typing.DTypeLike | None = None,
    token_shards: int = 1,
) -> LinearCrossEntropy:
    r"""Weighted sum of next-token losses of the output layer ``hidden @ weight.T``.

    .. math::

        \ell_{ij} = c \tanh(h_i \cdot W_j / c), \quad z_i = \log \sum_j e^{\ell_{ij}}, \quad
        L = \sum_i w_i (z_i - \ell_{i y_i} + \zeta z_i^2)

    with soft cap :math:`c` (none: :math:`\ell_{ij} = h_i \cdot W_j`) and z-loss coefficient
    :math:`\zeta`. Divide by the number of target tokens outside: under gradient accumulation that
    number is known only over all micro-batches.

    Differentiate ``loss`` only. It must not sit inside ``jax.checkpoint``: ``chunked`` computes
    the gradient in the forward pass and keeps no logits, so rematerialisation only repeats work.

    Args:
        hidden: activations after the last norm.
        weight: output embedding, one row per vocabulary entry.
        targets: the id to predict, in ``[0, v)``. Outside it, a token of weight 0 is ignored and
            any other makes the loss NaN.
        weights: per token, usually the loss mask; 0 leaves a token out. With float16 operands put
            the loss scale in here, since the gradient is computed before the backward pass.
        z_loss: coefficient of the squared log-normaliser; 1e-4 in PaLM.
        logit_softcap: bound of the logits, 30 in Gemma 2.
        chunk_tokens: tokens whose logits ``[chunk_tokens, v]`` (float32) exist at once, over all
            devices together.
        implementation: ``auto``, or a name of :data:`IMPLEMENTATIONS`.
        compute_dtype: of the operands of the matmuls, default that of ``hidden``. Matmuls
            accumulate, and everything else is computed, in float32.
        token_shards: number of equal parts in which the tokens are sharded over devices. With 1 a
            gradient of ``weight`` is summed over devices in every chunk; with the true number each
            part keeps its own ``[v, d]`` float32 sum and they are added once at the end.

    Returns:
        Sums over tokens, see :class:`LinearCrossEntropy`. Gradients have the dtypes of ``hidden``
        and ``weight``.

    Raises:
        ShapeError: shapes do not fit together.
        ConfigError: an option is out of range or the implementation unknown.

    References:
        Chowdhery et al., "PaLM", https://arxiv.org/abs/2204.02311, section 5 (z-loss);
        Gemma team, "Gemma 2", https://arxiv.org/abs/2408.00118, section 2 (soft cap).
    """
    _check_shapes(hidden.shape, weight.shape, targets.shape, weights.shape)
    dtype = jnp.dtype(hidden.dtype if compute_dtype is None else compute_dtype)
    options = Options(float(z_loss), logit_softcap, chunk_tokens, token_shards, dtype)
    _check_options(options)
    run = IMPLEMENTATIONS[_name(implementation, hidden, weight, options)]
    return run(hidden, weight, targets, weights.astype(jnp.float32), options)


def linear_log_probs(
    hidden: Float[Array, "n d"],
    weight: Float[Array, "v d"],
    targets: Int[Array, " n"],
    *,
    logit_softcap: float | None = None,
    chunk_tokens: int,
    implementation: str = "auto",
    compute_dtype: jax.typing.DTypeLike | None = None,
    token_shards: int = 1,
) -> Float[Array, " n"]:
    r"""Log-probability of each target under the output layer, :math:`\ell_{i y_i} - z_i` in the
    notation of :func:`linear_cross_entropy`; float32, nats.

    For objectives that are not a weighted sum of tokens' losses, such as preference or policy
    gradients. Its gradient needs one matmul more than :func:`linear_cross_entropy`, because
    the logits are computed again in the backward pass. A target outside ``[0, v)`` gives NaN:
    replace what is masked out by ``jnp.where``, not by multiplication.

    Args and errors are those of :func:`linear_cross_entropy`.

    >>> hidden, weight = jnp.eye(4, 8), jnp.zeros((16, 8))
    >>> log_probs = linear_log_probs(hidden, weight, jnp.arange(4), chunk_tokens=2)
    >>> [round(float(x), 4) for x in log_probs]
    [-2.7726, -2.7726, -2.7726, -2.7726]
    """
    _check_shapes(hidden.shape, weight.shape, targets.shape, targets.shape)
    dtype = jnp.dtype(hidden.dtype if compute_dtype is None else compute_dtype)
    options = Options(0.0, logit_softcap, chunk_tokens, token_shards, dtype)
    _check_options(options)
    return LOG_PROBS[_name(implementation, hidden, weight, options)](
        hidden, weight, targets, options
    )


def _name(implementation: str, hidden: Array, weight: Array, options: Options) -> str:
    if implementation != "auto":
        return implementation
    if not cpu.serves(hidden, weight, options):
        return "chunked"
    return chosen("cross_entropy", hidden.shape[0]) or "cpu"


def _check_options(options: Options) -> None:
    cap = options.logit_softcap
    for key, good, expected in (
        ("z_loss", options.z_loss >= 0, "a number of 0 or more"),
        ("logit_softcap", cap is None or cap > 0, "a number above 0"),
        ("chunk_tokens", options.chunk_tokens >= 1, "1 or more"),
        ("token_shards", options.token_shards >= 1, "1 or more"),
    ):
        if not good:
            found = getattr(options, key)
            raise ConfigError(f"linear_cross_entropy {key}", found=found, expected=expected)


def _check_shapes(hidden: tuple, weight: tuple, targets: tuple, weights: tuple) -> None:
    if len(hidden) != 2 or len(weight) != 2 or hidden[1] != weight[1]:
        raise ShapeError(
            "linear_cross_entropy",
            found=f"hidden {list(hidden)} and weight {list(weight)}",
            expected="[n, d] and [v, d]",
        )
    if targets != hidden[:1] or weights != hidden[:1] or hidden[0] == 0:
        raise ShapeError(
            "linear_cross_entropy",
            found=f"targets {list(targets)} and weights {list(weights)}",
            expected=f"[{hidden[0]}], one entry for each of one or more tokens",
        )
