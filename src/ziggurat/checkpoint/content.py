"""Content of one save: checked, copied to the host once, and written to every tier."""

import json
import math
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from jaxtyping import PyTree

from ziggurat.checkpoint import array_store, leaves
from ziggurat.checkpoint.digests import Known, WhileWriting
from ziggurat.checkpoint.manifest import (
    ARRAYS,
    MANIFEST,
    RECORDS,
    RESERVED,
    Manifest,
    describe,
    write_manifest,
)
from ziggurat.core import atomic
from ziggurat.core.errors import CheckpointError
from ziggurat.core.json_types import Json, JsonMapping


class StepContent:
    """Arrays, records, files and metrics of one step, in host memory.

    On return of the constructor nothing that happens to the caller's arrays, records or files
    reaches the checkpoint any more: this is the one copy that a save holds, until it is dropped.

    Raises:
        CheckpointError: a leaf, record or file cannot be stored; the text names it.
    """

    def __init__(
        self,
        step: int,
        arrays: Mapping[str, PyTree],
        records: JsonMapping | None = None,
        files: Mapping[str, bytes | Path] | None = None,
        metrics: Mapping[str, float] | None = None,
    ):
        if step < 0:
            raise CheckpointError("checkpoint step", found=step, expected="0 or more")
        self.step = step
        self.metrics = finite_metrics(metrics or {})
        described = {item: leaves.describe(item, tree) for item, tree in arrays.items()}
        self.items = {item: tuple(leaf for leaf, _ in tree) for item, tree in described.items()}
        self._records = records_text(records or {})
        self._files = {name: file_content(name, it) for name, it in (files or {}).items()}
        self._trees = array_store.to_host(
            {
                item: {leaf.path: value for leaf, value in tree if leaf.stored}
                for item, tree in described.items()
            }
        )

    def begin(self, directory: Path) -> None:
        """Write records and files into an empty directory; make the items' directories in it."""
        (directory / RECORDS).write_text(self._records, encoding="utf-8")
        for name, content in self._files.items():
            target = directory / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        for item in self._trees:
            (directory / ARRAYS / item).mkdir(parents=True)

    def write(self, directory: Path, process: int) -> dict[str, Known]:
        """Write this process's part of the arrays; digests of its data files, taken meanwhile."""
        with WhileWriting(directory / ARRAYS, process) as digests:
            array_store.write(directory / ARRAYS, self._trees)
            return {f"{ARRAYS}/{name}": known for name, known in digests.result().items()}

    def commit(self, directory: Path, final: Path, known: Mapping[str, Known]) -> Manifest:
        """Join all parts, write the manifest, and give the directory its name."""
        array_store.finish(directory / ARRAYS, self._trees)
        manifest = describe(directory, self.step, self.items, self.metrics, known)
        write_manifest(directory, manifest)
        atomic.commit_directory(directory, final)
        return manifest


def finite_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics as floats; values that are not finite are left out, as they are never best.

    >>> finite_metrics({"loss": 2.5, "eval_loss": float("nan")})
    {'loss': 2.5}
    """
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}


def records_text(records: JsonMapping) -> str:
    """Records as JSON.

    Raises:
        CheckpointError: a value would not read back equal; the text names it.
    """
    _check_json(dict(records), "records")
    return json.dumps(records, indent=1) + "\n"


def _check_json(value: Json, where: str) -> None:
    """Only what reads back equal: JSON would turn tuples into lists and integer keys into text."""
    if isinstance(value, dict):
        for key, entry in value.items():
            if not isinstance(key, str):
                raise CheckpointError(where, found=f"key {key!r}", expected="text keys")
            _check_json(entry, f"{where}.{key}")
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            _check_json(entry, f"{where}.{index}")
    elif type(value) not in (str, int, float, bool, type(None)) or (
        isinstance(value, float) and not math.isfinite(value)
    ):
        raise CheckpointError(
            where,
            found=f"{value!r} ({type(value).__name__})",
            expected="a JSON value: dict, list, str, int, finite float, bool or None",
        )


def file_content(name: str, content: bytes | Path) -> bytes:
    """Content of a caller's file of a step.

    Raises:
        CheckpointError: its name leaves the step or is taken, or there is no such file.
    """
    parts = PurePosixPath(name).parts
    bad = not parts or parts[0] == "/" or ".." in parts or "\\" in name or name.endswith("/")
    if bad or parts[0] in RESERVED:
        raise CheckpointError(
            f"checkpoint file {name!r}",
            found="a reserved name" if not bad else "a path outside the step directory",
            expected=f"a relative path other than {MANIFEST}, {RECORDS} and {ARRAYS}/",
        )
    if not isinstance(content, Path):
        return content
    try:
        return content.read_bytes()
    except OSError:
        raise CheckpointError(
            f"checkpoint file {name!r}",
            found=f"no file at {content}",
            expected="bytes or the path of a file",
        ) from None
