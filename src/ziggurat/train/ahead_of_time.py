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

from collections.abc import Sequence
from typing import Any

import jax

from ziggurat import mesh as mesh_
from ziggurat.core.errors import ConfigError, ShardingError
from ziggurat.core.pytrees import named_leaves
from ziggurat.mesh import Layout
from ziggurat.models import LanguageModel
from ziggurat.plan import Subject
from ziggurat.profile.flops import training_flops_per_token
from ziggurat.train.config import PretrainedModel, RunConfig
from ziggurat.train.experiment import batch_struct, check_mesh, compiled_parts, precision
from ziggurat.train.state import TrainState, abstract_state


def abstract_step(
    run: RunConfig, devices: Sequence[Any]
) -> tuple[Any, TrainState, dict[str, jax.ShapeDtypeStruct], Layout]:
    """The jitted step of a run with the shapes of its arguments; reads no data, allocates nothing.

    Args:
        run: a run file; its model must be given by its dimensions.
        devices: real ones, or those of a topology description.

    Returns:
        The step, the state's and the batch's shapes with their shardings, and the layout.

    Raises:
        ConfigError: the model is given by a path.
        ShardingError: something does not divide over the devices.
    """
    step, state, batch, layout, _ = _parts(run, devices)
    return step, state, batch, layout


def subject(run: RunConfig, devices: Sequence[Any]) -> Subject:
    """A run's step as ``ziggurat.plan`` takes it.

    Raises:
        ConfigError, ShardingError: as :func:`abstract_step`.
    """
    step, state, batch, layout, model = _parts(run, devices)
    length = run.data.sequence_length
    per_token = training_flops_per_token(
        model.matmul_parameter_count,
        layers=1,
        heads=1,
        head_dim=model.attention_channels,
        sequence=length,
    )
    return Subject(
        step=step,
        arguments=(state, batch),
        params=named_leaves(state.params),
        mesh=layout.mesh,
        tokens=run.data.batch_size * length,
        model_flops_per_token=per_token,
        accumulate=run.train.accumulate,
        remat=run.train.remat,
    )


def divides(run: RunConfig, devices: Sequence[Any], model: LanguageModel) -> bool:
    """Whether a run's batch, sequence and parameters divide over its mesh; traces nothing."""
    try:
        layout = mesh_.build(run.mesh, devices)
        check_mesh(run, layout)
        model.shardings(layout)
    except (ConfigError, ShardingError):
        return False
    return True


def abstract_model(run: RunConfig, layout: Layout) -> LanguageModel:
    """The run's model, traced for its devices.

    Raises:
        ConfigError: the model is given by a path.
    """
    if isinstance(run.model, PretrainedModel):
        raise ConfigError(
            "model", found="a path", expected="dimensions", fix="give [model] with its sizes"
        )
    return LanguageModel.build(
        run.model, precision(run.train, layout), run.train.remat, run.train.attention
    )


def _parts(
    run: RunConfig, devices: Sequence[Any]
) -> tuple[Any, TrainState, dict[str, jax.ShapeDtypeStruct], Layout, LanguageModel]:
    layout = mesh_.build(run.mesh, devices)
    model = abstract_model(run, layout)
    check_mesh(run, layout)
    optimizer, step, _ = compiled_parts(run, layout, model)
    batch = batch_struct(layout, run.data.batch_size, run.data.sequence_length)
    return step, abstract_state(model, optimizer, layout), batch, layout, model


def lower_step(run: RunConfig, devices: Sequence[Any]) -> jax.stages.Lowered:
    """The step lowered for ``devices``; ``.compile()`` gives program and memory.

    Raises:
        ConfigError, ShardingError: as :func:`abstract_step`.
    """
    step, state, batch, _ = abstract_step(run, devices)
    return step.lower(state, batch)
