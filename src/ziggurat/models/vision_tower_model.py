"""A vision tower as pure functions over a nested dict of parameters."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from ziggurat.core.errors import DataError
from ziggurat.mesh import active_layout, active_ways
from ziggurat.models.image_places import Grid, patch_places, rounded, window_count
from ziggurat.models.traced_model import Params, TracedModel
from ziggurat.models.vision_language_model import ImageFeatures, PreparedImage
from ziggurat.nn.precision import Precision
from ziggurat.nn.vision_tower import ImageEmbeddings, PatchPlaces, VisionTower, VisionTowerConfig

MOST_PATCHES = 16384
"""Most patches of several images in one pass; what attention within a whole image costs grows with
the square of a row's patches."""


@runtime_checkable
class VisionTowerFamilyConfig(Protocol):
    """Interface of the config node of a family's vision tower."""

    @property
    def merge_size(self) -> int:
        """Patches along each side of a block that becomes one token."""
        ...

    @property
    def window(self) -> int | None:
        """Side in patches of the windows of its attention; ``None``: it has none."""
        ...

    def tower(self) -> VisionTowerConfig:
        """The tower this config stands for."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionTowerModel(TracedModel):
    """Vision tower as a config and a traced module; parameters are passed in, it holds none."""

    config: VisionTowerFamilyConfig
    tower: VisionTowerConfig

    @classmethod
    def build(
        cls, config: VisionTowerFamilyConfig, precision: Precision | None = None
    ) -> "VisionTowerModel":
        """Trace the tower's structure; allocates nothing.

        Args:
            config: the tower's config node.
            precision: parameter and compute types (default float32 for both).
        """
        precision, tower = precision or Precision(), config.tower()
        make = partial(VisionTower, tower, precision=precision)
        return cls.trace(make, precision, config=config, tower=tower)

    @property
    def heads(self) -> list[dict[str, int]]:
        return [block.mixer.divided for block in self.tower.stacks]

    @property
    def n_layers(self) -> int:
        return self.tower.n_layers

    def features(self, params: Params, images: Sequence[PreparedImage]) -> ImageFeatures:
        """Embeddings of images of any sizes, and those for the first layers of the decoder.

        Images are packed into rows of at most :data:`MOST_PATCHES`, or of one larger image.

        Args:
            params: the parameters.
            images: with patches ``[n, p]`` and grids.

        Raises:
            DataError: an image has no grid, or patches of another number than its grid.
        """
        rows, room = [list[PreparedImage]()], MOST_PATCHES
        for image in images:
            if rows[-1] and sum(len(one.pixels) for one in [*rows[-1], image]) > room:
                rows.append([])
            rows[-1].append(image)
        at_once = active_ways("batch")
        starts = range(0, len(rows), at_once)
        found = [self._rows(params, rows[i : i + at_once], at_once) for i in starts]
        embeddings = jnp.concatenate([one.embeddings for one in found])
        layers = [one.by_layer for one in found if one.by_layer is not None]
        return ImageFeatures(embeddings, jnp.concatenate(layers, axis=1) if layers else None)

    def _rows(
        self, params: Params, rows: Sequence[Sequence[PreparedImage]], count: int
    ) -> ImageFeatures:
        """One pass over images in at most ``count`` rows, as many as a mesh divides the batch
        into."""
        c, block = self.config, self.config.merge_size**2
        grids = [[_grid(image) for image in row] for row in rows]
        grids += [[] for _ in range(count - len(rows))]
        lengths = [sum(h * w for h, w in row) for row in grids]
        room = block * rounded(max(lengths) // block)
        windows = None
        if c.window is not None:
            windows = rounded(max(window_count(row, c.window) for row in grids))
        where = patch_places(grids, c.merge_size, c.window, patches=room, windows=windows)
        patches = np.zeros((count, room, self.tower.inputs), np.float32)
        for out, row, length in zip(patches, rows, lengths):
            out[:length] = np.concatenate([image.pixels for image in row])
        layout = active_layout()  # a program traced under one is of no use under another
        key = None if layout is None else (layout.mesh, tuple(layout.rules.items()))
        found = _embedded(self.graph, key, params, jnp.asarray(patches), where)
        tokens = [length // block for length in lengths]
        embeddings = [found.embeddings[i, :n] for i, n in enumerate(tokens)]
        if found.by_layer is None:
            return ImageFeatures(jnp.concatenate(embeddings))
        layers = [found.by_layer[:, i, :n] for i, n in enumerate(tokens)]
        return ImageFeatures(jnp.concatenate(embeddings), jnp.concatenate(layers, axis=1))

    def embeddings(
        self, params: Params, patches: Float[Array, "b n p"], where: PatchPlaces
    ) -> ImageEmbeddings:
        """Embeddings of the patches of several images in each row.

        Args:
            params: the parameters.
            patches: normalised pixels, see :class:`~ziggurat.nn.vision_tower.VisionTower`.
            where: where they stand, see :func:`ziggurat.models.image_places.patch_places`.
        """
        return nnx.merge(self.graph, params)(patches, where)


def _grid(image: PreparedImage) -> Grid:
    if image.grid is None or len(image.pixels) != image.grid[0] * image.grid[1]:
        raise DataError(
            "image",
            found=f"{len(image.pixels)} patches in a grid of {image.grid}",
            expected="rows and columns of patches, and as many patches",
        )
    return image.grid


@partial(jax.jit, static_argnums=(0, 1))
def _embedded(
    graph: Any, layout: Any, params: Params, patches: Float[Array, "b n p"], where: PatchPlaces
) -> ImageEmbeddings:
    return nnx.merge(graph, params)(patches, where)
