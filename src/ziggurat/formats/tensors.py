"""Interface of an opened container of weights: names, and tensors read on demand.

>>> ones = LazyTensor.of(np.ones((2, 3), np.float32))
>>> ones.shape, ones.read(np.s_[1:]).shape
((2, 3), (1, 3))
>>> with Tensors("pt", Path("a.pt"), {"model.w": ones}, {"step": 7}) as tensors:
...     list(tensors), tensors["model.w"].nbytes, tensors.metadata
(['model.w'], 24, {'step': 7})
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from ziggurat.core.errors import CheckpointError, did_you_mean


def printable(text: object) -> str:
    """Text from a file for a line of an error: what would move a terminal's cursor is a ``?``."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(text))


Index = tuple[slice, ...] | slice
"""Which part of a tensor to read: one slice per leading dimension, with steps of 1."""


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """Shape and type of a stored tensor, and the way to its values.

    ``numpy.asarray`` reads it whole.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    reader: Callable[[tuple[slice, ...]], np.ndarray] = dataclasses.field(repr=False)
    """Gives the part within slices of step 1 and known bounds, one per dimension."""

    @classmethod
    def of(cls, array: Shaped[np.ndarray, "..."]) -> "LazyTensor":
        """A tensor that is in memory, or mapped, already."""
        return cls(array.shape, array.dtype, lambda where: array[(*where, ...)])

    @property
    def nbytes(self) -> int:
        """Bytes of all values."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, where: Index = ()) -> Shaped[np.ndarray, "..."]:
        """The values, or a part of them; only what is asked for is read.

        Raises:
            CheckpointError: a file is damaged.
        """
        given = where if isinstance(where, tuple) else (where,)
        assert len(given) <= len(self.shape), (given, self.shape)
        bounds = [
            one.indices(size)
            for one, size in zip(given + (slice(None),) * len(self.shape), self.shape)
        ]
        assert all(step == 1 for *_, step in bounds), "only slices of step 1"
        where = tuple(slice(start, max(start, stop)) for start, stop, _ in bounds)
        return np.asarray(self.reader(where))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.read()
        if dtype is not None and np.dtype(dtype) != array.dtype:
            return array.astype(dtype)
        return array.copy() if copy else array


class Tensors(Mapping[str, LazyTensor]):
    """An open container: a mapping of tensor names, and what else it holds.

    Also a source for ``ziggurat.models.conversion.weight_names.import_weights``.
    """

    def __init__(
        self,
        kind: str,
        path: Path,
        tensors: Mapping[str, LazyTensor],
        metadata: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None = None,
        close: Callable[[], None] = lambda: None,
    ):
        self.kind = kind
        """``pt``, ``distcp``, ``orbax``, ``safetensors`` or ``ziggurat``."""
        self.path = path
        self._metadata = metadata
        self._tensors = dict(tensors)
        self._close = close

    def __enter__(self) -> "Tensors":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files; arrays that were read stay valid."""
        self._close()

    @functools.cached_property
    def metadata(self) -> dict[str, Any]:
        """Values beside the tensors, nested as they were saved; tuples have become lists."""
        return dict((self._metadata() if callable(self._metadata) else self._metadata) or {})

    def __len__(self) -> int:
        return len(self._tensors)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __getitem__(self, name: str) -> LazyTensor:
        return self._tensors[name]

    def dtype_of(self, name: str) -> np.dtype:
        """Type of a tensor."""
        return np.dtype(self._tensors[name].dtype)

    def read(self, name: str) -> Shaped[np.ndarray, "..."]:
        """All values of one tensor.

        Raises:
            CheckpointError: no such tensor, or a file is damaged.
        """
        if name not in self._tensors:
            raise CheckpointError(
                f"{self.path}: tensor {printable(name)}",
                found="no such tensor",
                expected=f"one of {len(self)} tensors",
                fix=did_you_mean(name, self),
            )
        return self._tensors[name].read()
