"""Pictures to patches of Pixtral's tower: sizes and pixels equal to transformers' processor."""

import numpy as np
import pytest
from tests.models.test_image_processor import picture

from ziggurat.core.errors import ModelError
from ziggurat.models.patch_processor import PatchProcessor
from ziggurat.models.pixtral_processor import from_hf, to_hf, to_hf_together

PIXTRAL = {"image_processor_type": "PixtralImageProcessor"}
CASES = {
    "defaults": (PIXTRAL, {}),
    "mistral-small": (
        {
            "image_processor_type": "PixtralImageProcessorFast", "do_convert_rgb": True,
            "do_normalize": True, "do_rescale": True, "do_resize": True, "do_pad": True,
            "patch_size": {"height": 14, "width": 14}, "resample": 3,
            "rescale_factor": 0.00392156862745098, "size": {"longest_edge": 112},
        },
        {"patch_size": 14, "spatial_merge_size": 2, "image_token": "[IMG]"},
    ),
    "two-sides": (PIXTRAL | {"size": {"height": 32, "width": 64}, "resample": 2}, {}),
    "plain": (PIXTRAL | {"do_normalize": False, "do_rescale": False, "size": 48}, {}),
}  # fmt: skip
SHAPES = ((37, 53), (200, 90), (56, 84), (20, 300))


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES)
def test_patches_equal_transformers(case):
    """Tolerance 1e-5: the same bytes from Pillow, rescaled and normalised in float32."""
    transformers = pytest.importorskip("transformers")
    steps, beside = CASES[case]
    ours = PatchProcessor(from_hf(steps, beside))
    side, merge = ours.config.patch_size, ours.config.merge_size
    rest = {k: v for k, v in steps.items() if not k.endswith("_type")} | {
        "patch_size": side * merge
    }
    theirs = transformers.PixtralImageProcessorPil(**rest)
    images = [picture(*shape) for shape in SHAPES]
    expected = theirs(images, return_tensors="np")
    patches, grids = ours(images)
    start = 0
    for shape, grid, pixels, size in zip(SHAPES, grids, *expected.values()):
        assert [edge * side for edge in grid] == [*size]
        assert ours.config.resized(*shape) == tuple(size)
        rows, columns = grid
        blocks = patches[start : start + rows * columns].reshape(
            rows // merge, columns // merge, merge, merge, 3, side, side
        )
        whole = blocks.transpose(4, 0, 2, 5, 1, 3, 6).reshape(3, *size)
        np.testing.assert_allclose(whole, pixels[:, : size[0], : size[1]], atol=1e-5, rtol=1e-6)
        start += rows * columns
    assert from_hf(to_hf(ours.config), to_hf_together(ours.config)) == ours.config


@pytest.mark.parametrize(
    ("steps", "beside", "part"),
    [
        ({"size": {"longest_edge": 10**5}}, {}, "64,000,000 pixels"),
        ({"size": {"longest_edge": 0}}, {}, "most_height"),
        ({"resample": 9}, {}, "resample"),
        ({"image_mean": [0.5]}, {}, "mean"),
        ({}, {"patch_size": "two"}, "patch_size"),
        ({}, {"spatial_merge_size": 0}, "merge_size"),
        ({"some_switch": 3}, {}, "some_switch"),
        ({}, {"image_end_token": "</i>"}, "image_end_token"),
    ],
)
def test_what_is_not_implemented_is_refused(steps, beside, part):
    with pytest.raises(ModelError) as caught:
        from_hf(PIXTRAL | steps, beside)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)
