"""Pictures of requests to embeddings for the engine, within limits that hold for every client."""

import dataclasses
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ziggurat.core.errors import ConfigError, DataError
from ziggurat.models.image_processor import decoded
from ziggurat.models.loading.pretrained_vision_language import PretrainedVisionLanguage
from ziggurat.models.vision_language_model import ImageSpec, PreparedImage
from ziggurat.serve.errors import RequestError
from ziggurat.serve.llm.prompt_images import PromptImages

MEBI = 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """Limits on the pictures of one request, and where their files may lie."""

    root: Path | None = None
    """Directory of files that requests may name; ``None``: none may be named."""
    count: int = 8
    """Most pictures."""
    file_bytes: int = 16 * MEBI
    """Largest file of a picture."""
    pixels: int = 16 * 10**6
    """Most pixels of a picture, known from its header before it is decoded."""

    @classmethod
    def of(cls, root: str | None, count: int) -> "ImageLimits":
        """Limits by an operator's options.

        Raises:
            ConfigError: the directory is not there, or the number is below 1.
        """
        if root is not None and not Path(root).is_dir():
            raise ConfigError("--image-root", found=f"no directory {root}", expected="a directory")
        if count < 1:
            raise ConfigError("--max-images", found=count, expected="1 or more")
        return cls(root=None if root is None else Path(root), count=count)


class ImageReader:
    """Turns pictures into what the engine takes; one request after another, since a decoded picture
    may be large.

    Args:
        whole: a model that reads images.
        limits: on pictures of a request.
    """

    def __init__(self, whole: PretrainedVisionLanguage, limits: ImageLimits | None = None):
        self.whole, self.limits = whole, limits or ImageLimits()
        self._one = threading.Lock()

    @property
    def spec(self) -> ImageSpec:
        """Additions of images to the model's inputs, for the engine."""
        return self.whole.vision.config.image_spec

    def prepare(self, pictures: Sequence[Any]) -> list[PreparedImage]:
        """Pictures as the tower reads them.

        Args:
            pictures: files' contents, paths, or pictures of Pillow.

        Raises:
            RequestError: there are too many, or one is too large, damaged, or no picture.
        """
        limits = self.limits
        if len(pictures) > limits.count:
            raise _refused(f"{len(pictures)} images", f"at most {limits.count}")
        prepared: list[PreparedImage] = []
        with self._one:
            for number, picture in enumerate(pictures):
                if isinstance(picture, bytes) and len(picture) > limits.file_bytes:
                    raise _refused(f"{len(picture):,} bytes", f"at most {limits.file_bytes:,}")
                try:
                    opened = decoded(picture, number, most_pixels=limits.pixels)
                    prepared += self.whole.prepare([opened])
                except DataError as error:
                    raise RequestError(
                        error.what, found=error.found, expected=error.expected, fix=error.fix,
                        param="messages",
                    ) from None  # fmt: skip
        return prepared

    def expanded(self, text: str, images: Sequence[PreparedImage]) -> str:
        """A text in which each image's placeholder is what its tokens are written as.

        Raises:
            DataError: there are more or fewer placeholders than images.
        """
        return self.whole.expanded(text, images)

    def embedded(self, tokens: Sequence[int], images: Sequence[PreparedImage]) -> PromptImages:
        """The images of a prompt for the engine.

        Args:
            tokens: the prompt.
            images: in order; one at least.

        Raises:
            RequestError: the tokens are not those of the images.
        """
        config = self.whole.vision.config
        with self._one:
            features = self.whole.vision.tower.features(self.whole.tower, images)
        try:
            return PromptImages.of(tokens, images, features, config)
        except DataError as error:
            raise _refused(error.found, error.expected) from None


def _refused(found: object, expected: object) -> RequestError:
    return RequestError("images", found=found, expected=expected, param="messages")
