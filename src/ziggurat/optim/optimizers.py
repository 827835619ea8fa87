"""From the run file's optimizer node to an Optax transform.

Every optimizer is the same chain: clip by the global norm, find a direction, add decoupled weight
decay where it applies, multiply by minus the learning rate:

.. math::

    \\theta_{t+1} = \\theta_t - \\eta_t (u_t + \\lambda \\theta_t)

with direction :math:`u`, schedule :math:`\\eta` and decay :math:`\\lambda`. SGD alone adds the
decay to the gradient, as PyTorch does.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from ziggurat.core.errors import ShapeError, did_you_mean
from ziggurat.core.pytrees import map_named, named_leaves
from ziggurat.optim import groups
from ziggurat.optim.adafactor import scale_by_adafactor
from ziggurat.optim.clipping import clip_by_norm
from ziggurat.optim.config import (
    ADAM_PATTERNS,
    NO_DECAY,
    Adafactor,
    AdamW,
    CustomOptimizer,
    Lion,
    Muon,
    OptimizerConfig,
    Sgd,
)
from ziggurat.optim.groups import Axes, Treatment
from ziggurat.optim.master_weights import with_master_weights
from ziggurat.optim.muon import orthogonal_direction
from ziggurat.optim.schedules import build_schedule

Mask = Callable[[Any], Any]
"""From parameters (or a part of them) to a tree of booleans."""


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optimizer with the interface that the training step uses."""

    transform: optax.GradientTransformationExtraArgs
    """``init(params)`` and ``update(grads, state, params, grad_norm=None)``; a ``grad_norm`` that
    the step has computed already is used for clipping instead of computing it again. Parameters
    narrower than float32 have float32 copies in the state, see ``master_weights``."""
    schedule: optax.Schedule | None
    """Learning rate of every step (of the matrices, for Muon); None where only the transform knows
    it."""
    treatments: tuple[Treatment, ...]

    def describe(self) -> tuple[Treatment, ...]:
        """One row per parameter: which rule updates it and whether it is decayed."""
        return self.treatments


def build(config: OptimizerConfig, *, total_steps: int, axes: PyTree) -> Optimizer:
    """Build the optimizer of a run file for parameters with the given logical axes.

    Args:
        config: the optimizer's node.
        total_steps: steps of the whole run, which the schedule needs.
        axes: nested dict like the parameters, whose leaves are tuples with one logical axis name
            per dimension, stacked ``layers`` first.

    Returns:
        The transform (pure; jit it with the step and donate its state), its schedule, and a table
        of how each parameter is treated.

    Raises:
        ConfigError: a pattern matches no parameter, the schedule does not fit in the run, or Muon
            cannot tell a parameter's inputs from its outputs.

    >>> axes = {"norm": {"scale": ("layers", "embed")}, "up": ("layers", "embed", "mlp")}
    >>> params = {"norm": {"scale": jnp.ones((2, 4))}, "up": jnp.ones((2, 4, 8))}
    >>> optimizer = build(Muon(lr=1e-2), total_steps=10, axes=axes)
    >>> [(row.name, row.group, row.decayed) for row in optimizer.describe()]
    [('norm.scale', 'adamw', False), ('up', 'muon', True)]
    >>> state = optimizer.transform.init(params)
    >>> updates, state = optimizer.transform.update(params, state, params)
    >>> optax.apply_updates(params, updates)["up"].shape
    (2, 4, 8)

    References:
        Loshchilov and Hutter, https://arxiv.org/abs/1711.05101 (AdamW); Chen et al.,
        https://arxiv.org/abs/2302.06675 (Lion); see ``muon`` and ``adafactor`` for theirs.
    """
    named = groups.named_axes(axes)
    groups.check_patterns("no_decay", config.no_decay, NO_DECAY, list(named))
    decays = groups.decayed(named, config.no_decay)
    schedule = build_schedule(config.schedule, total_steps, config.lr)
    labels = dict.fromkeys(named, config.kind)
    if isinstance(config, Muon):
        groups.check_patterns("adam_patterns", config.adam_patterns, ADAM_PATTERNS, list(named))
        takes = groups.orthogonalised(named, config.adam_patterns)
        labels = {name: "muon" if takes[name] else "adamw" for name in named}
    decay = optax.add_decayed_weights(config.weight_decay, _by_name(decays))
    rule = _rule(config, named, labels, decay, schedule, total_steps)
    transform = _checked(optax.chain(clip_by_norm(config.clip_norm), rule), named)
    transform = with_master_weights(transform)
    rows = (Treatment(name, named[name], labels[name], decays[name]) for name in named)
    return Optimizer(transform, schedule, tuple(rows))


def from_optax(transform: optax.GradientTransformation, axes: PyTree) -> Optimizer:
    """Wrap an Optax transformation that is the whole update, learning rate included.

    Args:
        transform: gets gradients as they are, not clipped. Parameters narrower than float32 reach
            it as float32 copies.
        axes: as in :func:`build`; its state is sharded by them.

    >>> optimizer = from_optax(optax.sgd(0.5), {"w": ("embed",)})
    >>> params = {"w": jnp.ones(2)}
    >>> updates, _ = optimizer.transform.update(params, optimizer.transform.init(params), params)
    >>> updates["w"].tolist()
    [-0.5, -0.5]
    """
    named = groups.named_axes(axes)
    checked = with_master_weights(_checked(_promoting(transform), named))
    rows = (Treatment(name, named[name], "python", False) for name in named)
    return Optimizer(checked, None, tuple(rows))


