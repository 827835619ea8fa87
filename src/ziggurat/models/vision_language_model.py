"""A language model that reads images: a tower gives embeddings, which stand in a prompt in the
place of image tokens.

A family's config says which token an image's tokens are, how a picture's place in a text is
written, and whether an image's tokens see one another. Its tower turns pictures, as the family's
processor prepares them, into embeddings; what a tower needs beside pixels (rows and columns of
patches) travels in :class:`PreparedImage`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ziggurat.core.errors import DataError
from ziggurat.mesh import Layout
from ziggurat.models.language_model import LanguageModel, ModelConfig
from ziggurat.models.traced_model import Params
from ziggurat.nn.attention_context import Causal
from ziggurat.nn.multimodal import MultimodalInputs
from ziggurat.nn.precision import Precision


@dataclasses.dataclass(frozen=True)
class PreparedImage:
    """A picture as a tower reads it."""

    pixels: Float[np.ndarray, "..."]
    """Pixels ``[c, h, w]``, or patches ``[n, p]`` of towers that read pictures at their own
    sizes."""
    tokens: int
    """Tokens of a prompt that it takes."""
    grid: tuple[int, int] | None = None
    """Rows and columns of patches, where they differ from picture to picture."""
    line: int | None = None
    """Image tokens of a line; one token of text stands behind each line but the last (Pixtral).
    ``None``: there are no lines."""

    @property
    def offsets(self) -> Int[np.ndarray, "n"]:
        """Places of its image tokens, counted from the first.

        >>> PreparedImage(blank(1), 4, line=2).offsets.tolist()
        [0, 1, 3, 4]
        """
        numbers = np.arange(self.tokens)
        return numbers if self.line is None else numbers + numbers // self.line


def blank(*shape: int) -> Float[np.ndarray, "..."]:
    """Zeros of a shape, which take no memory, for a picture of which only the size matters."""
    return np.broadcast_to(np.float32(0), shape)


@dataclasses.dataclass(frozen=True)
class ImageFeatures:
    """Embeddings of images, one image after another."""

    embeddings: Float[Array, "n d"]
    """At the language model's width."""
    by_layer: Float[Array, "k n d"] | None = None
    """Embeddings that are added behind each of the decoder's first ``k`` layers."""


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """Additions of images to a decoder's inputs, for whoever lays these out."""

    mutual: bool = False
    """Whether the tokens of an image see one another, rather than earlier ones alone."""
    position_axes: int = 1
    """Axes of a token's position for the rotary embedding. With more than one, text behind an image
    stands earlier than its number in the row (M-RoPE)."""
    added_layers: int = 0
    """First layers of the decoder behind which embeddings are added (DeepStack)."""


@runtime_checkable
class ImageTower(Protocol):
    """Interface of a family's tower with its projector; holds no arrays."""

    @property
    def abstract(self) -> Params:
        """Shapes and types of the parameters."""
        ...

    @property
    def axes(self) -> Params:
        """Logical axis names of the parameters, tuples as leaves."""
        ...

    @property
    def n_layers(self) -> int: ...

    def init(self, key: Key[Array, ""]) -> Params:
        """Fresh parameters."""
        ...

    def shardings(self, layout: Layout) -> Params:
        """Where each parameter lives."""
        ...

    def features(self, params: Params, images: Sequence[PreparedImage]) -> ImageFeatures:
        """Embeddings of images; there is one at least."""
        ...


