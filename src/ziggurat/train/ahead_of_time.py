"""The real training step of a run, lowered for devices that need not be here.

>>> from ziggurat.train.config import RunConfig
>>> from ziggurat.core import config
>>> run = config.parse(RunConfig, '''
... name = "tiny"
... model = { kind = "llama", vocab_size = 64, d_model = 32, n_layers = 2, n_heads = 2 }
... data = { sources = [{ kind = "text", path = "." }], sequence_length = 16, batch_size = 8 }
... optimizer = { kind = "adamw", lr = 1e-3 }
... train = { steps = 10, param_dtype = "float32" }
... ''').value
>>> lower_step(run, jax.devices()).compile().memory_analysis() is not None
True
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from ziggurat import mesh as mesh_
from ziggurat.core.errors import ConfigError, ShardingError
from ziggurat.core.protocols import Device
from ziggurat.core.pytrees import named_leaves
from ziggurat.mesh import Layout
from ziggurat.models import Params
from ziggurat.plan import PlannedWeight, Subject
from ziggurat.profile.flops import training_flops_per_token
from ziggurat.train.config import RunConfig
from ziggurat.train.experiment import check_mesh, compiled_parts
from ziggurat.train.parts import Trainable, TrainingProgram, kind_of
from ziggurat.train.state import TrainState, abstract_state


def abstract_step(
    run: RunConfig, devices: Sequence[Device]
) -> tuple[Any, tuple[TrainState, Mapping[str, jax.ShapeDtypeStruct], Any], Layout]:
    """The jitted step of a run with the shapes of its arguments; reads no data, allocates nothing.

    Args:
        run: a run file; its model must be given by its dimensions.
        devices: real ones, or those of a topology description.

    Returns:
        The step; shapes and shardings of state, batch and what is frozen; and the layout.

    Raises:
        ConfigError: the model is given by a path.
        ShardingError: something does not divide over the devices.
    """
    step, arguments, layout, _ = _parts(run, devices)
    return step, arguments, layout


def subject(run: RunConfig, devices: Sequence[Device]) -> Subject:
    """Describe a run's step to :mod:`ziggurat.plan`.

    Raises:
        ConfigError, ShardingError: as :func:`abstract_step`.
    """
    step, arguments, layout, program = _parts(run, devices)
    model, length = program.model, run.row_tokens
    assert length is not None, "a model given by its sizes says how many tokens a row has"

    def flops_per_token(attention_channels: float) -> float:
        return training_flops_per_token(
            model.matmul_parameter_count,
            layers=1,
            heads=1,
            head_dim=attention_channels,
            sequence=length,
            recurrent=model.recurrent_flops_per_token,
        )

    return Subject(
        step=step,
        arguments=arguments,
        weights=_weights(arguments[0].params, program),
        mesh=layout.mesh,
        tokens=run.data.batch_size * length,
        model_flops_per_token=flops_per_token(model.attention_channels),
        matmul_flops_per_token=flops_per_token(0.0),
        accumulate=run.train.accumulate,
        remat=run.train.remat,
    )


def _weights(params: Params, program: TrainingProgram) -> dict[str, PlannedWeight]:
    """Weights that a step multiplies by, with the logical axes that the models declare."""

    def named(arrays: Params, axes: Params, trained: bool) -> dict[str, PlannedWeight]:
        known = named_leaves(axes, is_leaf=lambda node: isinstance(node, tuple))
        return {
            name: PlannedWeight(array=leaf, axes=known[name], trained=trained)
            for name, leaf in named_leaves(arrays).items()
        }

    frozen = named(program.frozen, program.frozen_axes, trained=False)
    return named(params, program.model.axes, trained=True) | frozen


def divides(run: RunConfig, devices: Sequence[Device], model: Trainable) -> bool:
    """Whether a run's batch, sequence and parameters divide over its mesh; traces nothing."""
    try:
        layout = mesh_.build(run.mesh, devices)
        check_mesh(run, layout)
        model.shardings(layout)
    except (ConfigError, ShardingError):
        return False
    return True


def _parts(
    run: RunConfig, devices: Sequence[Device]
) -> tuple[
    Any, tuple[TrainState, Mapping[str, jax.ShapeDtypeStruct], Any], Layout, TrainingProgram
]:
    layout = mesh_.build(run.mesh, devices)
    program = kind_of(run).program(run, layout)
    check_mesh(run, layout)
    optimizer, step, _ = compiled_parts(run, layout, program)
    averaged = run.train.ema_decay is not None
    state = abstract_state(program.model, optimizer, layout, averaged=averaged)
    return step, (state, program.batch, program.frozen), layout, program


def lower_step(run: RunConfig, devices: Sequence[Device]) -> jax.stages.Lowered:
    """The step lowered for ``devices``; ``.compile()`` gives program and memory.

    Raises:
        ConfigError, ShardingError: as :func:`abstract_step`.
    """
    step, arguments, _ = abstract_step(run, devices)
    return step.lower(*arguments)
