"""Pictures to the pixels that an image encoder reads: decode, resize, crop, rescale, normalise.

Steps and defaults are those of the image processors of transformers, by the class that
``preprocessor_config.json`` names; the pixels are equal to theirs.
"""

import dataclasses
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Num

from ziggurat.core import config
from ziggurat.core.errors import DataError, ModelError
from ziggurat.data.image_sources import pillow
from ziggurat.models.conversion.hf_config import checked

if TYPE_CHECKING:
    from PIL import Image

FILE = "preprocessor_config.json"
TOGETHER = "processor_config.json"
"""File of the settings of all of a model's processors."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""Formats that are decoded; of moving pictures the first one."""
MOST_BYTES = 64 * 2**20
"""Largest file of a picture."""
MOST_PIXELS = 64 * 10**6
"""Most pixels of a picture, known from its header before it is decoded."""
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
BILINEAR, BICUBIC = 2, 3
RESAMPLING = {0: "NEAREST", 1: "LANCZOS", 2: "BILINEAR", 3: "BICUBIC", 4: "BOX", 5: "HAMMING"}
"""Pillow's names of filters by their numbers, which files hold."""


@config.node
class ImageProcessorConfig:
    """Steps from a picture to pixels."""

    height: int | None = None
    """Height in pixels after resizing; ``None``: see ``shortest_edge``."""
    width: int | None = None
    """Width in pixels after resizing."""
    shortest_edge: int | None = None
    """Length of the shorter edge after resizing, the shape kept; without either no resizing."""
    resample: int = BILINEAR
    """Pillow's number of the filter."""
    crop: tuple[int, int] | None = None
    """Height and width of the middle that is cut out after resizing."""
    scale: float = 1 / 255
    """Factor on the pixels' values; 1: none."""
    mean: tuple[float, ...] | None = None
    """Subtracted from each channel."""
    std: tuple[float, ...] | None = None
    """Divides each channel."""
    rescaled_first: bool = False
    """Values are rescaled before the picture is resized, so that resizing rounds none (DINOv3)."""

    def __post_init__(self):
        for name in ("height", "width", "shortest_edge"):
            value = getattr(self, name)
            config.require(value is None or value >= 1, name, value, "a number >= 1")
        both = (self.height is None) == (self.width is None)
        config.require(both, "height, width", [self.height, self.width], "both or neither")
        one = self.height is None or self.shortest_edge is None
        config.require(one, "shortest_edge", self.shortest_edge, "none beside height and width")
        config.require(self.resample in RESAMPLING, "resample", self.resample, "0 to 5")
        whole = self.crop is None or all(edge >= 1 for edge in self.crop)
        config.require(whole, "crop", self.crop, "numbers >= 1")
        for name in ("mean", "std"):
            value = getattr(self, name)
            config.require(value is None or len(value) == 3, name, value, "a number per channel")
        pair = (self.mean is None) == (self.std is None)
        config.require(pair, "mean, std", [self.mean, self.std], "both or neither")

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the pixels; ``None``: they depend on the picture."""
        if self.crop is not None:
            return self.crop
        if self.height is None or self.width is None:
            return None
        return self.height, self.width


class ImageProcessor:
    """Turns pictures into pixels ``[b, c, h, w]``, float32.

    Args:
        settings: the steps.
    """

    def __init__(self, settings: ImageProcessorConfig):
        self.config = settings

    def __call__(
        self, pictures: Sequence["bytes | Path | Image.Image"]
    ) -> Float[np.ndarray, "b c h w"]:
        """Pixels of pictures.

        Args:
            pictures: files' contents, paths, or pictures of Pillow.

        Raises:
            DataError: a picture cannot be decoded, is too large, or has another size than the first
                where the steps leave sizes as they are.
        """
        made = [self._pixels(decoded(picture, i)) for i, picture in enumerate(pictures)]
        sizes = {pixels.shape for pixels in made}
        if len(sizes) > 1:
            found = ", ".join(f"{h} x {w}" for _, h, w in sorted(sizes))
            raise DataError(
                "pictures", found=found, expected="one size, as this processor keeps sizes"
            )
        return np.stack(made) if made else np.zeros((0, 3, *(self.config.size or (0, 0))), "f4")

    def _pixels(self, picture: "Image.Image") -> Float[np.ndarray, "c h w"]:
        c = self.config
        size = self._resized(picture.height, picture.width)
        if size is not None:
            pixels = resized(picture, size, c.resample, floats=c.rescaled_first)
        else:
            pixels = np.asarray(picture).transpose(2, 0, 1)
        if c.crop is not None:
            pixels = middle(pixels, *c.crop)
        pixels = (pixels * c.scale).astype(np.float32)
        if c.mean is not None and c.std is not None:
            mean, std = (np.array(x, np.float32)[:, None, None] for x in (c.mean, c.std))
            pixels = (pixels - mean) / std
        return pixels

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the pixels of a picture of this height and width."""
        return self.config.crop or self._resized(height, width) or (height, width)

    def _resized(self, height: int, width: int) -> tuple[int, int] | None:
        """Height and width after resizing."""
        c = self.config
        if c.height is not None and c.width is not None:
            return c.height, c.width
        if c.shortest_edge is None:
            return None
        short, long = min(height, width), max(height, width)
        longer = int(c.shortest_edge * long / short)
        if longer * c.shortest_edge > MOST_PIXELS:
            raise DataError(
                "picture",
                found=f"{height} x {width}, whose shape gives {longer:,} x {c.shortest_edge:,}",
                expected=f"at most {MOST_PIXELS:,} pixels after resizing",
            )
        return (longer, c.shortest_edge) if width <= height else (c.shortest_edge, longer)


