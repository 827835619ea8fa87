"""Pictures to the patches that a vision tower reads at their own sizes: resize to whole blocks of
patches, rescale, normalise, cut.

Steps and defaults are those of transformers' ``Qwen2VLImageProcessor``, which Qwen2-VL, Qwen2.5-VL
and Qwen3-VL share; the patches are equal to theirs.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from ziggurat.core import config
from ziggurat.core.errors import DataError, ModelError
from ziggurat.data.image_sources import pillow
from ziggurat.models.conversion.hf_config import checked
from ziggurat.models.image_places import Grid
from ziggurat.models.image_processor import (
    BICUBIC,
    FILE,
    HARMLESS,
    MOST_PIXELS,
    OPENAI,
    RESAMPLING,
    decoded,
)

if TYPE_CHECKING:
    from PIL import Image

CLASS = "Qwen2VLImageProcessor"
LARGEST_RATIO = 200
"""Most times that one side of a picture may be longer than the other."""


@runtime_checkable
class PatchSteps(Protocol):
    """Interface of the config node of a processor that cuts pictures into patches."""

    @property
    def patch_size(self) -> int:
        """Height and width in pixels of a patch."""
        ...

    @property
    def merge_size(self) -> int:
        """Patches along each side of a block that becomes one token."""
        ...

    @property
    def frames(self) -> int:
        """Times that a still picture is repeated along time."""
        ...

    @property
    def resample(self) -> int:
        """Pillow's number of the filter."""
        ...

    @property
    def scale(self) -> float:
        """Factor on the pixels' values; 1: none."""
        ...

    @property
    def mean(self) -> tuple[float, ...] | None:
        """Subtracted from each channel."""
        ...

    @property
    def std(self) -> tuple[float, ...] | None:
        """Divides each channel."""
        ...

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in pixels after resizing: multiples of a block's."""
        ...


def check_steps(steps: PatchSteps) -> None:
    """Refuse settings that no processor of patches can have.

    Raises:
        ConfigError: a size below 1, an unknown filter, or a mean without a deviation.
    """
    for name in ("patch_size", "merge_size", "frames"):
        config.require(getattr(steps, name) >= 1, name, getattr(steps, name), "a number >= 1")
    config.require(steps.resample in RESAMPLING, "resample", steps.resample, "0 to 5")
    for name in ("mean", "std"):
        value = getattr(steps, name)
        config.require(value is None or len(value) == 3, name, value, "a number per channel")
    pair = (steps.mean is None) == (steps.std is None)
    config.require(pair, "mean, std", [steps.mean, steps.std], "both or neither")


@config.node
class PatchProcessorConfig:
    """Steps from a picture to patches."""

    least_pixels: int = 56 * 56
    """Pixels below which pictures are enlarged."""
    most_pixels: int = 28 * 28 * 1280
    """Pixels above which pictures are made smaller."""
    patch_size: int = 14
    """Height and width in pixels of a patch."""
    merge_size: int = 2
    """Patches along each side of a block that becomes one token."""
    frames: int = 2
    """Times that a still picture is repeated along time."""
    resize: bool = True
    """Whether pictures are resized; otherwise their sides must be multiples of a block's."""
    resample: int = BICUBIC
    """Pillow's number of the filter."""
    scale: float = 1 / 255
    """Factor on the pixels' values; 1: none."""
    mean: tuple[float, ...] | None = None
    """Subtracted from each channel."""
    std: tuple[float, ...] | None = None
    """Divides each channel."""

    def __post_init__(self):
        config.require(self.least_pixels >= 1, "least_pixels", self.least_pixels, "a number >= 1")
        check_steps(self)
        least, most = max(self.least_pixels, self.factor**2), self.most_pixels
        fits = least <= most <= MOST_PIXELS
        expected = f"a number from {least:,} to {MOST_PIXELS:,}"
        config.require(fits, "most_pixels", self.most_pixels, expected)

    @property
    def factor(self) -> int:
        """Height and width in pixels of a block of patches."""
        return self.patch_size * self.merge_size

    def grid(self, height: int, width: int) -> Grid:
        """Rows and columns of patches of a picture of this size.

        Raises:
            DataError: one side is too many times longer than the other, or nothing is resized and a
                side is no multiple of a block's.
        """
        high, wide = self.resized(height, width)
        return high // self.patch_size, wide // self.patch_size

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in pixels after resizing: multiples of :attr:`factor`, within the
        limits, of nearly the same shape.

        Raises:
            DataError: see :meth:`grid`.

        >>> PatchProcessorConfig().resized(300, 10)
        (308, 28)
        """
        factor, found = self.factor, f"{height:,} x {width:,} pixels"
        if not self.resize:
            if height % factor or width % factor or not 0 < height * width <= self.most_pixels:
                expected = f"multiples of {factor}, at most {self.most_pixels:,} pixels"
                raise DataError("picture", found=found, expected=expected)
            return height, width
        if max(height, width) > LARGEST_RATIO * min(height, width):
            expected = f"one side at most {LARGEST_RATIO} times as long as the other"
            raise DataError("picture", found=found, expected=expected)
        high, wide = (round(side / factor) * factor for side in (height, width))
        if high * wide > self.most_pixels:
            shrink = math.sqrt(height * width / self.most_pixels)
            high, wide = (
                max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width)
            )
        elif high * wide < self.least_pixels:
            grow = math.sqrt(self.least_pixels / (height * width))
            high, wide = (math.ceil(side * grow / factor) * factor for side in (height, width))
        return high, wide


class PicturePatches(NamedTuple):
    """Patches of pictures, one after another."""

    patches: Float[np.ndarray, "n p"]
    """Normalised pixels by channel, frame, row, column; a block's patches follow one another."""
    grids: tuple[Grid, ...]
    """Rows and columns of patches of each picture."""


