"""Checkpoints: a step directory exists wholly or not at all and holds parameters, optimizer,
data state, PRNG and run file together; plus safetensors and GGUF containers.

:class:`Checkpoints` saves and restores the steps of a run; :class:`StepReader` lists them and
writes nothing; :func:`read_arrays` and :func:`read_records` read one step directory without the
code that made it. Names are imported on
first use: the configuration alone costs no JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ziggurat.checkpoint.config import CheckpointConfig
    from ziggurat.checkpoint.gguf_file import GgufFile, GgufTokenizer
    from ziggurat.checkpoint.manager import Checkpoints, Restored, SaveReport
    from ziggurat.checkpoint.manifest import DamagedError
    from ziggurat.checkpoint.safetensors_files import SafetensorsDirectory, write_sharded
    from ziggurat.checkpoint.step_reader import StepInfo, StepReader
    from ziggurat.checkpoint.steps import read_arrays, read_records, verify_step
    from ziggurat.checkpoint.tiers import Tiers

_HOMES = {
    "CheckpointConfig": "config",
    "Checkpoints": "manager",
    "DamagedError": "manifest",
    "GgufFile": "gguf_file",
    "GgufTokenizer": "gguf_file",
    "Restored": "manager",
    "SafetensorsDirectory": "safetensors_files",
    "SaveReport": "manager",
    "StepInfo": "step_reader",
    "StepReader": "step_reader",
    "Tiers": "tiers",
    "read_arrays": "steps",
    "read_records": "steps",
    "verify_step": "steps",
    "write_sharded": "safetensors_files",
}

__all__ = [
    "CheckpointConfig",
    "Checkpoints",
    "DamagedError",
    "GgufFile",
    "GgufTokenizer",
    "Restored",
    "SafetensorsDirectory",
    "SaveReport",
    "StepInfo",
    "StepReader",
    "Tiers",
    "read_arrays",
    "read_records",
    "verify_step",
    "write_sharded",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
