"""Images of packed rows in arrays of fixed shapes, and the forward pass of a tower over them.

Each row has room for a number of images, or of patches where a tower reads images at their own
sizes; what is not used is padding, whose embeddings stand nowhere. One program thus serves every
batch of a run.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from ziggurat.core import config
from ziggurat.core.errors import ConfigError, DataError
from ziggurat.core.protocols import Batch
from ziggurat.data.image_records import ImageRecord
from ziggurat.models.families.vision_language_family import vision_language_family_of
from ziggurat.models.image_places import patch_places, window_count
from ziggurat.models.image_processor import picture_size
from ziggurat.models.projected_encoder_model import ProjectedEncoderModel
from ziggurat.models.traced_model import Params
from ziggurat.models.vision_language_model import (
    PreparedImage,
    VisionLanguageConfig,
    VisionLanguageModel,
    image_spans,
    last_seen,
)
from ziggurat.models.vision_tower_model import VisionTowerModel
from ziggurat.nn.multimodal import MultimodalInputs
from ziggurat.nn.vision_tower import PatchPlaces

Shapes = dict[str, tuple[tuple[int, ...], Any]]
"""Shapes without the batch, and types, of arrays by name."""


@dataclasses.dataclass(frozen=True)
class RowRoom:
    """Limits of a row."""

    tokens: int
    images: int
    patches: int | None = None
    """For towers that read images at their own sizes; ``None``: as many as the tokens stand for."""


@runtime_checkable
class RowLayout(Protocol):
    """Interface of how a tower's images lie in the arrays of a row."""

    @property
    def room(self) -> dict[str, int]:
        """Limits of a row by name."""
        ...

    @property
    def shapes(self) -> Shapes: ...

    @property
    def embeddings(self) -> int:
        """Embeddings of a row, padding included; an image's follow those of the one before."""
        ...

    def needs(self, images: Sequence[PreparedImage]) -> tuple[int, ...]:
        """Amounts that images take, in the order of :attr:`room`."""
        ...

    def arrays(self, rows: Sequence[Sequence[PreparedImage]]) -> Batch:
        """The arrays of :attr:`shapes`."""
        ...

    def read(
        self, params: Params, batch: Mapping[str, Array]
    ) -> tuple[Float[Array, "b n d"], Float[Array, "k b n d"] | None]:
        """Embeddings, and those behind the decoder's first layers, of a batch's images."""
        ...


@dataclasses.dataclass(frozen=True)
class WholeImages:
    """Rows of images of one size, for a tower that reads them whole."""

    tower: ProjectedEncoderModel
    images: int
    """Most images of a row."""
    blank: PreparedImage
    """An image, as all are."""

    @property
    def room(self) -> dict[str, int]:
        return {"images": self.images}

    @property
    def shapes(self) -> Shapes:
        return {"pixels": ((self.images, *self.blank.pixels.shape), np.float32)}

    @property
    def embeddings(self) -> int:
        return self.images * self.blank.tokens

    def needs(self, images: Sequence[PreparedImage]) -> tuple[int, ...]:
        return (len(images),)

    def arrays(self, rows: Sequence[Sequence[PreparedImage]]) -> Batch:
        pixels = np.zeros((len(rows), self.images, *self.blank.pixels.shape), np.float32)
        for out, row in zip(pixels, rows):
            for number, image in enumerate(row):
                out[number] = image.pixels
        return {"pixels": pixels}

    def read(
        self, params: Params, batch: Mapping[str, Array]
    ) -> tuple[Float[Array, "b n d"], None]:
        pixels = batch["pixels"]
        flat = pixels.reshape(-1, *pixels.shape[2:])
        found = nnx.merge(self.tower.graph, params)(flat)
        return found.reshape(pixels.shape[0], -1, found.shape[-1]), None