class PatchProcessor:
    """Turns pictures into patches, float32.

    Args:
        settings: the steps.
    """

    def __init__(self, settings: PatchSteps):
        self.config = settings

    def __call__(self, pictures: Sequence["bytes | Path | Image.Image"]) -> PicturePatches:
        """Patches of pictures.

        Args:
            pictures: files' contents, paths, or pictures of Pillow.

        Raises:
            DataError: a picture cannot be decoded, is too large, or too thin.
        """
        c = self.config
        made = [self._patches(decoded(picture, i)) for i, picture in enumerate(pictures)]
        inputs = 3 * c.frames * c.patch_size**2
        whole = np.concatenate([np.zeros((0, inputs), np.float32), *(p for p, _ in made)])
        return PicturePatches(whole, tuple(grid for _, grid in made))

    def _patches(self, picture: "Image.Image") -> tuple[Float[np.ndarray, "n p"], Grid]:
        c = self.config
        high, wide = c.resized(picture.height, picture.width)
        if (high, wide) != (picture.height, picture.width):
            filters = pillow().Resampling
            picture = picture.resize((wide, high), filters[RESAMPLING[c.resample]])
        pixels: Any = np.asarray(picture).transpose(2, 0, 1)
        pixels = (pixels * c.scale).astype(np.float32)
        if c.mean is not None and c.std is not None:
            mean, std = (np.array(x, np.float32)[:, None, None] for x in (c.mean, c.std))
            pixels = (pixels - mean) / std
        side, merge = c.patch_size, c.merge_size
        rows, columns = high // side, wide // side
        split = pixels.reshape(3, rows // merge, merge, side, columns // merge, merge, side)
        blocks = split.transpose(1, 4, 2, 5, 0, 3, 6)[:, :, :, :, :, None]
        moving = np.repeat(blocks, c.frames, axis=5)
        return moving.reshape(rows * columns, -1), (rows, columns)


_KEYS = {"patch_size": "patch_size", "merge_size": "merge_size", "frames": "temporal_patch_size",
         "resample": "resample"}  # fmt: skip
"""Settings that change nothing but their names."""
_HONOURED = {
    *_KEYS.values(), "do_normalize", "do_rescale", "do_resize", "image_mean", "image_std",
    "max_pixels", "min_pixels", "rescale_factor", "size",
}  # fmt: skip


def from_hf(values: Mapping[str, Any]) -> PatchProcessorConfig:
    """Content of ``preprocessor_config.json`` to config.

    Raises:
        ModelError: another class, or a key that is not implemented.
    """
    named = str(values.get("image_processor_type") or values.get("feature_extractor_type"))
    if named.removesuffix("Fast").removesuffix("Pil") != CLASS:
        raise ModelError(f"{FILE}: image_processor_type", found=named, expected=CLASS)
    for key, value in values.items():
        if key not in _HONOURED | HARMLESS and value not in (None, False):
            raise ModelError(f"{FILE}: {key}", found=repr(value), expected="absent")
    given = {k: v for k, v in values.items() if v is not None}
    settings = {ours: given[theirs] for ours, theirs in _KEYS.items() if theirs in given}
    size = given.get("size", {})
    if not isinstance(size, Mapping) or not size.keys() <= _SIZE.keys():
        expected = "shortest_edge and longest_edge, in pixels of the whole picture"
        raise ModelError(f"{FILE}: size", found=repr(size), expected=expected)
    for ours, key in (("least_pixels", "shortest_edge"), ("most_pixels", "longest_edge")):
        found = given.get(_SIZE[key], size.get(key))
        settings |= {} if found is None else {ours: found}
    settings["resize"] = given.get("do_resize", True)
    return checked(PatchProcessorConfig, settings | colours(given), FILE)


def colours(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of rescaling and normalising from those of a file that are not null, by whose
    defaults pictures are normalised as CLIP's."""
    scale = given.get("rescale_factor", 1 / 255) if given.get("do_rescale", True) else 1
    settings: dict[str, Any] = {"scale": scale}
    for key, usual in zip(("mean", "std"), OPENAI):
        value = given.get(f"image_{key}", usual)
        value = tuple(value) if isinstance(value, list | tuple) else (value,) * 3
        settings[key] = value if given.get("do_normalize", True) else None
    return settings


def hf_colours(steps: PatchSteps) -> dict[str, Any]:
    """The reverse of :func:`colours`."""
    values = {
        "do_rescale": steps.scale != 1,
        "rescale_factor": steps.scale,
        "do_normalize": steps.mean is not None,
    }
    if steps.mean is not None and steps.std is not None:
        values |= {"image_mean": list(steps.mean), "image_std": list(steps.std)}
    return values


_SIZE = {"shortest_edge": "min_pixels", "longest_edge": "max_pixels"}
"""Names of the limits in ``size``, and their older names beside it, which go first."""


def to_hf(settings: PatchProcessorConfig) -> dict[str, Any]:
    """Config to the content of ``preprocessor_config.json``."""
    c = settings
    return {
        "image_processor_type": CLASS,
        "do_convert_rgb": True,
        "do_resize": c.resize,
        "size": {"shortest_edge": c.least_pixels, "longest_edge": c.most_pixels},
        **hf_colours(c),
        **{theirs: getattr(c, ours) for ours, theirs in _KEYS.items()},
    }
