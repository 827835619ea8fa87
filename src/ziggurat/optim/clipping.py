"""Clipping by a global norm that is computed once and shared."""

import math

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from ziggurat.optim.master_weights import widened


def global_norm(tree: PyTree[Float[Array, "..."]]) -> Float[Array, ""]:
    r"""Euclidean norm of all leaves together, :math:`\sqrt{\sum_i x_i^2}`, summed in float32.

    >>> float(global_norm({"a": jnp.array([3.0]), "b": jnp.array([[4.0]], jnp.bfloat16)}))
    5.0
    """
    squares = [jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares, jnp.zeros((), jnp.float32)))


def clip_by_norm(max_norm: float) -> optax.GradientTransformationExtraArgs:
    r"""Scale the gradient by :math:`\min(1, c / \lVert g \rVert)`.

    A step that reports the norm already has it: ``update(..., grad_norm=norm)`` uses that value,
    otherwise :func:`global_norm` is computed here. A NaN or infinite norm gives NaN updates.

    Args:
        max_norm: the bound :math:`c`; ``inf`` returns a transform that does nothing.

    >>> transform = clip_by_norm(1.0)
    >>> gradients = {"a": jnp.array([3.0, 4.0])}
    >>> updates, _ = transform.update(gradients, transform.init(gradients))
    >>> [round(float(x), 2) for x in updates["a"]]
    [0.6, 0.8]

    References:
        Pascanu et al., https://arxiv.org/abs/1211.5063
    """
    if math.isinf(max_norm):
        return optax.with_extra_args_support(optax.identity())

    def update(updates, state, params=None, *, grad_norm=None, **extra):
        del params, extra
        norm = global_norm(updates) if grad_norm is None else grad_norm
        scale = jnp.where(norm <= max_norm, 1.0, max_norm / norm)

        def scaled(gradient: Array) -> Array:
            wide = widened(gradient)
            return (wide * scale.astype(wide.dtype)).astype(gradient.dtype)

        return jax.tree.map(scaled, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
