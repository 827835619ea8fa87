r"""Learning rates as functions of the step.

Steps count from 0. With peak :math:`\eta`, warm-up :math:`w`, total :math:`T`, final fraction
:math:`\varphi` and shape :math:`s` falling from 1 to 0,

.. math::

    \eta(t) = \eta \begin{cases}
        (t + 1) / w & t < w \\
        \varphi + (1 - \varphi)\, s(p) & t \ge w, \quad p = \min(1, (t - t_0) / (T - t_0))
    \end{cases}

where the decay starts at :math:`t_0 = w` (``wsd``: ``T`` minus the decay's length). The first step
already moves (Hugging Face's schedules start at 0), and the end is reached at ``T``, one past the
last step.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ziggurat.core.errors import ConfigError
from ziggurat.optim.config import (
    Constant,
    Cosine,
    InverseSqrt,
    LinearDecay,
    ScheduleConfig,
    WarmupStableDecay,
)

Shape = Callable[[Float[Array, "..."]], Float[Array, "..."]]

SHAPES: dict[str, Shape] = {
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + jnp.cos(jnp.pi * progress)),
    "sqrt": lambda progress: 1.0 - jnp.sqrt(progress),
}
"""Falling from 1 at progress 0 to 0 at progress 1."""


def build_schedule(config: ScheduleConfig, total_steps: int, peak: float = 1.0) -> optax.Schedule:
    """Build the function from a step to its learning rate.

    Args:
        config: the schedule's node.
        total_steps: steps of the whole run, warm-up included; a schedule with ``steps`` of its own
            has those, and stays where it ends.
        peak: the learning rate after the warm-up; 1 gives the fraction of the peak.

    Returns:
        A function from the step (from 0, may be traced) to the learning rate, float32.

    Raises:
        ConfigError: warm-up and decay are longer than the run.

    >>> schedule = build_schedule(Cosine(warmup_steps=10, final_fraction=0.1), 110, peak=1e-3)
    >>> [round(float(schedule(step)), 6) for step in (0, 9, 60, 110, 200)]
    [0.0001, 0.001, 0.00055, 0.0001, 0.0001]

    References:
        Loshchilov and Hutter, https://arxiv.org/abs/1608.03983 (cosine); Hu et al., "MiniCPM",
        https://arxiv.org/abs/2404.06395 (wsd); Hägele et al., https://arxiv.org/abs/2405.18392
        (1 - sqrt decay); Vaswani et al., https://arxiv.org/abs/1706.03762 (inverse_sqrt).
    """
    total_steps = getattr(config, "steps", None) or total_steps
    _check_length(config, total_steps)
    warmup = config.warmup_steps

    def schedule(count: jax.typing.ArrayLike) -> Float[Array, ""]:
        step = jnp.asarray(count, jnp.float32)
        value = _after_warmup(config, step, total_steps)
        if warmup:
            value = jnp.where(step < warmup, (step + 1.0) / warmup, value)
        return peak * value

    return schedule


def _after_warmup(config: ScheduleConfig, step: Float[Array, ""], total: int) -> Float[Array, ""]:
    match config:
        case Constant():
            return jnp.ones_like(step)
        case InverseSqrt(warmup_steps=warmup, final_fraction=final):
            return jnp.maximum(jnp.sqrt(warmup / jnp.maximum(step + 1.0, warmup)), final)
        case WarmupStableDecay(decay_shape=shape, final_fraction=final):
            return _decay(SHAPES[shape], step, total - _decay_steps(config, total), total, final)
        case LinearDecay(warmup_steps=warmup, final_fraction=final):
            return _decay(SHAPES["linear"], step, warmup, total, final)
        case Cosine(warmup_steps=warmup, final_fraction=final):
            return _decay(SHAPES["cosine"], step, warmup, total, final)


def _decay(
    shape: Shape, step: Float[Array, ""], start: int, end: int, final: float
) -> Float[Array, ""]:
    progress = jnp.clip((step - start) / max(end - start, 1), 0.0, 1.0)
    return final + (1.0 - final) * shape(progress)


def _decay_steps(config: WarmupStableDecay, total: int) -> int:
    return round(config.decay_fraction * total)


def _check_length(config: ScheduleConfig, total: int) -> None:
    if total < 1:
        raise ConfigError("total steps", found=total, expected="1 or more")
    decay = _decay_steps(config, total) if isinstance(config, WarmupStableDecay) else 0
    if config.warmup_steps + decay > total:
        parts = f"{config.warmup_steps} warm-up" + (f" + {decay} decay" if decay else "")
        raise ConfigError(
            f"schedule {config.kind}",
            found=f"{parts} steps",
            expected=f"at most the schedule's {total} steps",
            fix="lower warmup_steps or train longer",
        )