def picture_size(path: Path) -> tuple[int, int]:
    """Height and width in pixels of a picture's file, from its header.

    Raises:
        DataError: it is too large, no picture, or of more than :data:`MOST_PIXELS`.
    """
    _check_size(f"picture {path}", path.stat().st_size)
    with _opened(f"picture {path}", path.read_bytes()) as picture:
        _check_pixels(f"picture {path}", picture, MOST_PIXELS)
        return picture.height, picture.width


def _check_pixels(what: str, picture: "Image.Image", most: int) -> None:
    if picture.width * picture.height > most:
        raise DataError(
            what,
            found=f"{picture.height:,} x {picture.width:,} pixels",
            expected=f"at most {most:,} pixels",
            fix="make it smaller",
        )


def decoded(
    picture: "bytes | Path | Image.Image", number: int = 0, *, most_pixels: int = MOST_PIXELS
) -> "Image.Image":
    """A picture in RGB.

    Args:
        picture: a file's content, its path, or a picture of Pillow.
        number: its place among others, for errors.
        most_pixels: most pixels of it.

    Raises:
        DataError: the file is too large, no picture of :data:`FORMATS`, damaged, or of more than
            ``most_pixels`` pixels; the header tells, before anything is decoded.
        EnvironmentError: Pillow is not installed.
    """
    what = f"picture {picture}" if isinstance(picture, Path) else f"picture {number}"
    if isinstance(picture, Path):
        if not picture.is_file():
            raise DataError(what, found="no such file", expected="a picture")
        _check_size(what, picture.stat().st_size)
        picture = picture.read_bytes()
    picture = _opened(what, picture) if isinstance(picture, bytes) else picture
    _check_pixels(what, picture, most_pixels)
    try:
        return picture.convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise DataError(what, found=f"a damaged file ({error})", expected="a whole one") from None


def _opened(what: str, content: bytes) -> "Image.Image":
    """A picture of which the header is read."""
    _check_size(what, len(content))
    image_module = pillow()
    try:
        return image_module.open(io.BytesIO(content), formats=FORMATS)
    except image_module.DecompressionBombError as error:
        raise DataError(what, found=error, expected=f"at most {MOST_PIXELS:,} pixels") from None
    except (OSError, SyntaxError, ValueError):  # of what is no picture: UnidentifiedImageError
        kinds = ", ".join(FORMATS)
        raise DataError(what, found="another file", expected=f"one of {kinds}") from None