@runtime_checkable
class VisionLanguageConfig(Protocol):
    """Interface of the config node of a family that reads images and text."""

    @property
    def kind(self) -> str: ...

    @property
    def language(self) -> ModelConfig:
        """The language model."""
        ...

    @property
    def image_token(self) -> int:
        """Id of the token in whose place an image's embeddings stand."""
        ...

    @property
    def placeholder(self) -> int:
        """Id of the token that stands for a whole image in a text before it is expanded."""
        ...

    @property
    def video_token(self) -> int | None:
        """Id of the token that stands for a video's tokens, which are refused; ``None``: none."""
        ...

    @property
    def image_spec(self) -> ImageSpec:
        """Additions of images to the decoder's inputs."""
        ...

    def tower(self, precision: Precision) -> ImageTower:
        """The tower."""
        ...

    def image_text(self, text_of: Callable[[int], str], image: PreparedImage) -> str:
        """Text that an image's placeholder becomes, given the texts of tokens."""
        ...

    def rotary_positions(
        self, spans: Sequence[slice], images: Sequence[PreparedImage], length: int
    ) -> tuple[Int[np.ndarray, "t a"], int] | None:
        """Positions of a row's tokens by axis, and how much later the next token stands than its
        number in the row; ``None``: positions have one axis, and count the tokens.

        Args:
            spans: the tokens of each image.
            images: the images, in order.
            length: tokens of the row.
        """
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ImagePrompt:
    """Rows of tokens with what their images add to a forward pass."""

    tokens: Int[Array, "b t"]
    inputs: MultimodalInputs | None = None
    """Embeddings at their places, and positions of several axes; ``None``: there are no images."""
    last_seen: Int[Array, "b t"] | None = None
    """Last position that each token sees, where the tokens of an image see one another."""
    ahead: Int[Array, "b"] | None = None
    """How much later than its number in the row the next token stands on all axes."""


