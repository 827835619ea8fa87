"""Checkpoints: a step directory exists wholly or not at all and holds parameters, optimizer,
data state, PRNG and run file together.

:class:`Checkpoints` saves and restores the steps of a run; :class:`StepReader` lists them and
writes nothing; :func:`read_arrays` and :func:`read_records` read one step directory without the
code that made it. Names are imported on first use: the configuration alone costs no JAX.
"""

from typing import TYPE_CHECKING

from ziggurat.core import lazy

if TYPE_CHECKING:
    from ziggurat.checkpoint.config import CheckpointConfig
    from ziggurat.checkpoint.manager import Checkpoints, Restored, SaveReport
    from ziggurat.checkpoint.manifest import DamagedError
    from ziggurat.checkpoint.step_reader import StepInfo, StepReader
    from ziggurat.checkpoint.steps import read_arrays, read_records, verify_step
    from ziggurat.checkpoint.tiers import Tiers

_HOMES = {
    "CheckpointConfig": "config",
    "Checkpoints": "manager",
    "DamagedError": "manifest",
    "Restored": "manager",
    "SaveReport": "manager",
    "StepInfo": "step_reader",
    "StepReader": "step_reader",
    "Tiers": "tiers",
    "read_arrays": "steps",
    "read_records": "steps",
    "verify_step": "steps",
}

__all__ = [
    "CheckpointConfig",
    "Checkpoints",
    "DamagedError",
    "Restored",
    "SaveReport",
    "StepInfo",
    "StepReader",
    "Tiers",
    "read_arrays",
    "read_records",
    "verify_step",
]

__getattr__, __dir__ = lazy.names(__name__, _HOMES)