def _check_size(what: str, size: int) -> None:
    if size > MOST_BYTES:
        raise DataError(
            what, found=f"{size:,} bytes", expected=f"at most {MOST_BYTES:,}", fix="make it smaller"
        )


def resized(
    picture: "Image.Image", size: tuple[int, int], resample: int, *, floats: bool
) -> Num[np.ndarray, "c h w"]:
    """Values of a picture after resizing.

    Args:
        picture: the picture, in RGB.
        size: height and width.
        resample: Pillow's number of the filter.
        floats: keep fractions of the 256 values, rather than round to them.
    """
    image_module = pillow()
    by = image_module.Resampling[RESAMPLING[resample]]
    wide_high = size[1], size[0]
    if not floats:
        return np.asarray(picture.resize(wide_high, by)).transpose(2, 0, 1)
    channels = (channel.convert("F").resize(wide_high, by) for channel in picture.split())
    return np.stack([np.asarray(channel) for channel in channels])


def middle(pixels: Num[np.ndarray, "c h w"], height: int, width: int) -> Num[np.ndarray, "c y x"]:
    """The middle of a picture; where it is smaller than that, zeros around it."""
    _, high, wide = pixels.shape
    top, left = (high - height) // 2, (wide - width) // 2
    if top >= 0 and left >= 0:
        return pixels[:, top : top + height, left : left + width]
    frame = np.zeros((len(pixels), max(height, high), max(width, wide)), pixels.dtype)
    above, before = (math.ceil((a - b) / 2) for a, b in zip(frame.shape[1:], (high, wide)))
    frame[:, above : above + high, before : before + wide] = pixels
    top, left = max(0, top + above), max(0, left + before)
    return frame[:, top : top + height, left : left + width]


@dataclasses.dataclass(frozen=True)
class _Class:
    """Defaults of one of transformers' processors."""

    size: Mapping[str, int]
    mean_std: tuple[tuple[float, ...], tuple[float, ...]]
    resample: int
    crop: int | None = None
    rescaled_first: bool = False


_CLASSES: Mapping[str, _Class] = {
    "ViTImageProcessor": _Class({"height": 224, "width": 224}, _HALF, BILINEAR),
    "SiglipImageProcessor": _Class({"height": 224, "width": 224}, _HALF, BICUBIC),
    "CLIPImageProcessor": _Class({"shortest_edge": 224}, OPENAI, BICUBIC, 224),
    "BitImageProcessor": _Class({"shortest_edge": 224}, OPENAI, BICUBIC, 224),
    "DINOv3ViTImageProcessor": _Class(
        {"height": 224, "width": 224}, _IMAGENET, BILINEAR, rescaled_first=True
    ),
    "LlavaImageProcessor": _Class({"shortest_edge": 224}, OPENAI, BICUBIC, 224),
    "Gemma3ImageProcessor": _Class({"height": 224, "width": 224}, _HALF, BILINEAR),
}
_HONOURED = {
    "crop_size", "do_center_crop", "do_normalize", "do_rescale", "do_resize", "image_mean",
    "image_std", "resample", "rescale_factor", "size",
}  # fmt: skip
HARMLESS = {
    "_processor_class", "_valid_processor_keys", "data_format", "device", "disable_grouping",
    "do_convert_rgb", "default_to_square", "feature_extractor_type", "image_processor_type",
    "image_seq_length", "input_data_format", "processor_class", "return_tensors",
}  # fmt: skip
"""Keys that change no pixel here: pictures are RGB, and channels stand first, in any case."""


def read_processor(path: Path) -> ImageProcessor:
    """The processor that a directory describes, see :func:`read_file`.

    Raises:
        ModelError: there is none, it is of a class that is not implemented, or it sets a key that
            is not.
    """
    return ImageProcessor(from_hf(read_file(path)))