@dataclasses.dataclass(frozen=True)
class PatchRows:
    """Rows of patches of images of any sizes."""

    tower: VisionTowerModel
    images: int
    """Most images of a row."""
    patches: int
    """Most patches of a row."""

    @property
    def _windows(self) -> int | None:
        """Most windows of a row: twice those of one square image, and two more for each image,
        whose borders cut windows off."""
        side = self.tower.config.window
        return None if side is None else 2 * -(-self.patches // side**2) + 2 * self.images

    @property
    def room(self) -> dict[str, int]:
        room = {"images": self.images, "patches": self.patches}
        windows = self._windows
        return room if windows is None else room | {"windows of patches": windows}

    @property
    def shapes(self) -> Shapes:
        n, side = self.patches, self.tower.config.window
        found: Shapes = {
            "pixels": ((n, self.tower.tower.inputs), np.float32),
            "patch_images": ((n,), np.int32),
            "patch_places": ((n, 2), np.int32),
            "patch_grids": ((n, 2), np.int32),
        }
        if side is not None and self._windows is not None:
            found["patch_windows"] = ((self._windows, side**2), np.int32)
        return found

    @property
    def embeddings(self) -> int:
        return self.patches // self.tower.config.merge_size**2

    def needs(self, images: Sequence[PreparedImage]) -> tuple[int, ...]:
        patches = sum(len(image.pixels) for image in images)
        side = self.tower.config.window
        if side is None:
            return len(images), patches
        grids = [image.grid for image in images if image.grid is not None]
        return len(images), patches, window_count(grids, side)

    def arrays(self, rows: Sequence[Sequence[PreparedImage]]) -> Batch:
        c = self.tower.config
        grids = [[image.grid for image in row if image.grid is not None] for row in rows]
        where = patch_places(
            grids, c.merge_size, c.window, patches=self.patches, windows=self._windows
        )
        pixels = np.zeros((len(rows), *self.shapes["pixels"][0]), np.float32)
        for out, row in zip(pixels, rows):
            if row:
                found = np.concatenate([image.pixels for image in row])
                out[: len(found)] = found
        made = {
            "pixels": pixels,
            "patch_images": np.asarray(where.images),
            "patch_places": np.asarray(where.positions),
            "patch_grids": np.asarray(where.sizes),
        }
        return (
            made if where.windows is None else made | {"patch_windows": np.asarray(where.windows)}
        )

    def read(
        self, params: Params, batch: Mapping[str, Array]
    ) -> tuple[Float[Array, "b n d"], Float[Array, "k b n d"] | None]:
        where = PatchPlaces(
            images=batch["patch_images"],
            positions=batch["patch_places"],
            sizes=batch["patch_grids"],
            windows=batch.get("patch_windows"),
        )
        return self.tower.embeddings(params, batch["pixels"], where)


class ImageBatches:
    """Arrays of the images of packed conversations, by a family's processor; implements
    :class:`ziggurat.data.image_records.PictureInputs`.

    Args:
        vision: the model.
        processor: config node of its processor.
        text_of: from a token's id to its text.
        room: limits of a row.

    Raises:
        ConfigError: patches are limited for a tower that has none, or are no whole blocks.
        DataError: the processor keeps pictures' sizes, for a tower that reads images of one.
    """

    def __init__(
        self,
        vision: VisionLanguageModel,
        processor: Any,
        text_of: Callable[[int], str],
        room: RowRoom,
    ):
        self.vision, self.processor, self._room = vision, processor, room
        self._family = vision_language_family_of(vision.config)
        self._text_of = text_of
        self.layout = self._layout(room)
        axes = vision.config.image_spec.position_axes
        self._axes = axes if axes > 1 else None

    @property
    def _config(self) -> VisionLanguageConfig:
        return self.vision.config

    def _layout(self, room: RowRoom) -> RowLayout:
        tower = self.vision.tower
        if isinstance(tower, VisionTowerModel):
            block = tower.config.merge_size**2
            patches = room.patches or room.tokens * block
            if patches % block:
                raise ConfigError(
                    "data.patches_per_row", found=patches, expected=f"a multiple of {block}"
                )
            return PatchRows(tower, room.images, patches)
        assert isinstance(tower, ProjectedEncoderModel), "towers are of these kinds"
        if room.patches is not None:
            raise ConfigError(
                "data.patches_per_row",
                found=room.patches,
                expected=f"nothing for {self._config.kind}, whose images have one size",
            )
        small, large = (self.measure((side, 2 * side)) for side in (64, 128))
        if small.pixels.shape != large.pixels.shape or large.tokens != small.tokens:
            raise DataError(
                "image processor",
                found="pictures of several sizes",
                expected="one size after resizing, to train on",
                fix="set height and width, or a crop, in preprocessor_config.json",
            )
        return WholeImages(tower, room.images, small)

    @property
    def digest(self) -> str:
        plain = [config.to_plain(self.processor), self._config.kind, self._config.image_token]
        text = json.dumps(plain, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    @property
    def image_token(self) -> int:
        return self._config.image_token

    @property
    def placeholder(self) -> str:
        return self._text_of(self._config.placeholder)

    @property
    def room(self) -> dict[str, int]:
        return self.layout.room

    @property
    def shapes(self) -> Shapes:
        """Shapes without the batch, and types, of all arrays beside those of text."""
        found = self.layout.shapes
        found |= {"image_places": ((self.layout.embeddings,), np.int32)}
        if self._axes is not None:
            found["rotary_positions"] = ((self._room.tokens, self._axes), np.int32)
        if self._config.image_spec.mutual:
            found["last_seen"] = ((self._room.tokens,), np.int32)
        return found

    def measure(self, size: tuple[int, int]) -> PreparedImage:
        """A picture of this height and width, without its pixels."""
        return self._family.measure(self._config, self.processor, size)

    def measured(self, path: Path) -> PreparedImage:
        return self.measure(picture_size(path))

    def needs(self, sizes: Sequence[PreparedImage]) -> tuple[int, ...]:
        return self.layout.needs(sizes)

    def text(self, size: PreparedImage) -> str:
        return self._config.image_text(self._text_of, size)

    def spans(self, ids: Int[np.ndarray, "t"], sizes: Sequence[PreparedImage]) -> list[slice]:
        return image_spans(ids, sizes, self.image_token)

    def arrays(self, rows: Sequence[Sequence[tuple[int, ImageRecord]]]) -> Batch:
        made = self.layout.arrays([self._prepared(row) for row in rows])
        length = self._room.tokens
        places = np.full((len(rows), self.layout.embeddings), length, np.int32)
        made["image_places"] = places
        for out, row in zip(places, rows):
            images = [(at, image) for at, one in row for image in one.images]
            found = [at + image.span.start + image.size.offsets for at, image in images]
            if found:
                whole = np.concatenate(found)
                out[: len(whole)] = whole
        if self._axes is not None:
            made["rotary_positions"] = np.zeros((len(rows), length, self._axes), np.int32)
        if self._config.image_spec.mutual:
            made["last_seen"] = np.zeros((len(rows), length), np.int32)
        for number, row in enumerate(rows):
            for at, record in row:
                self._fill(made, number, at, record)
        return made

    def _fill(self, made: Batch, row: int, at: int, record: ImageRecord) -> None:
        """Write a record's positions, counted in the record, into its part of a row."""
        part, spans = slice(at, at + len(record.ids)), [image.span for image in record.images]
        if "rotary_positions" in made:
            sizes = [image.size for image in record.images]
            found = self._config.rotary_positions(spans, sizes, len(record.ids))
            assert found is not None, "looked at before"
            made["rotary_positions"][row, part] = found[0]
        if "last_seen" in made:
            made["last_seen"][row, part] = last_seen(spans, len(record.ids))

    def _prepared(self, row: Sequence[tuple[int, ImageRecord]]) -> list[PreparedImage]:
        images = [image for _, record in row for image in record.images]
        found = self._family.prepare(self._config, self.processor, [one.path for one in images])
        for image, prepared in zip(images, found):
            if prepared.pixels.shape != image.size.pixels.shape:
                raise DataError(
                    f"image {image.path}",
                    found="another size than when the run began",
                    expected="files that stay as they are",
                )
        return found

    def inputs(
        self, params: Params, batch: Mapping[str, Array], *, recompute: bool = False
    ) -> tuple[MultimodalInputs, Int[Array, "b t"] | None]:
        """Inputs of the decoder from images, and the last position that each token sees where
        an image's tokens see one another; to be traced.

        Args:
            params: the tower's parameters.
            batch: arrays of :meth:`arrays`.
            recompute: keep none of the tower's activations for the backward pass.
        """
        read = jax.checkpoint(self.layout.read) if recompute else self.layout.read
        names = self.layout.shapes
        embeddings, layers = read(params, {name: batch[name] for name in names})
        inputs = MultimodalInputs(
            embeddings, batch["image_places"], batch.get("rotary_positions"), layers
        )
        return inputs, batch.get("last_seen")


def structs(shapes: Shapes, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of a batch's arrays."""
    return {
        name: jax.ShapeDtypeStruct((batch, *shape), jnp.dtype(dtype))
        for name, (shape, dtype) in shapes.items()
    }
