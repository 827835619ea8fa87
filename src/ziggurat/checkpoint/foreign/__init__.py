"""Checkpoints of other programs: read without running anything they contain, and written for them.

:func:`open` gives the tensors of PyTorch files and distributed checkpoints, Orbax trees,
safetensors and our own steps as one mapping of names; :func:`write` and :func:`convert` make any of
them. Neither needs PyTorch, and no pickle is ever executed. Names are imported on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ziggurat.checkpoint.foreign.containers import KINDS, Kind, convert, open, write
    from ziggurat.checkpoint.foreign.tensors import LazyTensor, Tensors

_HOMES = {
    "KINDS": "containers",
    "Kind": "containers",
    "LazyTensor": "tensors",
    "Tensors": "tensors",
    "convert": "containers",
    "open": "containers",
    "write": "containers",
}

__all__ = ["KINDS", "Kind", "LazyTensor", "Tensors", "convert", "open", "write"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
