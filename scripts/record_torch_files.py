"""Writes tests/oracle/torch_files/ with PyTorch; with --check, writes them elsewhere and compares.

What the files hold stands in tests/oracle/torch_files.py. Needs torch.
"""

import argparse
import collections
import multiprocessing
import os
import pathlib
import shutil
import sys
import tempfile
import warnings

import numpy as np
import torch
import torch.distributed
import torch.distributed.checkpoint

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.oracle import torch_files as oracle  # noqa: E402

from ziggurat.checkpoint import containers  # noqa: E402


def to_torch(array: np.ndarray, name: str = "") -> torch.Tensor:
    """A tensor of the same bytes; ``name`` is PyTorch's name of the type."""
    contiguous = np.array(array, order="C")
    kind = getattr(torch, name or contiguous.dtype.name)
    return torch.from_numpy(contiguous.reshape(-1).view(np.uint8)).view(kind).reshape(array.shape)


def save_types(path: pathlib.Path) -> None:
    grid = to_torch(oracle.GRID)
    views = {
        "transposed": grid.T,
        "every-other": grid[1::2, ::3],
        "shared": grid[2],
        "expanded": torch.tensor(7.0).expand(3, 2),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(grid[:2, :2].clone()),
    }
    default = collections.defaultdict(list)
    default["a"].append(1)
    value = {
        "numbers": {
            name: to_torch(np.arange(4).astype(kind), name) for name, kind in oracle.NUMBERS.items()
        },
        "views": views,
        "array": np.arange(3.0),
        "size": torch.Size([2, 3]),
        "device": torch.device("cpu"),
        "dtype": torch.bfloat16,
        "namespace": argparse.Namespace(lr=0.1, name="run"),
        "default": default,
        "number": np.float64(1.5),
        "path": pathlib.PurePosixPath("a/b"),
        "plain": [None, True, "text", -(2**40), 1e300],
    }
    torch.save(value, path)


class Holder(torch.nn.Module):
    """A module whose state dictionary is what nanoGPT's is like."""

    def __init__(self):
        super().__init__()
        for name, array in oracle.MODEL.items():
            *parents, last = name.split(".")
            here: torch.nn.Module = self
            for parent in parents:
                if not hasattr(here, parent):
                    here.add_module(parent, torch.nn.Module())
                here = here.get_submodule(parent)
            here.register_parameter(last, torch.nn.Parameter(to_torch(array)))


def save_nanogpt(path: pathlib.Path) -> None:
    model = Holder().state_dict()
    moment = torch.zeros_like(next(iter(model.values())))
    state = {0: {"step": torch.tensor(5.0), "exp_avg": moment}}
    groups = [{"lr": 6e-4, "betas": (0.9, 0.95), "params": [0]}]
    metadata = {key: entry for key, entry in oracle.NANOGPT_METADATA.items() if key != "optimizer"}
    checkpoint = {
        "model": model,
        "optimizer": {"state": state, "param_groups": groups},
        "best_val_loss": torch.tensor(2.25),
        **metadata,
    }
    torch.save(checkpoint, path)


def save_distributed(rank: int, store: str, path: str) -> None:
    """One of two processes."""
    warnings.simplefilter("ignore")
    from torch.distributed.tensor import Shard, distribute_tensor

    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2
    )
    mesh = torch.distributed.init_device_mesh("cpu", (2,))
    model = {name: to_torch(array) for name, array in oracle.SHARDED.items()}
    model["rows"] = distribute_tensor(model["rows"], mesh, [Shard(0)])
    model["columns"] = distribute_tensor(model["columns"], mesh, [Shard(1)])
    torch.distributed.checkpoint.save({"model": model, "train": {"step": 7}}, checkpoint_id=path)
    torch.distributed.destroy_process_group()


def record(folder: pathlib.Path) -> None:
    """Write all files into an empty folder."""
    save_types(folder / oracle.TYPES.name)
    save_nanogpt(folder / oracle.NANOGPT.name)
    os.chdir(folder)  # the metadata records the path it was given
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as scratch:
        processes = [
            spawn.Process(
                target=save_distributed, args=(rank, f"{scratch}/store", oracle.DISTRIBUTED.name)
            )
            for rank in range(2)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            assert process.exitcode == 0, process.exitcode
    os.chdir(ROOT)


def contents(path: pathlib.Path) -> tuple[dict, dict]:
    """Everything a file holds, comparable."""
    with containers.open(path) as tensors:
        held = {n: (t.shape, t.dtype.name, t.read().tobytes()) for n, t in tensors.items()}
        return held, tensors.metadata


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        record(pathlib.Path(folder))
        if not check:
            shutil.rmtree(oracle.FOLDER, ignore_errors=True)
            shutil.copytree(folder, oracle.FOLDER)
            return 0
        for path in (oracle.TYPES, oracle.NANOGPT, oracle.DISTRIBUTED):
            new = pathlib.Path(folder) / path.name
            if contents(path) != contents(new):
                print(f"{path} holds other values than PyTorch {torch.__version__} writes")
                return 1
            if path.is_file():
                torch.load(path, weights_only=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
