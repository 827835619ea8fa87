"""Images of a prompt inside the engine: their embeddings, where they stand, and which they are.

The tokens of an image hold one id for all images, so blocks of the cache are told apart by the
images' digests too. Where an image's tokens see one another, a step takes all of them or none.

A token has its number in the sequence, by which masks and the cache go, and where the model's
positions have several axes a position for the rotary embedding. That one follows from the tokens
and the images' sizes before it, so that blocks of equal digests hold equal keys. Behind the last
image, generated tokens included, the two differ by a constant.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ziggurat.models.vision_language_model import (
    ImageFeatures,
    ImageSpec,
    PreparedImage,
    VisionLanguageConfig,
    image_spans,
)
from ziggurat.serve.errors import RequestError


class ImageInputs(NamedTuple):
    """Additions of images to a step of one row, of ``width`` tokens with padding."""

    embeddings: Any
    """``[1, width, d]``; those without a place mean nothing."""
    places: Any
    """Tokens of the step in whose places they stand ``[1, width]``; ``width``: none."""
    last_seen: Any
    """Last position that each token sees ``[1, width]``; ``None``: its own."""
    rotary_positions: Any
    """Positions of all tokens by axis ``[1, width, a]``; ``None``: one axis, their numbers."""
    by_layer: Any
    """Embeddings that are added behind the first ``k`` layers ``[k, 1, width, d]``; ``None``:
    none."""

    @classmethod
    def like(cls, spec: ImageSpec, width: int, channels: int, dtype: Any) -> "ImageInputs":
        """Zeros of the shapes and types that a model's steps take.

        Args:
            spec: the model's.
            width: tokens of the step.
            channels: width of the model.
            dtype: of computing.
        """
        axes, layers = spec.position_axes, spec.added_layers
        return cls(
            embeddings=np.zeros((1, width, channels), dtype),
            places=np.zeros((1, width), np.int32),
            last_seen=np.zeros((1, width), np.int32) if spec.mutual else None,
            rotary_positions=np.zeros((1, width, axes), np.int32) if axes > 1 else None,
            by_layer=np.zeros((layers, 1, width, channels), dtype) if layers else None,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class PromptImages:
    """Embeddings of a prompt's images with their places."""

    embeddings: Float[np.ndarray, "n d"]
    """Embeddings of all images, one after another."""
    places: Int[np.ndarray, "n"]
    """Number of the token in whose place each stands, rising."""
    runs: tuple[tuple[int, int, bytes], ...]
    """First token of each image, the one behind it, and the image's digest; images that see one
    another are one run."""
    spec: ImageSpec
    """Additions of images to the decoder's inputs."""
    rotary_positions: Int[np.ndarray, "t a"] | None = None
    """Positions of the prompt's tokens by axis; ``None``: they have one axis, and count the
    tokens."""
    offset: int = 0
    """How much later than their numbers the tokens behind the prompt stand on all axes; below 0:
    earlier."""
    by_layer: Float[np.ndarray, "k n d"] | None = None
    """Embeddings that are added behind the first ``k`` layers of the decoder."""

    @classmethod
    def of(
        cls,
        tokens: Sequence[int],
        images: Sequence[PreparedImage],
        features: ImageFeatures,
        config: VisionLanguageConfig,
    ) -> "PromptImages":
        """Find the images' places.

        Args:
            tokens: the prompt.
            images: in order.
            features: of all of them, one after another.
            config: the model's: which token stands for an image's, and what images add.

        Raises:
            DataError: there are more or fewer image tokens than the images have.
            RequestError: the prompt ends with an image.
        """
        spec = config.image_spec
        spans = image_spans(np.asarray(tokens), images, config.image_token)
        if spans and spans[-1].stop == len(tokens):
            raise RequestError(
                "prompt", found="an image at its end", expected="text behind the last image"
            )
        runs: list[tuple[int, int, bytes]] = []
        for span, image in zip(spans, images):
            digest = image_digest(image)
            if spec.mutual and runs and runs[-1][1] == span.start:
                begin, _, before = runs.pop()
                runs.append((begin, span.stop, hashlib.sha256(before + digest).digest()))
            else:
                runs.append((span.start, span.stop, digest))
        found = [span.start + image.offsets for span, image in zip(spans, images)]
        places = np.concatenate(found).astype(np.int32)
        rotary, offset = config.rotary_positions(spans, images, len(tokens)) or (None, 0)
        added = features.by_layer
        return cls(
            np.asarray(features.embeddings, np.float32),
            places,
            tuple(runs),
            spec,
            rotary,
            offset,
            None if added is None else np.asarray(added, np.float32),
        )

    @property
    def whole(self) -> int:
        """Most tokens that a step must take together."""
        return max(stop - start for start, stop, _ in self.runs) if self.spec.mutual else 1

    def cut(self, start: int, count: int) -> int:
        """Most of ``count`` tokens from ``start`` on that end within no run whose tokens see one
        another; 0: such a run begins or continues there, and does not fit."""
        if self.spec.mutual:
            for begin, stop, _ in self.runs:
                if begin < start + count < stop:
                    return max(begin - start, 0)
        return count

    def within(self, start: int, count: int) -> bool:
        """Whether one of ``count`` tokens from ``start`` on is an image's."""
        return any(begin < start + count and stop > start for begin, stop, _ in self.runs)

    def mark(self, start: int, stop: int) -> bytes:
        """Digests of the images with tokens from ``start`` to ``stop``, and where they begin."""
        here = [run for run in self.runs if run[0] < stop and run[1] > start]
        return b"".join((begin - start).to_bytes(8, "big", signed=True) + d for begin, _, d in here)

    def offset_at(self, token: int) -> int:
        """How much later than its number a token of text stands on all axes, and so do those behind
        it up to the next image."""
        if self.rotary_positions is None or token >= len(self.rotary_positions):
            return self.offset
        return int(self.rotary_positions[token, 0]) - token

    def arrays(self, start: int, count: int, width: int, dtype: Any) -> ImageInputs:
        """Additions of the images to a chunk.

        Args:
            start: the chunk's first token.
            count: its tokens.
            width: tokens with padding.
            dtype: of embeddings.
        """
        made = ImageInputs.like(self.spec, width, self.embeddings.shape[1], dtype)
        here = np.flatnonzero((self.places >= start) & (self.places < start + count))
        made.places[:] = width
        made.places[0, : len(here)] = self.places[here] - start
        made.embeddings[0, : len(here)] = self.embeddings[here]
        if self.by_layer is not None:
            made.by_layer[:, 0, : len(here)] = self.by_layer[:, here]
        numbers = start + np.minimum(np.arange(width), count - 1).astype(np.int32)
        if self.rotary_positions is not None:
            known = numbers < len(self.rotary_positions)
            made.rotary_positions[0] = (numbers + self.offset)[:, None]
            made.rotary_positions[0, known] = self.rotary_positions[numbers[known]]
        if self.spec.mutual:
            made.last_seen[0] = numbers
            for begin, stop, _ in self.runs:
                made.last_seen[0, max(begin - start, 0) : max(stop - start, 0)] = stop - 1
        return made


def image_digest(image: PreparedImage) -> bytes:
    """SHA-256 of what the tower reads."""
    facts = f"{image.pixels.shape} {image.pixels.dtype} {image.grid}".encode()
    return hashlib.sha256(facts + np.ascontiguousarray(image.pixels).tobytes()).digest()
