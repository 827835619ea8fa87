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
from ziggurat.core.errors import ConfigError
from ziggurat.mesh import Layout
from ziggurat.models import LanguageModel
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
    if isinstance(run.model, PretrainedModel):
        raise ConfigError(
            "model", found="a path", expected="dimensions", fix="give [model] with its sizes"
        )
    layout = mesh_.build(run.mesh, devices)
    check_mesh(run, layout)
    model = LanguageModel.build(
        run.model, precision(run.train, layout), run.train.remat, run.train.attention
    )
    optimizer, step, _ = compiled_parts(run, layout, model)
    batch = batch_struct(layout, run.data.batch_size, run.data.sequence_length)
    return step, abstract_state(model, optimizer, layout), batch, layout


def lower_step(run: RunConfig, devices: Sequence[Any]) -> jax.stages.Lowered:
    """The step lowered for ``devices``; ``.compile()`` gives program and memory.

    Raises:
        ConfigError, ShardingError: as :func:`abstract_step`.
    """
    step, state, batch, _ = abstract_step(run, devices)
    return step.lower(state, batch)
