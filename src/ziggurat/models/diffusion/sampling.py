"""Drawing images: one pure, scanned function for every sampler, and classifier-free guidance.

>>> from ziggurat.models.diffusion import RectifiedFlow, Sampling, plan_of
>>> plan = plan_of(RectifiedFlow(), Sampling(steps=5))
>>> start = jnp.ones((1, 2, 2, 1))
>>> to_two = lambda x, time: (x - 2.0) / (time / 1000.0)[:, None, None, None]
>>> sample(to_two, plan, start).round(4).ravel().tolist()
[2.0, 2.0, 2.0, 2.0]
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ziggurat.core import prng
from ziggurat.models.diffusion.plans import COLUMNS, SamplingPlan
from ziggurat.models.diffusion.process import image_and_noise

Predict = Callable[[jax.Array, jax.Array], jax.Array]
"""``(x [b, i, j, o], time [b]) -> prediction [b, i, j, o]``."""


def sample(
    predict: Predict,
    plan: SamplingPlan,
    start: Float[Array, "b i j o"],
    noise: Callable[[jax.Array], jax.Array] | None = None,
    *,
    trajectory: bool = False,
) -> Float[Array, "*steps b i j o"]:
    """Images from noise.

    Args:
        predict: the model.
        plan: the sampler's table.
        start: noise of standard deviation one; the plan scales it.
        noise: from the number of a step (traced) to fresh noise of ``start``'s shape; needed where
            the plan is stochastic.
        trajectory: return ``x`` after every step, ``[n, b, i, j, o]``, rather than after the last.
    """
    assert noise is not None or not plan.stochastic, "a stochastic sampler needs noise"
    rows = {name: jnp.asarray(getattr(plan, name)) for name in COLUMNS}

    def step(carry: Any, row: Any) -> tuple[Any, jax.Array | None]:
        x, old = carry
        seen = x * row["input_scale"]
        output = predict(seen, jnp.broadcast_to(row["times"], x.shape[:1])).astype(x.dtype)
        image, epsilon = image_and_noise(plan.prediction, seen, output, row["alpha"], row["sigma"])
        if plan.clip is not None:
            image = jnp.clip(image, -plan.clip, plan.clip)
        x = row["by_x"] * x + row["by_image"] * image + row["by_noise"] * epsilon
        x = x + row["by_old_image"] * old
        if plan.stochastic and noise is not None:
            x = x + row["fresh"] * noise(row["number"])
        return (x, image), x if trajectory else None

    rows["number"] = jnp.arange(plan.steps)
    first = start.astype(jnp.float32) * plan.start_scale
    (last, _), path = jax.lax.scan(step, (first, jnp.zeros_like(first)), rows)
    return last if path is None else path


def guided(
    predict: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    labels: Int[Array, "b"],
    none: int,
    guidance: float,
) -> Predict:
    r"""A model of ``(x, time, labels)`` steered to ``labels``:
    :math:`f_\emptyset + g\,(f_y - f_\emptyset)`, both halves in one call.

    Args:
        predict: the model.
        labels: classes.
        none: the label that stands for no class.
        guidance: ``g``; 1 is the model as it is and costs one half only.

    Paper: Ho and Salimans 2022, https://arxiv.org/abs/2207.12598.
    """
    if guidance == 1.0:
        return lambda x, time: predict(x, time, labels)

    def call(x: jax.Array, time: jax.Array) -> jax.Array:
        both = jnp.concatenate([labels, jnp.full_like(labels, none)])
        twice = predict(jnp.concatenate([x, x]), jnp.concatenate([time, time]), both)
        conditional, free = jnp.split(twice, 2)
        return free + guidance * (conditional - free)

    return call


def row_noise(
    seeds: Int[Array, "b"], purpose: str, shape: tuple[int, int, int], step: Any = 0
) -> Float[Array, "b i j o"]:
    """Standard normal noise that depends on each row's own seed and the step alone, so that a row
    is the same whatever else is in its batch."""

    def one(seed: jax.Array) -> jax.Array:
        return jax.random.normal(prng.stream(seed, purpose, step), shape)

    return jax.vmap(one)(seeds)