@dataclasses.dataclass(frozen=True)
class VisionLanguageModel:
    """A family's config with its traced language model and tower; holds no arrays."""

    config: VisionLanguageConfig
    language: LanguageModel
    tower: ImageTower

    @classmethod
    def build(
        cls,
        config: VisionLanguageConfig,
        precision: Precision | None = None,
        language: LanguageModel | None = None,
    ) -> "VisionLanguageModel":
        """Trace the model's structure; allocates nothing.

        Args:
            config: a family's config node.
            precision: parameter and compute types (default float32 for both).
            language: the language model, if it is traced already.
        """
        precision = precision or Precision()
        language = language or LanguageModel.build(config.language, precision)
        return cls(config, language, config.tower(precision))

    @property
    def abstract(self) -> Params:
        """Shapes and types of the parameters."""
        return {"language": self.language.abstract, "tower": self.tower.abstract}

    @property
    def axes(self) -> Params:
        """Logical axis names of the parameters, tuples as leaves."""
        return {"language": self.language.axes, "tower": self.tower.axes}

    def init(self, key: Key[Array, ""]) -> Params:
        """Fresh parameters."""
        first, second = jax.random.split(key)
        return {"language": self.language.init(first), "tower": self.tower.init(second)}

    def shardings(self, layout: Layout) -> Params:
        """Where each parameter lives.

        Raises:
            ShardingError: heads, vocabulary or another dimension does not divide over the mesh.
        """
        return {
            "language": self.language.shardings(layout),
            "tower": self.tower.shardings(layout),
        }

    @property
    def parameter_count(self) -> int:
        """Number of parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.abstract))

    def prompt(
        self,
        tower: Params,
        tokens: Int[np.ndarray, "b t"],
        images: Sequence[Sequence[PreparedImage]],
    ) -> ImagePrompt:
        """Rows of tokens with their images' embeddings.

        Args:
            tower: the tower's parameters.
            tokens: token ids, padded on the right with anything but the image token; an image
                stands there as its image tokens, see :attr:`PreparedImage.offsets`.
            images: of each row, in order.

        Raises:
            DataError: a row has more or fewer image tokens than its images, others stand between
                those of one image, or there is a video.
        """
        video = self.config.video_token
        if video is not None and np.any(tokens == video):
            raise DataError(
                f"tokens (id {video})",
                found="a video",
                expected="text and images; videos are not implemented",
                fix="give its pictures as images",
            )
        spans = [image_spans(*row, self.config.image_token) for row in zip(tokens, images)]
        ids = jnp.asarray(tokens)
        every = [image for row in images for image in row]
        if not every:
            return ImagePrompt(ids)
        features = self.tower.features(tower, every)
        places, source = _places(spans, images, tokens.shape[1])
        rotary, ahead = self._rotary(spans, images, tokens.shape[1])
        at, added = jnp.asarray(source), features.by_layer
        added = None if added is None else added[:, at]
        inputs = MultimodalInputs(features.embeddings[at], places, rotary, added)
        last = None
        if self.config.image_spec.mutual:
            last = jnp.asarray(np.stack([last_seen(row, tokens.shape[1]) for row in spans]))
        return ImagePrompt(ids, inputs, last, ahead)

    def _rotary(
        self,
        spans: Sequence[Sequence[slice]],
        images: Sequence[Sequence[PreparedImage]],
        length: int,
    ) -> tuple[Int[Array, "b t a"] | None, Int[Array, "b"] | None]:
        found = [self.config.rotary_positions(*row, length) for row in zip(spans, images)]
        kept = [one for one in found if one is not None]
        if not kept:
            return None, None
        positions = jnp.asarray(np.stack([one[0] for one in kept]).astype(np.int32))
        return positions, jnp.asarray([one[1] for one in kept], jnp.int32)

    def logits(self, params: Params, prompt: ImagePrompt) -> Float[Array, "b t v"]:
        """All logits in float32, see :meth:`prompt`.

        Args:
            params: the language model's parameters.
            prompt: tokens and images.
        """
        context = Causal(prompt.last_seen)
        return self.language.logits(params, prompt.tokens, None, context, prompt.inputs)


def image_spans(
    tokens: Int[np.ndarray, "t"], images: Sequence[PreparedImage], image_token: int
) -> list[slice]:
    """Which tokens of a row each of its images is, tokens between its lines included.

    Args:
        tokens: ids of a row's tokens.
        images: the images in order.
        image_token: id that stands for a token of an image.

    Raises:
        DataError: there are more or fewer such tokens than the images have, or others stand between
            those of one image.
    """
    at, start, spans = np.flatnonzero(tokens == image_token), 0, []
    needed = sum(image.tokens for image in images)
    if len(at) != needed:
        raise DataError(
            f"image tokens (id {image_token}) in a row",
            found=f"{len(at):,}",
            expected=f"{needed:,} for {len(images)} images",
            fix="write an image's placeholder in the text once for each image",
        )
    for number, image in enumerate(images):
        inside = at[start : start + image.tokens]
        if not np.array_equal(inside - inside[0], image.offsets):
            lines = f"one token behind every {image.line:,}" if image.line else "without a break"
            raise DataError(
                f"image {number}",
                found="other tokens between its own",
                expected=f"{image.tokens:,} image tokens {lines}",
            )
        spans.append(slice(int(inside[0]), int(inside[-1]) + 1))
        start += image.tokens
    return spans


def _places(
    spans: Sequence[Sequence[slice]], images: Sequence[Sequence[PreparedImage]], length: int
) -> tuple[Int[Array, "b n"], Int[np.ndarray, "b n"]]:
    """Places of embeddings in each row, and which of all embeddings stands there."""
    counts = [sum(image.tokens for image in row) for row in images]
    places = np.full((len(spans), max(counts)), length, np.int32)
    source, before = np.zeros(places.shape, np.int32), 0
    for number, count in enumerate(counts):
        if count:
            row = zip(spans[number], images[number])
            found = [span.start + image.offsets for span, image in row]
            places[number, :count] = np.concatenate(found)
            source[number, :count] = before + np.arange(count)
        before += count
    return jnp.asarray(places), source


def last_seen(spans: Sequence[slice], length: int) -> Int[np.ndarray, "t"]:
    """The last position that each token of a row sees where the tokens of an image see one another;
    images without a token between them are one block.

    >>> last_seen([slice(1, 3)], 4).tolist()
    [0, 2, 2, 3]
    """
    last = np.arange(length, dtype=np.int32)
    begin = stop = -1
    for span in reversed(spans):
        stop = stop if span.stop == begin else span.stop
        begin = span.start
        last[span] = stop - 1
    return last


def expanded(
    config: VisionLanguageConfig,
    text: str,
    images: Sequence[PreparedImage],
    text_of: Callable[[int], str],
) -> str:
    """A text in which each image's placeholder is what its tokens are written as.

    Args:
        config: the family's config.
        text: with one placeholder for each image.
        images: in order.
        text_of: from a token's id to its text.

    Raises:
        DataError: there are more or fewer placeholders than images.
    """
    mark = text_of(config.placeholder)
    parts = text.split(mark)
    if len(parts) != len(images) + 1:
        raise DataError(
            "text with images",
            found=f"{len(parts) - 1} times {mark!r}",
            expected=f"{len(images)}, one for each image",
        )
    out = [parts[0]]
    for image, part in zip(images, parts[1:]):
        out += [config.image_text(text_of, image), part]
    return "".join(out)
