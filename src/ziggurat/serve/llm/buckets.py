"""The few shapes that a step comes in: all of them are compiled before the first request."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

SMALLEST_CHUNK = 16
GROUP = 4
"""Rows of a group of short prompts that are computed together."""
WORTH_GROUPING = 3
"""Least number of short prompts that are computed together; fewer are computed one by one, as a
padded row costs as much as a real one."""


class Shape(NamedTuple):
    """Shape of a step: number of rows, and tokens in each."""

    rows: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.rows} x {self.tokens}"


@dataclasses.dataclass(frozen=True)
class Buckets:
    """Table of the shapes for which steps are compiled.

    >>> table = Buckets(max_running=6, max_chunk=64)
    >>> " ".join(map(str, table.shapes)).replace(" x ", "x")
    '1x1 2x1 4x1 6x1 1x16 1x32 1x64 4x16'
    """

    max_running: int
    """Most rows that decode together."""
    max_chunk: int
    """Most tokens of a prompt in one step."""

    @property
    def decode(self) -> tuple[Shape, ...]:
        """Numbers of rows of decode steps: powers of two, and ``max_running``."""
        return tuple(Shape(rows, 1) for rows in _doubling(1, self.max_running))

    @property
    def prefill(self) -> tuple[Shape, ...]:
        """Shapes of prefill steps: one prompt by powers of two tokens, and groups of short ones."""
        single = [Shape(1, tokens) for tokens in _doubling(SMALLEST_CHUNK, self.max_chunk)]
        return (*single, *(Shape(GROUP, tokens) for tokens in self._grouped()))

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """All shapes."""
        return self.decode + self.prefill

    @property
    def rows(self) -> tuple[int, ...]:
        """All numbers of rows."""
        return tuple(sorted({shape.rows for shape in self.shapes}))

    def _grouped(self) -> tuple[int, ...]:
        """Lengths at which prompts are grouped: 16 and 64, if a group is no more than a chunk."""
        sizes = (SMALLEST_CHUNK, 4 * SMALLEST_CHUNK)
        enough = self.max_running >= WORTH_GROUPING
        return tuple(t for t in sizes if enough and GROUP * t <= self.max_chunk)

    def for_decode(self, rows: int) -> Shape:
        """The smallest shape for so many rows."""
        return next(shape for shape in self.decode if shape.rows >= rows)

    def for_prefill(self, counts: Sequence[int]) -> Iterator[tuple[Shape, list[int]]]:
        """Shapes for chunks of ``counts`` tokens, each with the indexes of its chunks.

        >>> list(Buckets(8, 64).for_prefill([5, 60, 9, 3]))
        [(Shape(rows=4, tokens=16), [0, 2, 3]), (Shape(rows=1, tokens=64), [1])]
        """
        left = dict(enumerate(counts))
        for tokens in self._grouped():
            short = [index for index, count in left.items() if count <= tokens]
            while len(short) >= WORTH_GROUPING:
                group, short = short[:GROUP], short[GROUP:]
                yield Shape(GROUP, tokens), group
                for index in group:
                    del left[index]
        for index, count in left.items():
            yield next(s for s in self.prefill if s.rows == 1 and s.tokens >= count), [index]


def _doubling(smallest: int, largest: int) -> list[int]:
    sizes = []
    while smallest < largest:
        sizes.append(smallest)
        smallest *= 2
    return [*sizes, largest]
