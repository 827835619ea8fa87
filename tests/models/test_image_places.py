"""Places of patches and tokens of images."""

from typing import Any

import numpy as np
import pytest

from ziggurat.core.errors import DataError
from ziggurat.models.image_places import (
    Grid,
    patch_places,
    patch_positions,
    rotary_positions,
    token_count,
)
from ziggurat.models.vision_language_model import PreparedImage, image_spans

IMAGE, START, END = 90, 91, 92


def row(*parts: int | tuple[int, int]) -> np.ndarray:
    """Tokens of a prompt: so many of text, or an image between its two marks."""
    found: list[int] = []
    for part in parts:
        if isinstance(part, int):
            found += range(1, part + 1)
        else:
            found += [START, *[IMAGE] * (part[0] * part[1] // 4), END]
    return np.array(found)


ROWS = {
    "two-images": (3, (4, 8), 2, (6, 2), 4),
    "image-first": ((8, 2), 5),
    "image-last": (2, (2, 2)),
    "side-by-side": ((4, 4), (4, 2), 1),
    "text": (6,),
}


def spans_of(tokens: np.ndarray, grids: list[Grid]) -> list[slice]:
    images = [PreparedImage(np.zeros(0, np.float32), token_count(grid, 2), grid) for grid in grids]
    return image_spans(tokens, images, IMAGE)


@pytest.mark.parity
@pytest.mark.parametrize("third", [False, True], ids=["qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("name", ROWS)
def test_positions_equal_transformers(name, third):
    import torch
    import transformers

    cls: Any = transformers.Qwen3VLModel if third else transformers.Qwen2_5_VLModel
    model = cls.__new__(cls)  # its positions need no weights
    torch.nn.Module.__init__(model)
    model.config = cls.config_class()

    tokens, grids = row(*ROWS[name]), [part for part in ROWS[name] if isinstance(part, tuple)]
    expected, delta = model.get_rope_index(
        torch.tensor(tokens)[None],
        torch.tensor((tokens == IMAGE).astype(int))[None],
        torch.tensor([[1, *grid] for grid in grids]) if grids else None,
    )
    spans = spans_of(tokens, grids)
    found, later = rotary_positions(len(tokens), spans, grids, 2)
    np.testing.assert_array_equal(found, expected[:, 0].T.numpy())
    assert later == int(delta[0, 0])


def test_patches_come_block_by_block():
    at = patch_positions((4, 4), 2)
    assert at[:4].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert at[4:8, 1].tolist() == [2, 3, 2, 3]
    where = patch_places([[(2, 2), (2, 4)], [(2, 2)]], 2, window=2, patches=16, windows=4)
    assert where.images.tolist() == [[1] * 4 + [2] * 8 + [0] * 4, [1] * 4 + [0] * 12]
    assert where.sizes[0, [0, 4, 15]].tolist() == [[2, 2], [2, 4], [1, 1]]
    assert where.windows is not None
    assert where.windows[0].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [16] * 4]
    assert where.windows[1].tolist() == [[0, 1, 2, 3]] + [[16] * 4] * 3


def test_every_patch_stands_in_one_window():
    where = patch_places([[(6, 10), (4, 2)]], 2, window=4)
    assert where.windows is not None
    inside = where.windows[where.windows < where.images.shape[1]]
    assert sorted(inside.tolist()) == list(range(68))
    assert where.windows.shape == (1, 7, 16)


def test_what_does_not_fit_is_refused_in_a_line():
    for rows, sizes, part in (
        ([[(3, 4)]], {}, "image: found 3 x 4 patches; expected multiples of 2 patches"),
        ([[(0, 4)]], {}, "found 0 x 4 patches"),
        ([[(4, 4)]], {"patches": 12}, "patches of images: found 16 in a row; expected at most 12"),
        ([[(4, 4)]], {"window": 2, "windows": 3}, "windows of images: found 4 in a row"),
    ):
        with pytest.raises(DataError) as caught:
            patch_places(rows, 2, **sizes)
        assert part in str(caught.value)
        assert "\n" not in str(caught.value)
