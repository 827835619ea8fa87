"""Batches from objects of a Python caller: sources of their own, or Grain's datasets."""

import hashlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from ziggurat.core.errors import DataError
from ziggurat.core.json_types import JsonMapping, JsonObject
from ziggurat.core.protocols import Batch

_KEPT = 4
"""States of an iterator that are kept: the loop takes a batch ahead of the step it saves."""


def next_token_batch(ids: Int[np.ndarray, "b t_plus_1"]) -> Batch:
    """A language-model batch of rows that each are one document.

    Args:
        ids: token ids; the last one of a row is only predicted.

    >>> batch = next_token_batch(np.array([[5, 6, 7]]))
    >>> batch["tokens"].tolist(), batch["targets"].tolist(), batch["positions"].tolist()
    ([[5, 6]], [[6, 7]], [[0, 1]])
    """
    tokens = np.asarray(ids[:, :-1], np.int32)
    ones = np.ones_like(tokens)
    return {
        "tokens": tokens,
        "targets": np.asarray(ids[:, 1:], np.int32),
        "segment_ids": ones,
        "positions": np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape),
        "loss_mask": ones.astype(np.float32),
    }


class GrainSource:
    """Batches of a Grain dataset; implements :class:`ziggurat.train.parts.TrainingData`.

    Each element of the dataset is the global batch of a step: a dict as in
    :data:`ziggurat.core.protocols.Batch`, such as :func:`next_token_batch` makes. With several
    processes each reads whole batches and keeps its own rows. A checkpoint stores Grain's own
    state, or the step for a ``MapDataset``, and a digest of the first batch.

    Args:
        dataset: a ``grain.MapDataset`` or ``grain.IterDataset``, already batched.

    Raises:
        DataError: its elements are no batches.
    """

    def __init__(self, dataset: Any):
        import grain

        self._random = isinstance(dataset, grain.MapDataset)
        self._dataset = dataset
        first = dataset[0] if self._random else next(iter(dataset))
        if not isinstance(first, Mapping) or "tokens" not in first:
            raise DataError(
                "Grain dataset",
                found=f"elements of type {type(first).__name__}",
                expected="dicts of arrays, with tokens among them",
                fix="map to ziggurat.data.next_token_batch after .batch(...)",
            )
        self.batch_size, self.sequence_length = map(int, first["tokens"].shape[:2])
        self._digest = _digest(first)
        self._states: dict[int, Any] = {}
        self._resumed: tuple[int, Any] | None = None

    @property
    def steps(self) -> int | None:
        """Steps until the data ends; None for data without a known end."""
        if not self._random or len(self._dataset) >= sys.maxsize:
            return None
        return len(self._dataset)

    @property
    def steps_per_epoch(self) -> int | None:
        """Number of steps in an epoch: ``None``, since Grain's datasets repeat by themselves."""
        return None

    def batch(self, step: int, rows: slice | None = None) -> Batch:
        """Rows of the batch of a step.

        Raises:
            DataError: the dataset has no random access.
        """
        if not self._random:
            raise DataError("Grain dataset", found="an IterDataset", expected="a MapDataset")
        return _rows(self._dataset[step], rows)

    def iterate(self, start: int, rows: slice | None = None) -> Iterator[Batch]:
        """The batches from step ``start`` on.

        Raises:
            DataError: there is neither random access nor a stored state of that step.
        """
        if self._random:
            for step in range(start, self.steps or sys.maxsize):
                yield self.batch(step, rows)
            return
        iterator = iter(self._dataset)
        if start:
            if self._resumed is None or self._resumed[0] != start:
                raise DataError(
                    "Grain dataset", found=f"no state of step {start}", expected="a checkpoint's"
                )
            iterator.set_state(self._resumed[1])
        self._states = {start: iterator.get_state()}
        for step, batch in enumerate(iterator, start):
            self._states[step + 1] = iterator.get_state()
            self._states.pop(step - _KEPT, None)
            yield _rows(batch, rows)

    def state(self, step: int) -> JsonObject:
        """State from which step ``step`` comes next, as JSON values."""
        known = {"step": step, "digest": self._digest}
        return known if self._random else known | {"grain": self._states[step]}

    def check_state(self, state: JsonMapping) -> int:
        """The step that comes next after ``state`` was stored.

        Raises:
            DataError: it was stored of other data.
        """
        if state.get("digest") != self._digest:
            raise DataError(
                "data of the checkpoint",
                found=f"a first batch with digest {self._digest}",
                expected=f"{state.get('digest')}, as the checkpoint says",
                fix="give the same dataset, or the run another name",
            )
        self._resumed = int(state["step"]), state.get("grain")
        return int(state["step"])


def as_source(given: Any) -> Any:
    """Adapt a caller's data to a source of batches; Grain's datasets are wrapped.

    Raises:
        DataError: it is none; the text names what it lacks.
    """
    if "grain" in sys.modules:
        import grain

        if isinstance(given, (grain.MapDataset, grain.IterDataset)):
            return GrainSource(given)
    wanted = ("batch_size", "sequence_length", "steps", "steps_per_epoch", "iterate")
    wanted += ("state", "check_state")
    lacking = [name for name in wanted if not hasattr(given, name)]
    if lacking:
        raise DataError(
            f"data of type {type(given).__name__}",
            found=f"nothing called {', '.join(lacking)}",
            expected="a ziggurat.train.TrainingData, or a Grain dataset",
        )
    return given


def _rows(batch: Mapping[str, Any], rows: slice | None) -> Batch:
    return {name: np.asarray(array)[rows or slice(None)] for name, array in batch.items()}


def _digest(batch: Mapping[str, Any]) -> str:
    made = hashlib.blake2b(digest_size=8)
    for name in sorted(batch):
        array = np.ascontiguousarray(batch[name])
        made.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return made.hexdigest()
