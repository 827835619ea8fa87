"""Pictures to pixels: equal to transformers' processors, and limits on what is decoded."""

import io
import json
import struct
import zlib

import numpy as np
import pytest

from ziggurat.core.errors import DataError, ModelError
from ziggurat.models import image_processor
from ziggurat.models.image_processor import ImageProcessor, decoded, from_hf, to_hf

Image = pytest.importorskip("PIL.Image")

VIT = {"image_processor_type": "ViTImageProcessor"}
SMALL = {"size": {"height": 20, "width": 30}}
CASES = {
    "vit": (VIT | SMALL, "ViTImageProcessorPil"),
    "vit-fast-bicubic": (
        VIT | SMALL | {"image_processor_type": "ViTImageProcessorFast", "resample": 3},
        "ViTImageProcessorPil",
    ),
    "no-resize": (VIT | {"do_resize": False, "do_normalize": False}, "ViTImageProcessorPil"),
    "no-rescale": (VIT | SMALL | {"do_rescale": False}, "ViTImageProcessorPil"),
    "siglip": (
        {"image_processor_type": "SiglipImageProcessor", **SMALL, "image_mean": [0.4, 0.5, 0.6]},
        "SiglipImageProcessorPil",
    ),
    "clip": (
        {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 24},
         "crop_size": {"height": 20, "width": 20}},
        "CLIPImageProcessorPil",
    ),
    "clip-crop-beyond": (
        {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 11},
         "crop_size": {"height": 15, "width": 20}},
        "CLIPImageProcessorPil",
    ),
    "clip-2021": (
        {"feature_extractor_type": "CLIPFeatureExtractor", "size": 24, "crop_size": 20,
         "resample": 3, "do_resize": True},
        "CLIPImageProcessorPil",
    ),
    "dinov2": (
        {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 26},
         "crop_size": {"height": 24, "width": 24}, "image_std": [0.2, 0.3, 0.4]},
        "BitImageProcessorPil",
    ),
    "llava": (
        {"image_processor_type": "LlavaImageProcessor", "size": {"shortest_edge": 24},
         "crop_size": {"height": 24, "width": 24}, "do_pad": False},
        "LlavaImageProcessorPil",
    ),
    "gemma3": (
        {"image_processor_type": "Gemma3ImageProcessor", "size": {"height": 20, "width": 20},
         "do_pan_and_scan": None, "image_seq_length": 4, "do_convert_rgb": None},
        "Gemma3ImageProcessorPil",
    ),
}  # fmt: skip


def picture(height=37, width=53, seed=0):
    draw = np.random.default_rng(seed)
    coarse = draw.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), np.uint8)
    return Image.fromarray(np.kron(coarse, np.ones((4, 4, 1), np.uint8))[:height, :width])


def file_of(image, kind="PNG"):
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


DINOV3 = {"image_processor_type": "DINOv3ViTImageProcessorFast", "default_to_square": True}


@pytest.mark.parity
@pytest.mark.parametrize("resample", [2, 3])
def test_pixels_of_dinov3_are_rescaled_before_they_are_resized(resample):
    """transformers' own class needs torchvision, which resizes by PyTorch's antialiased
    interpolation of floats; tolerance 1e-5 (4e-6 seen) for values of up to 3, summed in another
    order."""
    torch = pytest.importorskip("torch")
    ours = ImageProcessor(from_hf(DINOV3 | SMALL | {"resample": resample}))
    for shape in ((37, 53), (90, 31), (20, 30)):
        given = torch.from_numpy(np.asarray(picture(*shape)).transpose(2, 0, 1).copy())
        resized = torch.nn.functional.interpolate(
            given[None] * (1 / 255),
            size=(20, 30),
            mode={2: "bilinear", 3: "bicubic"}[resample],
            align_corners=False,
            antialias=True,
        )
        mean, std = (torch.tensor(x)[None, :, None, None] for x in image_processor._IMAGENET)
        expected = ((resized - mean) / std).numpy()
        np.testing.assert_allclose(ours([picture(*shape)]), expected, atol=1e-5, rtol=0)
    again = from_hf(to_hf(ours.config))
    assert again == ours.config


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES)
def test_pixels_equal_transformers(case):
    """Tolerance 1e-5: the same bytes from Pillow, rescaled and normalised in float32."""
    transformers = pytest.importorskip("transformers")
    values, name = CASES[case]
    rest = {k: v for k, v in values.items() if not k.endswith("_type")}
    theirs = getattr(transformers, name)(**rest)
    ours = ImageProcessor(from_hf(values))
    for image in (picture(), picture(53, 37), picture(40, 40)):
        expected = np.asarray(theirs(image, return_tensors="np")["pixel_values"])
        np.testing.assert_allclose(ours([image]), expected, atol=1e-5, rtol=0)
    for shape in ((37, 53), (90, 31)):
        again = ImageProcessor(from_hf(to_hf(ours.config)))
        image = picture(*shape)
        np.testing.assert_array_equal(again([image]), ours([image]))


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(mode):
    image = Image.new("I;16", (8, 8), 3) if mode == "I;16" else picture(8, 8).convert(mode)
    kind = "TIFF" if mode == "CMYK" else "PNG"
    if kind == "TIFF":
        assert decoded(image).mode == "RGB"
        return
    found = decoded(file_of(image))
    assert (found.mode, found.size) == ("RGB", (8, 8))


