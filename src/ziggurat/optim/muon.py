"""Muon over stacked layers: which dimensions form a matrix, and how large its step is."""

import math
from collections.abc import Mapping

import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from ziggurat.core.pytrees import map_named
from ziggurat.optim.groups import Axes, matrix_dims


def orthogonal_direction(
    axes: Mapping[str, Axes],
    *,
    momentum: float = 0.95,
    nesterov: bool = True,
    iterations: int = 5,
    update_rms: float = 0.2,
    moment_dtype: str = "float32",
) -> optax.GradientTransformation:
    r"""Muon's direction of ascent for every matrix of a stack on its own.

    .. math::

        M_t = \beta M_{t-1} + (1 - \beta) G_t, \quad
        X_0 = \tilde M_t / \lVert \tilde M_t \rVert_F, \quad
        X_{k+1} = a X_k + b (X_k X_k^\top) X_k + c (X_k X_k^\top)^2 X_k

    where :math:`\tilde M` is the bias-corrected (Nesterov) momentum and ``(a, b, c) = (3.4445,
    -4.7750, 2.0315)``; the result is about :math:`U V^\top` of the singular value decomposition
    of :math:`\tilde M`. It is scaled by ``update_rms * sqrt(max(inputs, outputs))``, or by
    ``sqrt(max(1, outputs / inputs))`` when ``update_rms`` is 0.

    Args:
        axes: logical axes by dotted name of the parameters it will be given.

    References:
        Jordan et al., https://kellerjordan.github.io/posts/muon; Liu et al., "Muon is Scalable for
        LLM Training", https://arxiv.org/abs/2502.16982 (update_rms).
    """
    dims = {name: matrix_dims(name, a) for name, a in axes.items()}

    def dimension_numbers(updates: PyTree) -> PyTree:
        return map_named(lambda name, _: MuonDimensionNumbers(*dims[name]), updates)

    def scale(name: str, update: Array) -> Array:
        inputs, outputs = (math.prod(update.shape[i] for i in side) for side in dims[name])
        if update_rms:
            return update * (update_rms * math.sqrt(max(inputs, outputs)))
        return update * math.sqrt(max(1.0, outputs / inputs))

    return optax.chain(
        scale_by_muon(
            beta=momentum,
            nesterov=nesterov,
            ns_steps=iterations,
            mu_dtype=jnp.dtype(moment_dtype),
            weight_dimension_numbers=dimension_numbers,
        ),
        optax.stateless(lambda updates, _: map_named(scale, updates)),
    )
