"""Checkpoints of models that are larger than memory: weights go from their files to the step's
arrays piece by piece, in the order of the files, and a killed import resumes.

Beside the runtime itself a process holds one batch of pieces (64 MB), its copy on the way to the
disk, and the pages of one tensor's file.
"""

import dataclasses
import importlib.metadata
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ziggurat.checkpoint.manifest import LeafRecord
from ziggurat.checkpoint.resumable_step import ArrayPlan, ResumableStep
from ziggurat.core.pytrees import named_leaves
from ziggurat.models.conversion.weight_names import StoredWeight
from ziggurat.models.language_model import PARAMS, Params
from ziggurat.models.loading.placing import place_arrays
from ziggurat.models.loading.pretrained import Pretrained, files_beside
from ziggurat.models.loading.weight_reading import Told

PIECE_BYTES = 32 * 2**20
"""Largest piece of a parameter, but for one entry of the axis along which it is cut."""
BATCH_BYTES = 64 * 2**20
"""Pieces that are on their way to the disk together, but for one that is larger."""


@dataclasses.dataclass(frozen=True)
class WeightPiece:
    """Part of a parameter that is read and written at once."""

    name: str
    weight: StoredWeight
    index: tuple[slice, ...]
    file: str
    """Name of the last file that it needs, in the order of names; empty where the source has no
    files of its own or does not say."""

    @property
    def bytes(self) -> int:
        return math.prod(part.stop - part.start for part in self.index) * _itemsize(self.weight)


class StreamedImport:
    """Import of a model whose weights are left in their files, into a new checkpoint.

    Args:
        described: the model; its parameters are :class:`StoredWeight`, as
            ``pretrained.load(..., in_files=True)`` gives them.
        directory: new or empty.
        source: the directory or file that the weights are in; an interrupted import resumes if it
            is unchanged.
        options: whatever else decides which weights they are.

    Raises:
        CheckpointError: there is a checkpoint already, or another process imports into it.
    """

    def __init__(
        self,
        described: Pretrained,
        directory: Path,
        source: Path,
        options: Mapping[str, Any] | None = None,
    ):
        self.described = described
        weights: dict[str, StoredWeight] = named_leaves(described.params)
        self.batches = list(_batches(weights))
        """Pieces that are written together, in the order in which they are."""
        arrays = [
            ArrayPlan(_record(name, weight), _block(weight)) for name, weight in weights.items()
        ]
        identity = {
            "source": [str(source.absolute()), _stamps(source)],
            "options": {name: str(value) for name, value in (options or {}).items()},
            "version": importlib.metadata.version("ziggurat"),
        }
        self._step = ResumableStep(directory, PARAMS, arrays, identity)

    def __enter__(self) -> "StreamedImport":
        return self

    def __exit__(self, *_: object) -> None:
        self._step.__exit__()

    @property
    def finished(self) -> int:
        """Batches that are on disk."""
        return self._step.finished

    def write(self, told: Told) -> None:
        """Write all batches that are not on disk yet.

        Args:
            told: told of the file that is read, and of MB written, before each batch.

        Raises:
            CheckpointError: a tensor is damaged or of another shape; it is named.
        """
        sizes = [sum(piece.bytes for piece in batch) for batch in self.batches]
        total = _megabytes(sum(sizes))
        for number in range(self._step.finished, len(self.batches)):
            batch = self.batches[number]
            told(batch[0].file or batch[0].name, _megabytes(sum(sizes[:number])), total)
            self._step.write(
                (
                    piece.name,
                    tuple(part.start for part in piece.index),
                    piece.weight.read(piece.index),
                )
                for piece in batch
            )

    def loaded(self) -> Pretrained:
        """The model with the weights that were written, in memory."""
        model = self.described.model
        params: Params = place_arrays(
            Path(self.described.source), self._step.read(), model.abstract, {}, model.precision
        )
        return dataclasses.replace(self.described, params=params)

    def commit(self, records: Mapping[str, Any]) -> Path:
        """Name the step; returns its path."""
        return self._step.commit(records, files_beside(self.described))

    def discard(self) -> None:
        """Remove what has been written."""
        self._step.discard()


def count_batches(described: Pretrained) -> int:
    """How many batches an import of a model has, whose weights are in their files."""
    return sum(1 for _ in _batches(named_leaves(described.params)))


def _batches(weights: Mapping[str, StoredWeight]) -> Iterator[tuple[WeightPiece, ...]]:
    """Pieces of all parameters by the file they need last, none over two files."""
    pieces = [piece for name, weight in weights.items() for piece in _pieces(name, weight)]
    pieces.sort(key=lambda piece: piece.file)
    batch: list[WeightPiece] = []
    size = 0
    for piece in pieces:
        if batch and (size + piece.bytes > BATCH_BYTES or piece.file != batch[0].file):
            yield tuple(batch)
            batch, size = [], 0
        batch.append(piece)
        size += piece.bytes
    if batch:
        yield tuple(batch)


def _pieces(name: str, weight: StoredWeight) -> Iterator[WeightPiece]:
    """The blocks of one parameter."""
    block = _block(weight)
    counts = [math.ceil(size / step) for size, step in zip(weight.shape, block, strict=True)]
    leading = weight.name.stacked_axes
    homes = np.array(weight.name.all_theirs(weight.layers)).reshape(weight.shape[:leading])
    for at in np.ndindex(*counts):
        index = tuple(
            slice(i * step, min((i + 1) * step, size))
            for i, step, size in zip(at, block, weight.shape)
        )
        home = str(homes[at[:leading]])
        yield WeightPiece(name, weight, index, weight.file_of(home))


def _block(weight: StoredWeight) -> tuple[int, ...]:
    """Shape of a parameter's pieces: one tensor, cut along its own leading axis where it is large
    and the files give a part at the price of that part."""
    leading = weight.name.stacked_axes
    inner = list(weight.shape[leading:])
    size = math.prod(inner) * _itemsize(weight)
    if weight.mapped and size > PIECE_BYTES and weight.name.reorder is None:
        axis = len(inner) - 1 if weight.name.transpose and len(inner) == 2 else 0
        row = size // inner[axis]
        inner[axis] = max(1, PIECE_BYTES // row)
    return (*(1 for _ in range(leading)), *(max(1, n) for n in inner))


def _itemsize(weight: StoredWeight) -> int:
    return np.dtype(weight.dtype).itemsize


def _record(name: str, weight: StoredWeight) -> LeafRecord:
    return LeafRecord(tuple(name.split(".")), tuple(weight.shape), str(np.dtype(weight.dtype)))


def _stamps(source: Path) -> list[list[Any]]:
    """Names, sizes and times of the files that a model is read from."""
    files = [source] if source.is_file() else sorted(p for p in source.rglob("*") if p.is_file())
    return [[str(p.relative_to(source)), p.stat().st_size, p.stat().st_mtime_ns] for p in files]


def _megabytes(count: int) -> int:
    return round(count / 1e6)