def _rule(
    config: OptimizerConfig,
    named: Mapping[str, Axes],
    labels: Mapping[str, str],
    decay: optax.GradientTransformation,
    schedule: optax.Schedule,
    total_steps: int,
) -> optax.GradientTransformation:
    """Everything after the clipping."""
    rate = optax.scale_by_learning_rate(schedule)
    match config:
        case AdamW():
            return optax.chain(_adam(config, config.nesterov), decay, rate)
        case Lion():
            dtype = jnp.dtype(config.moment_dtype)
            direction = optax.scale_by_lion(config.beta1, config.beta2, mu_dtype=dtype)
            return optax.chain(_promoting(direction), decay, rate)
        case Adafactor():
            return optax.chain(_adafactor(config, named), decay, rate)
        case Sgd():
            return optax.chain(decay, _momentum(config), rate)
        case CustomOptimizer():
            return _promoting(config.rule(schedule, decay))
        case Muon():
            adam_schedule = build_schedule(
                config.schedule, total_steps, config.adam_lr or config.lr
            )
            return optax.partition(
                {
                    "muon": optax.chain(_muon(config, named, labels), decay, rate),
                    "adamw": optax.chain(
                        _adam(config), decay, optax.scale_by_learning_rate(adam_schedule)
                    ),
                },
                _by_name(labels),
            )


def _adam(config: AdamW | Muon, nesterov: bool = False) -> optax.GradientTransformation:
    direction = optax.scale_by_adam(
        b1=config.beta1,
        b2=config.beta2,
        eps=config.eps,
        mu_dtype=jnp.dtype(config.moment_dtype),
        nesterov=nesterov,
    )
    return _promoting(direction)


def _muon(
    config: Muon, named: Mapping[str, Axes], labels: Mapping[str, str]
) -> optax.GradientTransformation:
    direction = orthogonal_direction(
        {name: axes for name, axes in named.items() if labels[name] == "muon"},
        momentum=config.momentum,
        nesterov=config.nesterov,
        iterations=config.iterations,
        update_rms=config.update_rms,
        moment_dtype=config.moment_dtype,
    )
    return _promoting(direction)


def _adafactor(config: Adafactor, named: Mapping[str, Axes]) -> optax.GradientTransformation:
    direction = scale_by_adafactor(
        named,
        decay_exponent=config.decay_exponent,
        min_dim_to_factor=config.min_dim_to_factor,
        update_clip=config.update_clip,
        scale_by_parameter=config.scale_by_parameter,
        eps=config.eps,
    )
    if not config.momentum:
        return direction
    dtype = jnp.dtype(config.moment_dtype)
    average = optax.ema(config.momentum, False, accumulator_dtype=dtype)
    return optax.chain(direction, _promoting(average))


def _momentum(config: Sgd) -> optax.GradientTransformation:
    if not config.momentum:
        return optax.identity()
    dtype = jnp.dtype(config.moment_dtype)
    return _promoting(optax.trace(config.momentum, config.nesterov, accumulator_dtype=dtype))


def _promoting(
    transform: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """``transform`` under JAX's default promotion of types, whatever the process has set.

    Optax (0.2.8) relies on it: it raises floats to integer counts, and adds moments to gradients of
    another type, which ``jax_numpy_dtype_promotion="strict"`` refuses.
    """
    inner = optax.with_extra_args_support(transform)

    def update(updates, state, params=None, **extra):
        with jax.numpy_dtype_promotion("standard"):
            return inner.update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _by_name(values: Mapping[str, Any]) -> Mask:
    """A function from parameters, or the part of them in one group, to their values."""
    return lambda tree: map_named(lambda name, _: values[name], tree)


def _checked(
    transform: optax.GradientTransformation, named: Mapping[str, Axes]
) -> optax.GradientTransformationExtraArgs:
    """``transform`` whose ``init`` refuses parameters that do not fit the axes it was built for."""
    inner = optax.with_extra_args_support(transform)

    def init(params):
        leaves = named_leaves(params)
        for name in sorted(leaves.keys() ^ named.keys()):
            has, lacks = ("parameters", "axes") if name in leaves else ("axes", "parameters")
            raise ShapeError(
                f"optimizer: {name}",
                found=f"it in the {has} but not in the {lacks}",
                expected="the same names in both",
                fix=did_you_mean(name, named.keys() & leaves.keys() - {name}),
            )
        for name, leaf in leaves.items():
            if leaf.ndim != len(named[name]):
                raise ShapeError(
                    f"optimizer: {name}",
                    found=f"shape {list(leaf.shape)}",
                    expected=f"one dimension for each of the axes {named[name]}",
                )
        return inner.init(params)

    return optax.GradientTransformationExtraArgs(init, inner.update)
