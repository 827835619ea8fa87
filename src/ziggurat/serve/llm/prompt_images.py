"""Images of a prompt inside the engine: their embeddings, where they stand, and which they are.

The tokens of an image hold one id for all images, so blocks of the cache are told apart by the
images' digests too. Where an image's tokens see one another, a step takes all of them or none.
"""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from ziggurat.models.vision_language_model import PreparedImage, image_spans
from ziggurat.serve.errors import RequestError


@dataclasses.dataclass(frozen=True, eq=False)
class PromptImages:
    """Embeddings of a prompt's images with their places."""

    embeddings: Float[np.ndarray, "n d"]
    """Of all images, one after another."""
    places: Int[np.ndarray, "n"]
    """Number of the token in whose place each stands, rising."""
    runs: tuple[tuple[int, int, bytes], ...]
    """First token of each image, the one behind it, and the image's digest; images that see one
    another are one run."""
    mutual: bool
    """Whether the tokens of a run see one another."""

    @classmethod
    def of(
        cls,
        tokens: Sequence[int],
        images: Sequence[PreparedImage],
        embeddings: Float[np.ndarray, "n d"],
        *,
        image_token: int,
        mutual: bool,
    ) -> "PromptImages":
        """Find the images' places.

        Args:
            tokens: the prompt.
            images: in order.
            embeddings: of all of them, one after another.
            image_token: id that stands for a token of an image.
            mutual: whether the tokens of an image see one another.

        Raises:
            DataError: there are more or fewer image tokens than the images have.
            RequestError: the prompt ends with an image.
        """
        spans = image_spans(np.asarray(tokens), images, image_token)
        if spans and spans[-1].stop == len(tokens):
            raise RequestError(
                "prompt", found="an image at its end", expected="text behind the last image"
            )
        runs: list[tuple[int, int, bytes]] = []
        for span, image in zip(spans, images):
            digest = image_digest(image)
            if mutual and runs and runs[-1][1] == span.start:
                begin, _, before = runs.pop()
                runs.append((begin, span.stop, hashlib.sha256(before + digest).digest()))
            else:
                runs.append((span.start, span.stop, digest))
        places = np.concatenate([np.r_[span] for span in spans]).astype(np.int32)
        return cls(embeddings, places, tuple(runs), mutual)

    @property
    def whole(self) -> int:
        """Most tokens that a step must take together."""
        return max(stop - start for start, stop, _ in self.runs) if self.mutual else 1

    def cut(self, start: int, count: int) -> int:
        """Most of ``count`` tokens from ``start`` on that end within no run whose tokens see one
        another; 0: such a run begins or continues there, and does not fit."""
        if self.mutual:
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

    def arrays(
        self, start: int, count: int, width: int
    ) -> tuple[Float[np.ndarray, "1 t d"], Int[np.ndarray, "1 t"], Int[np.ndarray, "1 t"]]:
        """Embeddings of a chunk, their places in it, and the last position each token sees.

        Args:
            start: the chunk's first token.
            count: its tokens.
            width: tokens with padding.
        """
        here = np.flatnonzero((self.places >= start) & (self.places < start + count))
        embeddings = np.zeros((1, width, self.embeddings.shape[1]), self.embeddings.dtype)
        places = np.full((1, width), width, np.int32)
        embeddings[0, : len(here)], places[0, : len(here)] = (
            self.embeddings[here],
            self.places[here] - start,
        )
        last = np.minimum(np.arange(width), count - 1).astype(np.int32) + start
        if self.mutual:
            for begin, stop, _ in self.runs:
                last[max(begin - start, 0) : max(stop - start, 0)] = stop - 1
        return embeddings, places, last[None]


def image_digest(image: PreparedImage) -> bytes:
    """SHA-256 of what the tower reads."""
    facts = f"{image.pixels.shape} {image.pixels.dtype} {image.grid}".encode()
    return hashlib.sha256(facts + np.ascontiguousarray(image.pixels).tobytes()).digest()