def test_a_batch_needs_one_size(tmp_path):
    keeps = ImageProcessor(from_hf(VIT | {"do_resize": False}))
    assert keeps.config.size is None
    assert keeps([picture(5, 6), picture(5, 6, 1)]).shape == (2, 3, 5, 6)
    with pytest.raises(DataError, match="5 x 6, 6 x 5"):
        keeps([picture(5, 6), picture(6, 5)])
    (tmp_path / "a.png").write_bytes(file_of(picture(5, 6)))
    np.testing.assert_array_equal(keeps([tmp_path / "a.png"]), keeps([picture(5, 6)]))
    assert ImageProcessor(from_hf(VIT | SMALL))([]).shape == (0, 3, 20, 30)


def bomb(width, height):
    """A PNG whose header promises more pixels than its few bytes hold."""

    def chunk(name, body):
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "another file"),
        (b"GIF89a", "another file"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "another file"),
        (b"%PDF-1.7", "another file"),
        (bomb(9_000, 9_000), "at most 64,000,000 pixels"),
        (bomb(60_000, 60_000), "at most 64,000,000 pixels"),
        (bomb(2**31 - 1, 2**31 - 1), "pixel"),
        (bomb(100, 100), "damaged"),
        (file_of(picture())[:-200], "damaged"),
        (file_of(picture(), "JPEG")[:60], "another file"),
        (file_of(picture(), "TIFF"), "one of PNG, JPEG, WEBP, GIF, BMP"),
    ],
    ids=range(11),
)
def test_what_is_no_picture_or_too_large_is_refused_in_a_line(content, part):
    with pytest.raises(DataError) as caught:
        ImageProcessor(from_hf(VIT | SMALL))([content])
    assert "\n" not in str(caught.value)
    assert part in str(caught.value)


def test_files_have_a_largest_size(tmp_path, monkeypatch):
    monkeypatch.setattr(image_processor, "MOST_BYTES", 100)
    (tmp_path / "large.png").write_bytes(b"x" * 101)
    with pytest.raises(DataError, match="101 bytes; expected at most 100"):
        decoded(tmp_path / "large.png")
    with pytest.raises(DataError, match="101 bytes"):
        decoded(b"x" * 101)
    with pytest.raises(DataError, match="no such file"):
        decoded(tmp_path / "absent.png")


def test_a_thin_picture_does_not_become_a_wall():
    processor = ImageProcessor(from_hf({"image_processor_type": "CLIPImageProcessor"}))
    with pytest.raises(DataError, match="pixels after resizing"):
        processor([Image.new("RGB", (1, 40_000))])


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"image_processor_type": "PixtralImageProcessor"}, "PixtralImageProcessor"),
        ({"do_pad": True}, "do_pad"),
        ({"size": {"longest_edge": 9}}, "size"),
        ({"size": "big"}, "size"),
        ({"resample": 9}, "resample"),
        ({"image_mean": [0.5]}, "mean"),
        ({"crop_size": {"height": 0, "width": 3}, "do_center_crop": True}, "crop"),
        ({"some_switch": 3}, "some_switch"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_not_implemented_is_refused(tmp_path, change, part):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(VIT | change))
    with pytest.raises(ModelError) as caught:
        image_processor.read_processor(tmp_path)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_directory_without_a_processor(tmp_path):
    with pytest.raises(ModelError, match="the image processor's file"):
        image_processor.read_processor(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("[]")
    with pytest.raises(ModelError, match="a JSON object"):
        image_processor.read_processor(tmp_path)