def read_file(path: Path) -> dict[str, Any]:
    """Content of a directory's ``preprocessor_config.json``, or the same settings as
    ``image_processor`` in ``processor_config.json``, as transformers 5 writes them.

    Raises:
        ModelError: there is none, or it is no JSON object.
    """
    file = path / FILE
    if not file.is_file() and (path / TOGETHER).is_file():
        file = path / TOGETHER
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise ModelError(str(file), found="absent", expected="the image processor's file") from None
    except ValueError as error:
        raise ModelError(str(file), found=error, expected="valid JSON") from None
    if not isinstance(values, dict):
        raise ModelError(str(file), found=type(values).__name__, expected="a JSON object")
    if file.name == TOGETHER:
        values = values.get("image_processor")
        if not isinstance(values, dict):
            raise ModelError(f"{file}: image_processor", found=repr(values), expected="a table")
    return values


def from_hf(values: Mapping[str, Any]) -> ImageProcessorConfig:
    """Content of ``preprocessor_config.json`` to config.

    Raises:
        ModelError: a class or a key that is not implemented.
    """
    named = str(values.get("image_processor_type") or values.get("feature_extractor_type"))
    stem = named.removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor")
    if stem not in _CLASSES:
        raise ModelError(
            f"{FILE}: image_processor_type", found=named, expected=" or ".join(_CLASSES)
        )
    for key, value in values.items():
        if key not in _HONOURED | HARMLESS and value not in (None, False):
            raise ModelError(f"{FILE}: {key}", found=repr(value), expected="absent")
    usual, given = _CLASSES[stem], {k: v for k, v in values.items() if v is not None}
    settings: dict[str, Any] = {
        "resample": given.get("resample", usual.resample),
        "rescaled_first": usual.rescaled_first,
    }
    if given.get("do_resize", True):
        settings |= _size(given.get("size", dict(usual.size)), "shortest_edge" in usual.size)
    if given.get("do_center_crop", usual.crop is not None):
        square = {"height": usual.crop or 224, "width": usual.crop or 224}
        crop = _size(given.get("crop_size", square), shortest=False)
        settings["crop"] = (crop.get("height"), crop.get("width"))
    factor = given.get("rescale_factor", 1 / 255)
    settings["scale"] = factor if given.get("do_rescale", True) else 1.0
    if given.get("do_normalize", True):
        for key, usually in zip(("mean", "std"), usual.mean_std):
            value = given.get(f"image_{key}", usually)
            settings[key] = tuple(value) if isinstance(value, list | tuple) else (value,) * 3
    return checked(ImageProcessorConfig, settings, FILE)


def _size(value: Any, shortest: bool) -> dict[str, Any]:
    """``size`` in any of its forms: a table, a number, or height and width."""
    if isinstance(value, int) and not isinstance(value, bool):
        return {"shortest_edge": value} if shortest else {"height": value, "width": value}
    if isinstance(value, list | tuple) and len(value) == 2:
        return {"height": value[0], "width": value[1]}
    if isinstance(value, Mapping) and value.keys() in ({"height", "width"}, {"shortest_edge"}):
        return dict(value)
    raise ModelError(
        f"{FILE}: size", found=repr(value), expected="height and width, or shortest_edge"
    )


def to_hf(settings: ImageProcessorConfig) -> dict[str, Any]:
    """Config to the content of ``preprocessor_config.json``."""
    c = settings
    size: dict[str, Any] = {"height": c.height, "width": c.width}
    if c.height is None:
        size = {"shortest_edge": c.shortest_edge or 224}
    values: dict[str, Any] = {
        "image_processor_type": f"{'DINOv3ViT' if c.rescaled_first else 'CLIP'}ImageProcessor",
        "do_convert_rgb": True,
        "do_resize": c.height is not None or c.shortest_edge is not None,
        "size": size,
        "resample": c.resample,
        "do_center_crop": c.crop is not None,
        "do_rescale": c.scale != 1,
        "rescale_factor": c.scale,
        "do_normalize": c.mean is not None,
    }
    if c.crop is not None:
        values["crop_size"] = {"height": c.crop[0], "width": c.crop[1]}
    if c.mean is not None and c.std is not None:
        values |= {"image_mean": list(c.mean), "image_std": list(c.std)}
    return values
