"""A checkpoint step written one part of one array at a time, which resumes after a kill.

An importer reads far more than fits into memory, for minutes or hours. The step grows in
``<directory>.tmp-import`` beside the directory it is for::

    progress.json      what is being written, and how many batches are on disk
    step_00000000/     the step: one OCDBT store, as Orbax reads it
    .lock              held while a process writes

Batches are numbered by the caller, who makes the same ones in the same order each time. A batch is
counted when its data has been synced, so a kill loses at most one; it is then written again to the
same place. :meth:`ResumableStep.commit` renames the step into the directory.
"""

import dataclasses
import json
import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from ziggurat.checkpoint import array_store, leaves
from ziggurat.checkpoint.content import file_content, records_text
from ziggurat.checkpoint.manifest import (
    ARRAYS,
    RECORDS,
    LeafRecord,
    describe,
    write_manifest,
)
from ziggurat.checkpoint.step_reader import StepReader
from ziggurat.checkpoint.steps import step_name
from ziggurat.checkpoint.writer_lock import WriterLock
from ziggurat.core import atomic
from ziggurat.core.errors import CheckpointError
from ziggurat.core.storage import naming

_log = logging.getLogger(__name__)

SUFFIX = ".tmp-import"
PROGRESS = "progress.json"


@dataclasses.dataclass(frozen=True)
class ArrayPlan:
    """One array of the step: its record, and the blocks in which the store keeps it."""

    leaf: LeafRecord
    block: tuple[int, ...]
    """Shape of a block; writes are of whole blocks, cut off at the array's ends."""


class ResumableStep:
    """Step 0 of a new checkpoint with one item of arrays, written in batches.

    Args:
        directory: new or empty; it is made by :meth:`commit`.
        item: name of the item.
        arrays: all arrays of the item, in tree order.
        identity: what decides whether an interrupted write is this one: whatever the arrays'
            values depend on.

    Raises:
        CheckpointError: there is a checkpoint already, or another process writes this one.
    """

    def __init__(
        self, directory: Path, item: str, arrays: Sequence[ArrayPlan], identity: Mapping[str, Any]
    ):
        if StepReader(directory).steps():
            raise CheckpointError(
                f"output {directory}", found="a checkpoint", expected="a new or empty directory"
            )
        self.directory, self.item = directory, item
        self.arrays = {plan.leaf.name: plan for plan in arrays}
        self._work = directory.absolute().with_name(directory.absolute().name + SUFFIX)
        self._step = self._work / step_name(0)
        self._store = self._step / ARRAYS / item
        self._opened: dict[str, Any] = {}
        self._work.parent.mkdir(parents=True, exist_ok=True)
        self._lock = WriterLock(self._work)
        self._lock.acquire()
        plans = {name: [plan.leaf.shape, plan.leaf.dtype, plan.block] for name, plan in
                 self.arrays.items()}  # fmt: skip
        self._identity = json.loads(json.dumps({"arrays": plans, **identity}))
        self.finished = self._resume()
        """Batches that are on disk."""

    def __enter__(self) -> "ResumableStep":
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.clear()
        self._lock.release()

    def write(
        self, parts: Iterable[tuple[str, tuple[int, ...], Shaped[np.ndarray, "..."]]]
    ) -> None:
        """Write the next batch, and count it once it is on disk.

        Args:
            parts: name of an array, index of the first entry in each axis, and the values.

        Raises:
            OSError: the disk is full.
        """
        pending = []
        try:
            for name, start, values in parts:
                if values.size:
                    where = tuple(slice(a, a + n) for a, n in zip(start, values.shape, strict=True))
                    target = self._open(name)
                    with naming(self.directory):
                        pending.append((target[where] if where else target).write(values))
        finally:  # also behind an error: nothing may write any more on return
            with naming(self.directory):
                for write in pending:
                    write.result()
        self.finished += 1
        with naming(self.directory):
            self._note()

    def read(self) -> dict[str, Any]:
        """All arrays as nested dicts, for a look at the step before it is committed."""
        records = [plan.leaf for plan in self.arrays.values()]
        values = array_store.read(self._step, self.item, dict.fromkeys(records))
        return leaves.nest({leaf.path: value for leaf, value in values.items()})

    def commit(self, records: Mapping[str, Any], files: Mapping[str, bytes | Path]) -> Path:
        """Give the step its name in the directory; returns its path.

        Args:
            records: JSON values beside the arrays.
            files: contents by path in the step, or files to copy.
        """
        self._opened.clear()
        final = self.directory / step_name(0)
        items = {self.item: tuple(plan.leaf for plan in self.arrays.values())}
        with naming(self.directory):
            (self._step / RECORDS).write_text(records_text(records), encoding="utf-8")
            for name, content in files.items():
                (self._step / name).parent.mkdir(parents=True, exist_ok=True)
                (self._step / name).write_bytes(file_content(name, content))
            write_manifest(self._step, describe(self._step, 0, items))
            self.directory.mkdir(parents=True, exist_ok=True)
            atomic.commit_directory(self._step, final)
        self.discard()
        return final

    def discard(self) -> None:
        """Remove what has been written."""
        self._opened.clear()
        self._lock.release()
        shutil.rmtree(self._work, ignore_errors=True)

    def _resume(self) -> int:
        """How many batches an interrupted write of the same arrays left; others are removed."""
        try:
            found = json.loads((self._work / PROGRESS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = {}
        if found.get("identity") == self._identity and self._store.is_dir():
            return int(found["finished"])
        if self._step.exists():
            _log.warning(
                "%s holds part of another version of this model; it begins anew", self._work
            )
            shutil.rmtree(self._step)
        self._store.mkdir(parents=True)
        array_store.write_description(self._store, [p.leaf for p in self.arrays.values()])
        self.finished = 0
        self._note()
        return 0

    def _note(self) -> None:
        text = json.dumps({"finished": self.finished, "identity": self._identity})
        atomic.write_file(self._work / PROGRESS, text)

    def _open(self, name: str) -> Any:
        if name not in self._opened:
            plan = self.arrays[name]
            self._opened[name] = array_store.open_array(self._store, plan.leaf, plan.block)
        return self._opened[name]
