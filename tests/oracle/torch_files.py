"""What the files in ``torch_files/`` hold, which ``scripts/record_torch_files.py`` makes with
PyTorch: a file of types and views, nanoGPT's checkpoint, and a distributed one of two processes.
"""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

FOLDER = Path(__file__).with_suffix("")
TYPES, NANOGPT, DISTRIBUTED = FOLDER / "types.pt", FOLDER / "nanogpt.pt", FOLDER / "distributed"

NUMBERS: dict[str, Any] = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "int64": np.int64,
    "int8": np.int8,
    "uint8": np.uint8,
    "bool": np.bool_,
    "uint16": np.uint16,
    "uint64": np.uint64,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
}
"""PyTorch's names of types, and ours."""
GRID = np.arange(24, dtype=np.float32).reshape(4, 6)
VIEWS: dict[str, np.ndarray] = {
    "transposed": GRID.T,
    "every-other": GRID[1::2, ::3],
    "shared": GRID[2],
    "expanded": np.broadcast_to(np.float32(7), (3, 2)),
    "scalar": np.array(2.5, np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "parameter": GRID[:2, :2],
}
"""Views of one storage, and shapes that are easily got wrong."""
TYPES_METADATA = {
    "size": [2, 3],
    "device": "cpu",
    "dtype": "bfloat16",
    "namespace": {"lr": 0.1, "name": "run"},
    "default": {"a": [1]},
    "number": 1.5,
    "path": "a/b",
    "plain": [None, True, "text", -(2**40), 1e300],
}

_ORIGIN = "_orig_mod.transformer."
MODEL: dict[str, np.ndarray] = {
    f"{_ORIGIN}wte.weight": np.arange(20, dtype=np.float32).reshape(5, 4) / 8,
    f"{_ORIGIN}h.0.ln_1.weight": np.ones(4, np.float32),
    f"{_ORIGIN}h.0.attn.c_attn.weight": -np.arange(48, dtype=np.float32).reshape(12, 4),
}
"""A compiled module's tensors, as nanoGPT saves them under ``model``."""
NANOGPT_METADATA = {
    "optimizer": {"param_groups": [{"lr": 6e-4, "betas": [0.9, 0.95], "params": [0]}]},
    "model_args": {"n_layer": 1, "n_head": 2, "n_embd": 4, "bias": False, "dropout": 0.0},
    "iter_num": 5,
    "config": {"dataset": "shakespeare_char", "wandb_log": False},
}

SHARDED: dict[str, np.ndarray] = {
    "rows": np.arange(15, dtype=np.float32).reshape(5, 3),
    "columns": np.arange(14, dtype=np.float32).reshape(2, 7).astype(ml_dtypes.bfloat16),
    "scalar": np.array(0.5, np.float32),
}
"""Under ``model`` of the distributed checkpoint: over rows, over columns, and on both processes."""
DISTRIBUTED_METADATA = {"train.step": 7}


def types() -> dict[str, np.ndarray]:
    """All tensors of the file of types."""
    numbers = {f"numbers.{name}": np.arange(4).astype(kind) for name, kind in NUMBERS.items()}
    views = {f"views.{name}": array for name, array in VIEWS.items()}
    return numbers | views | {"array": np.arange(3.0)}


def nanogpt() -> dict[str, np.ndarray]:
    """All tensors of nanoGPT's checkpoint."""
    moments = {
        "optimizer.state.0.exp_avg": np.zeros((5, 4), np.float32),
        "optimizer.state.0.step": np.array(5, np.float32),
    }
    model = {f"model.{name}": array for name, array in MODEL.items()}
    return model | moments | {"best_val_loss": np.array(2.25, np.float32)}


def distributed() -> dict[str, np.ndarray]:
    """All tensors of the distributed checkpoint."""
    return {f"model.{name}": array for name, array in SHARDED.items()}
