"""Pictures to patches: equal to transformers' processor of Qwen-VL."""

import json

import numpy as np
import pytest
from tests.models.test_image_processor import bomb, file_of, picture

from ziggurat.core.errors import DataError, ModelError
from ziggurat.models.patch_processor import PatchProcessor, PatchProcessorConfig, from_hf, to_hf

Image = pytest.importorskip("PIL.Image")

QWEN = {"image_processor_type": "Qwen2VLImageProcessor"}
CASES = {
    "defaults": QWEN,
    "qwen3-vl": {
        "image_processor_type": "Qwen2VLImageProcessorFast", "patch_size": 16, "merge_size": 2,
        "temporal_patch_size": 2, "size": {"longest_edge": 16777216, "shortest_edge": 65536},
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 3,
        "rescale_factor": 0.00392156862745098, "do_resize": True,
    },
    "limits": QWEN | {"min_pixels": 3136, "max_pixels": 6272, "do_rescale": True},
    "old-name-first": QWEN | {
        "size": {"shortest_edge": 1, "longest_edge": 99999}, "max_pixels": 6272, "min_pixels": 3136
    },
    "bilinear": QWEN | {"resample": 2, "do_normalize": False, "patch_size": 8, "merge_size": 1},
    "one-frame": QWEN | {"temporal_patch_size": 1, "do_rescale": False, "image_std": [1, 2, 3]},
}  # fmt: skip
SHAPES = ((37, 53), (200, 90), (56, 84), (20, 300))


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES)
def test_patches_equal_transformers(case):
    """Tolerance 1e-5: the same bytes from Pillow, rescaled and normalised in float32."""
    transformers = pytest.importorskip("transformers")
    rest = {k: v for k, v in CASES[case].items() if not k.endswith("_type")}
    theirs = transformers.Qwen2VLImageProcessorPil(**rest)
    ours = PatchProcessor(from_hf(CASES[case]))
    images = [picture(*shape) for shape in SHAPES]
    expected = theirs(images, return_tensors="np")
    found = ours(images)
    np.testing.assert_allclose(found.patches, expected["pixel_values"], atol=1e-5, rtol=1e-6)
    assert [(1, *grid) for grid in found.grids] == [*map(tuple, expected["image_grid_thw"])]
    for shape, grid in zip(SHAPES, found.grids):
        assert ours.config.grid(*shape) == grid
    assert from_hf(to_hf(ours.config)) == ours.config


def test_files_and_pictures_are_the_same(tmp_path):
    ours = PatchProcessor(PatchProcessorConfig(patch_size=4))
    image = picture(40, 64)
    (tmp_path / "a.png").write_bytes(file_of(image))
    expected = ours([image]).patches
    assert expected.shape[1] == 3 * 2 * 4 * 4
    for given in (file_of(image), tmp_path / "a.png"):
        np.testing.assert_array_equal(ours([given]).patches, expected)
    assert ours([]).patches.shape == (0, 96)
    assert ours([]).grids == ()


def test_without_resizing_sides_are_whole_blocks():
    keeps = PatchProcessor(from_hf(QWEN | {"do_resize": False}))
    assert keeps([picture(28, 56)]).grids == ((2, 4),)
    for shape in ((28, 57), (28, 28 * 1300)):
        with pytest.raises(DataError, match="multiples of 28, at most 1,003,520 pixels"):
            keeps.config.grid(*shape)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (bomb(60_000, 60_000), "at most 64,000,000 pixels"),
        (file_of(Image.new("RGB", (1, 201))), "201 x 1 pixels; expected one side at most 200"),
        (b"%PDF-1.7", "another file"),
    ],
    ids=["bomb", "thin", "document"],
)
def test_what_is_too_large_or_thin_is_refused_in_a_line(content, part):
    with pytest.raises(DataError) as caught:
        PatchProcessor(PatchProcessorConfig())([content])
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"image_processor_type": "LlavaImageProcessor"}, "LlavaImageProcessor"),
        ({"size": {"height": 3, "width": 4}}, "shortest_edge and longest_edge"),
        ({"size": {"shortest_edge": 56 * 56, "longest_edge": 10**9}}, "64,000,000"),
        ({"max_pixels": 10}, "most_pixels"),
        ({"patch_size": 0}, "patch_size"),
        ({"merge_size": "two"}, "merge_size"),
        ({"resample": 9}, "resample"),
        ({"image_mean": [0.5]}, "mean"),
        ({"some_switch": 3}, "some_switch"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_not_implemented_is_refused(change, part):
    with pytest.raises(ModelError) as caught:
        from_hf(json.loads(json.dumps(QWEN | change)))
    assert part in str(caught.value)
