"""Orbax checkpoints of other programs, such as MaxText: nested trees as dotted names.

Orbax reads the description; values come through TensorStore, so that each tensor, or a part of it,
is read alone, whatever the layout is (OCDBT or a folder per array, zarr 2 or 3).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ziggurat.core.errors import CheckpointError, did_you_mean
from ziggurat.formats.tensors import LazyTensor, Tensors

METADATA = "_METADATA"
_STRINGS = "_strings.json"


def find_items(path: Path) -> list[str]:
    """Names of the trees directly below a step's directory."""
    return sorted(entry.parent.name for entry in path.glob(f"*/{METADATA}"))


def open_orbax(path: Path, item: str | None = None) -> Tensors:
    """The arrays of a tree that Orbax saved.

    Args:
        path: directory of the tree, or of a step that holds one or more of them.
        item: which tree of a step.

    Raises:
        CheckpointError: no such tree, or Orbax cannot read it.
    """
    if not (path / METADATA).is_file():
        path = path / _choose(path, find_items(path), item)
    elif item is not None and item != path.name:
        raise CheckpointError(f"checkpoint {path}", found="a single tree", expected=f"item {item}")
    import jax
    import orbax.checkpoint as ocp
    from etils import epath

    try:
        described = ocp.PyTreeCheckpointHandler().metadata(epath.Path(path))
        settings = json.loads((path / METADATA).read_text(encoding="utf-8"))
        leaves = jax.tree.leaves(described.tree, is_leaf=lambda node: hasattr(node, "name"))
        texts = [leaf.name for leaf in leaves if not hasattr(leaf, "shape")]
        tensors = {
            leaf.name: _tensor(path, leaf, settings) for leaf in leaves if hasattr(leaf, "shape")
        }
        strings = json.loads((path / _STRINGS).read_text(encoding="utf-8")) if texts else {}
    except Exception as error:  # of many kinds, all of them about the files
        raise _unreadable(path, error) from error
    return Tensors("orbax", path, tensors, {name: strings.get(name) for name in texts})


def write_orbax(directory: Path, tensors: Mapping[str, Any]) -> None:
    """Save a new directory for ``orbax.checkpoint``, nested at the dots of the names.

    Raises:
        CheckpointError: a name is also the beginning of another, or a tensor has no elements.
    """
    import orbax.checkpoint as ocp

    tree: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if 0 in tensor.shape:
            raise CheckpointError(
                f"orbax: tensor {name}", found=f"shape {list(tensor.shape)}", expected="elements"
            )
        *parents, last = name.split(".")
        here = tree
        for parent in parents:
            here = here.setdefault(parent, {}) if isinstance(here, dict) else here
        if not isinstance(here, dict) or last in here:
            raise CheckpointError(
                f"orbax: tensor {name}", found="a name that begins another", expected="a tree"
            )
        here[last] = np.asarray(tensor)
    checkpointer = ocp.Checkpointer(ocp.StandardCheckpointHandler())
    try:
        checkpointer.save(directory.absolute(), args=ocp.args.StandardSave(tree))  # pyright: ignore[reportCallIssue]
    except ValueError as error:
        line = str(error).partition("\n")[0][:200]
        raise CheckpointError("orbax", found=line, expected="arrays it can store") from None
    finally:
        checkpointer.close()


def _choose(path: Path, items: list[str], item: str | None) -> str:
    known = ", ".join(items)
    if not items:
        raise CheckpointError(f"orbax checkpoint {path}", found="no tree", expected=METADATA)
    if item is None and len(items) > 1:
        raise CheckpointError(
            f"orbax checkpoint {path}",
            found=f"items {known}",
            expected="one item",
            fix=f"name one, e.g. --item {items[0]}",
        )
    if item is not None and item not in items:
        raise CheckpointError(
            f"orbax checkpoint {path}: item {item}",
            found="no such item",
            expected=f"one of {known}",
            fix=did_you_mean(item, items),
        )
    return item or items[0]


def _tensor(path: Path, leaf: Any, settings: Mapping[str, Any]) -> LazyTensor:
    ocdbt = settings.get("use_ocdbt", (path / "manifest.ocdbt").is_file())
    files = {"driver": "file", "path": f"{path.absolute()}/"}
    store: dict[str, Any] = {"driver": "ocdbt", "base": files, "path": f"{leaf.name}/"}
    if not ocdbt:
        store = files | {"path": f"{path.absolute() / leaf.name}/"}
    spec: dict[str, Any] = {
        "driver": "zarr3" if settings.get("use_zarr3") else "zarr",
        "kvstore": store,
    }
    if settings.get("store_array_data_equal_to_fill_value"):
        spec["fill_missing_data_reads"] = False  # else a lost chunk would read as zeros

    def read(where: tuple[slice, ...]) -> np.ndarray:
        import tensorstore

        try:
            opened = tensorstore.open(spec, open=True, read=True).result()
            return opened[where].read().result() if where else opened.read().result()
        except (ValueError, OSError, RuntimeError) as error:
            raise _unreadable(path, error, leaf.name) from error

    return LazyTensor(tuple(leaf.shape), np.dtype(leaf.dtype), read)


def _unreadable(path: Path, error: Exception, name: str = "") -> CheckpointError:
    line = (str(error).strip().partition("\n")[0] or type(error).__name__)[:300]
    return CheckpointError(
        f"orbax checkpoint {path}" + (f": {name}" if name else ""),
        found=f"it cannot be read ({line})",
        expected="a whole checkpoint",
    )
