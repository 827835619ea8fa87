"""Where labelled images come from: arrays, folders of files by class, a data set by name.

>>> store = open_images(Digits())
>>> store.count, store.shape, store.classes[:3], store.read(np.array([0, 1])).shape
(1797, (8, 8, 1), ('0', '1', '2'), (2, 8, 8, 1))
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import xxhash
from jaxtyping import Float, Int
from pydantic import Discriminator

from ziggurat.core import config
from ziggurat.core.errors import DataError, EnvironmentError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""Files that count as images in a folder."""
DIGITS_LEVELS = 16.0
"""Brightest value of scikit-learn's digits."""


@config.node
class Digits:
    """Data source: the 1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn."""

    kind: Literal["digits"] = "digits"


@config.node
class ImageArrays:
    """An ``.npz`` file with images ``[n, rows, columns]`` or ``[n, rows, columns, channels]``, of
    bytes (0 to 255) or floats (0 to 1), and whole numbers as labels."""

    kind: Literal["arrays"] = "arrays"
    path: Path
    """The file."""
    images: str = "images"
    """Name of the array of images."""
    labels: str = "labels"
    """Name of the array of labels."""


@config.node
class ImageFolder:
    """A directory with a subdirectory for each class; files are read when their turn comes."""

    kind: Literal["folder"] = "folder"
    path: Path
    """The directory."""
    image_size: int
    """Rows and columns: images are scaled so that the shorter side has as many, and cropped."""
    channels: Literal[1, 3] = 3
    """1: grey; 3: colours."""

    def __post_init__(self):
        config.require(self.image_size >= 1, "image_size", self.image_size, "a number >= 1")


ImageSource = Annotated[Digits | ImageArrays | ImageFolder, Discriminator("kind")]


@dataclasses.dataclass(frozen=True)
class ImageStore:
    """Labelled images, of one shape, read by their numbers."""

    shape: tuple[int, int, int]
    """Rows, columns and channels."""
    labels: Int[np.ndarray, "n"]
    classes: tuple[str, ...]
    """Names of the classes, by label."""
    content: str
    """Digest of what decides the images."""
    identities: Sequence[str]
    """Keys that tell images apart, independent of their numbers."""
    read: Callable[[Any], Float[np.ndarray, "m i j o"]]
    """From numbers to images of -1 to 1."""

    @property
    def count(self) -> int:
        return len(self.labels)


def open_images(source: Digits | ImageArrays | ImageFolder) -> ImageStore:
    """The images of a source.

    Raises:
        DataError: the file or directory is missing, empty or of another form.
        EnvironmentError: a package that reads them is missing.
    """
    if isinstance(source, Digits):
        return _digits()
    return _arrays(source) if isinstance(source, ImageArrays) else _folder(source)


def _digits() -> ImageStore:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise EnvironmentError(
            'data.source kind = "digits"',
            found="no scikit-learn",
            expected="it, since the digits come with it",
            fix="pip install scikit-learn",
        ) from None
    images, labels = map(np.asarray, load_digits(return_X_y=True))
    scaled = images.reshape(-1, 8, 8, 1).astype(np.float32) / DIGITS_LEVELS
    return _in_memory(scaled, labels)


def _arrays(source: ImageArrays) -> ImageStore:
    what = f"images {source.path}"
    try:
        with np.load(source.path, allow_pickle=False) as file:
            images, labels = file[source.images], file[source.labels]
    except FileNotFoundError:
        raise DataError(what, found="no such file", expected="an .npz file") from None
    except (OSError, ValueError, KeyError) as error:
        names = f"an .npz file with {source.images} and {source.labels}"
        raise DataError(what, found=error, expected=names) from None
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or labels.shape != images.shape[:1] or not len(labels):
        raise DataError(
            what,
            found=f"{source.images} {list(images.shape)}, {source.labels} {list(labels.shape)}",
            expected="[n, rows, columns, channels] and [n], one or more",
        )
    if labels.dtype.kind not in "iu" or labels.min() < 0:
        raise DataError(what, found=f"labels of {labels.dtype}", expected="whole numbers >= 0")
    if images.dtype == np.uint8:
        images = images.astype(np.float32) / 255.0
    elif images.dtype.kind != "f" or images.min() < 0 or images.max() > 1:
        raise DataError(
            what,
            found=f"{images.dtype} from {images.min()} to {images.max()}",
            expected="bytes, or floats of 0 to 1",
        )
    return _in_memory(images.astype(np.float32), labels)


def _in_memory(images: np.ndarray, labels: np.ndarray) -> ImageStore:
    scaled = images * 2 - 1
    labels = labels.astype(np.int64)
    digest = xxhash.xxh3_64(np.ascontiguousarray(scaled).tobytes())
    digest.update(labels.tobytes())
    return ImageStore(
        shape=(int(images.shape[1]), int(images.shape[2]), int(images.shape[3])),
        labels=labels,
        classes=tuple(map(str, range(int(labels.max()) + 1))),
        content=digest.hexdigest(),
        identities=[xxhash.xxh3_64_hexdigest(image.tobytes()) for image in scaled],
        read=lambda numbers: scaled[numbers],
    )


def _folder(source: ImageFolder) -> ImageStore:
    what = f"images {source.path}"
    if not source.path.is_dir():
        raise DataError(what, found="no such directory", expected="a directory for each class")
    classes = sorted(entry.name for entry in source.path.iterdir() if entry.is_dir())
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(
            path for path in (source.path / name).rglob("*") if path.suffix.lower() in SUFFIXES
        )
        if not found:
            raise DataError(
                f"{what}: class {name}", found="no images", expected=f"files {', '.join(SUFFIXES)}"
            )
        files += found
        labels += [label] * len(found)
    if not files:
        raise DataError(what, found="no directories", expected="a directory for each class")
    names = [path.relative_to(source.path).as_posix() for path in files]
    sizes = [path.stat().st_size for path in files]
    text = repr((names, sizes, source.image_size, source.channels))
    side = source.image_size
    return ImageStore(
        shape=(side, side, source.channels),
        labels=np.array(labels, np.int64),
        classes=tuple(classes),
        content=xxhash.xxh3_64(text.encode()).hexdigest(),
        identities=names,
        read=functools.partial(_read_files, files, side, source.channels),
    )


def _read_files(
    files: Sequence[Path], side: int, channels: int, numbers: np.ndarray
) -> Float[np.ndarray, "m i j o"]:
    images = [_read_file(files[number], side, channels) for number in numbers.tolist()]
    return np.stack(images) if images else np.zeros((0, side, side, channels), np.float32)


def _read_file(path: Path, side: int, channels: int) -> np.ndarray:
    image_module = pillow()
    try:
        with image_module.open(path) as opened:
            image = opened.convert("RGB" if channels == 3 else "L")
    except OSError as error:
        raise DataError(f"image {path}", found=error, expected="a readable image") from None
    scale = side / min(image.size)
    size = tuple(max(side, round(length * scale)) for length in image.size)
    image = image.resize(size, image_module.Resampling.LANCZOS, reducing_gap=3.0)
    left, top = ((length - side) // 2 for length in size)
    image = image.crop((left, top, left + side, top + side))
    pixels = np.asarray(image, np.float32).reshape(side, side, channels)
    return pixels / 127.5 - 1


def pillow() -> Any:
    """Import ``PIL.Image``.

    Raises:
        EnvironmentError: Pillow is missing.
    """
    try:
        from PIL import Image
    except ImportError:
        raise EnvironmentError(
            "image files", found="no Pillow", expected="it, to read and write them",
            fix="pip install pillow",
        ) from None  # fmt: skip
    return Image
