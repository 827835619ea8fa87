"""Pictures to the patches of Pixtral's tower: shrink to fit, round up to whole blocks of patches,
rescale, normalise, cut.

Steps and defaults are those of transformers' ``PixtralImageProcessor`` and ``PixtralProcessor``;
the pixels are equal to theirs.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ziggurat.core import config
from ziggurat.core.errors import DataError, ModelError
from ziggurat.models.conversion.hf_config import checked
from ziggurat.models.image_places import Grid
from ziggurat.models.image_processor import (
    BICUBIC,
    FILE,
    HARMLESS,
    MOST_PIXELS,
    TOGETHER,
    read_file,
)
from ziggurat.models.patch_processor import check_steps, colours, hf_colours

CLASS = "PixtralImageProcessor"
BREAK, END = "[IMG_BREAK]", "[IMG_END]"
"""Texts of the tokens behind each line of an image, and behind the last one."""


@config.node
class PixtralProcessorConfig:
    """Steps from a picture to patches."""

    most_height: int = 1024
    """Height in pixels above which pictures are made smaller, their shape kept."""
    most_width: int = 1024
    """Width in pixels above which they are."""
    patch_size: int = 16
    """Height and width in pixels of a patch."""
    merge_size: int = 1
    """Patches along each side of a block that becomes one token."""
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
        check_steps(self)
        for name in ("most_height", "most_width"):
            config.require(getattr(self, name) >= 1, name, getattr(self, name), "a number >= 1")
        pixels = self.most_height * self.most_width
        config.require(pixels <= MOST_PIXELS, "most_height", pixels, f"<= {MOST_PIXELS:,} pixels")

    @property
    def frames(self) -> int:
        """Times that a picture stands along time, which the tower's patches do not have."""
        return 1

    @property
    def factor(self) -> int:
        """Height and width in pixels of a block of patches."""
        return self.patch_size * self.merge_size

    def grid(self, height: int, width: int) -> Grid:
        """Rows and columns of patches of a picture of this size.

        Raises:
            DataError: see :meth:`resized`.
        """
        high, wide = self.resized(height, width)
        return high // self.patch_size, wide // self.patch_size

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in pixels after resizing: the shape kept within the limits, then each
        side rounded up to a multiple of :attr:`factor`.

        Raises:
            DataError: a side shrinks to nothing, or nothing is resized and a side is no multiple of
                a block's.

        >>> PixtralProcessorConfig().resized(300, 2048)
        (160, 1024)
        """
        factor, found = self.factor, f"{height:,} x {width:,} pixels"
        if not self.resize:
            if height % factor or width % factor or min(height, width) < 1:
                raise DataError("picture", found=found, expected=f"multiples of {factor}")
            return height, width
        ratio = max(height / self.most_height, width / self.most_width)
        if ratio > 1:
            height, width = math.floor(height / ratio), math.floor(width / ratio)
        if min(height, width) < 1:
            expected = (
                f"a shape of at least one pixel within {self.most_height} x {self.most_width}"
            )
            raise DataError("picture", found=found, expected=expected)
        return math.ceil(height / factor) * factor, math.ceil(width / factor) * factor


_HONOURED = {
    "do_normalize", "do_rescale", "do_resize", "image_mean", "image_std", "patch_size", "resample",
    "rescale_factor", "size",
}  # fmt: skip
_PADS = "do_pad"
"""Whether pictures of a batch are padded to one size, which the tower takes off again."""
_WRITTEN = {"image_token": "[IMG]", "image_break_token": BREAK, "image_end_token": END}
_BESIDE = {"patch_size": "patch_size", "merge_size": "spatial_merge_size"}
"""Settings of ``processor_config.json``, which overrule the image processor's own."""


def read_processor(path: Path) -> PixtralProcessorConfig:
    """The processor that a directory describes by ``preprocessor_config.json`` and
    ``processor_config.json``.

    Raises:
        ModelError: there is none, it is of another class, or it sets a key that is not implemented.
    """
    file = path / TOGETHER
    steps = read_file(path)
    if not file.is_file():
        return from_hf(steps, {})
    try:
        beside = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(str(file), found=error, expected="valid JSON") from None
    if not isinstance(beside, dict):
        raise ModelError(str(file), found=type(beside).__name__, expected="a JSON object")
    return from_hf(steps, beside)


def from_hf(values: Mapping[str, Any], beside: Mapping[str, Any]) -> PixtralProcessorConfig:
    """Contents of both files to config.

    Args:
        values: ``preprocessor_config.json``.
        beside: ``processor_config.json``; empty where there is none.

    Raises:
        ModelError: another class, or a key that is not implemented.
    """
    named = str(values.get("image_processor_type") or values.get("feature_extractor_type"))
    if named.removesuffix("Fast").removesuffix("Pil") != CLASS:
        raise ModelError(f"{FILE}: image_processor_type", found=named, expected=CLASS)
    for key, value in values.items():
        if key not in _HONOURED | HARMLESS | {_PADS} and value not in (None, False):
            raise ModelError(f"{FILE}: {key}", found=repr(value), expected="absent")
    for key, value in beside.items():
        read = key in (*_BESIDE.values(), "image_processor", "processor_class", "auto_map")
        if not read and value != _WRITTEN.get(key) and value is not None:
            expected = repr(_WRITTEN[key]) if key in _WRITTEN else "absent"
            raise ModelError(f"{TOGETHER}: {key}", found=repr(value), expected=expected)
    given = {k: v for k, v in values.items() if v is not None}
    high, wide = _sides(given.get("size", {"longest_edge": 1024}))
    settings = {"most_height": high, "most_width": wide, "resize": given.get("do_resize", True)}
    settings |= {"resample": given["resample"]} if "resample" in given else {}
    for ours, theirs in _BESIDE.items():
        found = beside.get(theirs)
        settings |= {} if found is None else {ours: found}
    return checked(PixtralProcessorConfig, settings | colours(given), FILE)


def _sides(size: Any) -> tuple[Any, Any]:
    """Largest height and width of ``size``."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, Mapping) and size.get("longest_edge") is not None:
        return size["longest_edge"], size["longest_edge"]
    if isinstance(size, Mapping) and {"height", "width"} <= size.keys():
        return size["height"], size["width"]
    raise ModelError(
        f"{FILE}: size", found=repr(size), expected="longest_edge, or height and width"
    )


def to_hf(settings: PixtralProcessorConfig) -> dict[str, Any]:
    """Config to the content of ``preprocessor_config.json``."""
    c = settings
    size = {"height": c.most_height, "width": c.most_width}
    return {
        "image_processor_type": CLASS,
        "do_convert_rgb": True,
        "do_resize": c.resize,
        "size": {"longest_edge": c.most_width} if c.most_height == c.most_width else size,
        "patch_size": {"height": c.factor, "width": c.factor},
        "resample": c.resample,
        **hf_colours(c),
    }


def to_hf_together(settings: PixtralProcessorConfig) -> dict[str, Any]:
    """Config to the content of ``processor_config.json``."""
    beside = {theirs: getattr(settings, ours) for ours, theirs in _BESIDE.items()}
    return {"processor_class": "PixtralProcessor", **_WRITTEN, **beside}
