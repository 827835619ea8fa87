"""Where the patches and tokens of images stand: numbers that the host computes from their sizes.

An image of ``h`` by ``w`` patches, merged in blocks of ``m`` by ``m``, is ``h w / m^2`` tokens of a
prompt. Its patches are in the order of those tokens, and row by row within a block.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from ziggurat.core.errors import DataError
from ziggurat.nn.vision_tower import PatchPlaces

Grid = tuple[int, int]
"""Rows and columns of patches of an image."""


def token_count(grid: Grid, merge: int) -> int:
    """Tokens of an image whose patches are merged in blocks of ``merge`` by ``merge``.

    >>> token_count((4, 6), 2)
    6
    """
    return grid[0] * grid[1] // merge**2


def patch_positions(grid: Grid, merge: int) -> Int[np.ndarray, "n 2"]:
    """Row and column of every patch of an image, block by block.

    >>> patch_positions((2, 4), 2)[:, 1].tolist()
    [0, 1, 0, 1, 2, 3, 2, 3]
    """
    rows, columns = grid
    whole = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), axis=-1)
    blocks = whole.reshape(rows // merge, merge, columns // merge, merge, 2)
    return blocks.transpose(0, 2, 1, 3, 4).reshape(-1, 2)


def patch_places(
    rows: Sequence[Sequence[Grid]],
    merge: int,
    window: int | None = None,
    *,
    patches: int | None = None,
    windows: int | None = None,
) -> PatchPlaces:
    """Places of the patches of each row's images, one image after another.

    Args:
        rows: of each row, its images' grids.
        merge: side of a block of patches that become one token.
        window: side in patches of the windows of a tower that has them.
        patches: patches of a row with padding; default those of the fullest row.
        windows: windows of a row with padding; default those of the fullest row.

    Raises:
        DataError: a grid is not made of whole blocks, or a row does not fit.
    """
    for grid in (grid for row in rows for grid in row):
        if min(grid) < merge or any(side % merge for side in grid):
            raise DataError(
                "image", found=f"{grid[0]} x {grid[1]} patches",
                expected=f"multiples of {merge} patches", fix="resize it with the image processor",
            )  # fmt: skip
    length = _room("patches", [sum(h * w for h, w in row) for row in rows], patches)
    shape = (len(rows), length)
    images, places = np.zeros(shape, np.int32), np.zeros((*shape, 2), np.int32)
    sizes, members = np.ones((*shape, 2), np.int32), []
    for r, row in enumerate(rows):
        start, found = 0, []
        for number, grid in enumerate(row, 1):
            at = patch_positions(grid, merge)
            part = slice(start, start + len(at))
            images[r, part], places[r, part], sizes[r, part] = number, at, grid
            if window is not None:
                found += [start + inside for inside in _windows(at, window)]
            start += len(at)
        members.append(found)
    tiled = None
    if window is not None:
        count = _room("windows", [len(found) for found in members], windows)
        tiled = np.full((len(rows), count, window**2), length, np.int32)
        for r, found in enumerate(members):
            for w, inside in enumerate(found):
                tiled[r, w, : len(inside)] = inside
    return PatchPlaces(
        images=jnp.asarray(images),
        positions=jnp.asarray(places),
        sizes=jnp.asarray(sizes),
        windows=None if tiled is None else jnp.asarray(tiled),
    )


def window_count(grids: Sequence[Grid], window: int) -> int:
    """Windows of images, those cut off at borders included.

    >>> window_count([(6, 10), (4, 2)], 4)
    7
    """
    return sum(math.ceil(h / window) * math.ceil(w / window) for h, w in grids)


def rounded(count: int) -> int:
    """A size of at least ``count``, so that few programs are compiled: a power of two, or halfway
    to the next.

    >>> [rounded(count) for count in (1, 2, 5, 6, 7, 100)]
    [1, 2, 6, 6, 8, 128]
    """
    power = 1 << max(0, count - 1).bit_length()
    between = power * 3 // 4
    return between if count <= between else power


def _windows(at: Int[np.ndarray, "n 2"], window: int) -> list[Int[np.ndarray, "s"]]:
    """Indices of the patches of each window of an image."""
    numbers = (at // window) @ np.array([1 + at[:, 1].max() // window, 1])
    return [np.flatnonzero(numbers == number) for number in np.unique(numbers)]


def _room(what: str, needed: list[int], given: int | None) -> int:
    """Size of a row, padding included."""
    most = max(needed, default=0)
    if given is not None and given < most:
        raise DataError(
            f"{what} of images", found=f"{most:,} in a row", expected=f"at most {given:,}",
            fix="use fewer or smaller images",
        )  # fmt: skip
    return max(1, most if given is None else given)


def rotary_positions(
    length: int, spans: Sequence[slice], grids: Sequence[Grid], merge: int
) -> tuple[Int[np.ndarray, "t 3"], int]:
    """Positions of a row's tokens by time, height and width, and how much later the next tokens
    stand than their number in the row.

    Text counts on, equal on all axes. A token of an image stands at the image's beginning plus its
    row and column of blocks; text continues behind the image's longer side.

    Args:
        length: tokens in the row.
        spans: the tokens of each image.
        grids: the images in order.
        merge: side of a block of patches that become one token.

    Paper: Wang et al. 2024 (Qwen2-VL), https://arxiv.org/abs/2409.12191, section 2.1.

    >>> positions, delta = rotary_positions(7, [slice(1, 5)], [(4, 4)], 2)
    >>> positions.T.tolist(), delta
    ([[0, 1, 1, 1, 1, 3, 4], [0, 1, 1, 2, 2, 3, 4], [0, 1, 2, 1, 2, 3, 4]], -2)
    """
    positions = np.zeros((length, 3), np.int32)
    token, position = 0, 0
    for span, grid in zip(spans, grids):
        before = span.start - token
        positions[token : span.start] = position + np.arange(before)[:, None]
        position += before
        high, wide = grid[0] // merge, grid[1] // merge
        inside = np.stack(np.divmod(np.arange(high * wide), wide), axis=-1)
        positions[span] = position
        positions[span, 1:] += inside.astype(np.int32)
        token, position = span.stop, position + max(high, wide)
    rest = length - token
    positions[token:] = position + np.arange(rest)[:, None]
    return positions, position - token
