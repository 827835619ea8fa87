"""Many small images as one picture.

>>> tiles = grid(np.zeros((3, 2, 2, 1)), columns=2, gap=1, at_least=2)
>>> tiles.shape, tiles.dtype, int(tiles[0, 0, 0])
((7, 7, 1), dtype('uint8'), 255)
"""

import base64
import io
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from ziggurat.core import atomic
from ziggurat.core.errors import ConfigError
from ziggurat.data.image_sources import pillow


def grid(
    images: Float[np.ndarray, "n i j o"], *, columns: int, gap: int = 2, at_least: int = 48
) -> UInt8[np.ndarray, "_ _ o"]:
    """Arrange images, of values 0 to 1, in rows of ``columns`` on white.

    Args:
        images: row by row; what is not a number is black.
        columns: images in a row.
        gap: pixels between images and around them.
        at_least: rows and columns that an image gets at least; small ones are enlarged by whole
            factors, pixel by pixel.
    """
    count, height, width, channels = images.shape
    factor = max(1, -(-at_least // max(height, width)))
    height, width = height * factor, width * factor
    rows = -(-count // columns)
    shape = (rows * (height + gap) + gap, columns * (width + gap) + gap, channels)
    picture = np.full(shape, 255, np.uint8)
    pixels = np.round(np.nan_to_num(images, nan=0.0).clip(0, 1) * 255).astype(np.uint8)
    pixels = pixels.repeat(factor, axis=1).repeat(factor, axis=2)
    for number, image in enumerate(pixels):
        row, column = divmod(number, columns)
        top, left = gap + row * (height + gap), gap + column * (width + gap)
        picture[top : top + height, left : left + width] = image
    return picture


def png(picture: UInt8[np.ndarray, "i j o"]) -> bytes:
    """A picture as a PNG file's content.

    Raises:
        ConfigError: it has neither one channel nor three (nor four, with opacity).
        EnvironmentError: Pillow is missing.
    """
    if picture.shape[-1] not in (1, 3, 4):
        raise ConfigError(
            "picture", found=f"{picture.shape[-1]} channels", expected="1, 3 or 4",
            fix="write the numbers instead (.npz)",
        )  # fmt: skip
    pixels = picture[..., 0] if picture.shape[-1] == 1 else picture
    content = io.BytesIO()
    pillow().fromarray(pixels).save(content, format="PNG", optimize=True)
    return content.getvalue()


def write_png(path: Path, picture: UInt8[np.ndarray, "i j o"]) -> None:
    """Write a picture, replacing an older one atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_file(path, png(picture))


def data_uri(content: bytes) -> str:
    """A PNG file's content as an address inside an HTML page."""
    return "data:image/png;base64," + base64.b64encode(content).decode()
