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
from ziggurat.models.image_places import patch_places, rounded, window_count
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
    """A config with its traced tower; holds no arrays."""

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
        found, group = [], list[PreparedImage]()
        for image in [*images, None]:
            count = sum(len(one.pixels) for one in group)
            if group and (image is None or count + len(image.pixels) > MOST_PATCHES):
                found.append(self._row(params, group))
                group = []
            group += [] if image is None else [image]
        embeddings = jnp.concatenate([one.embeddings[0] for one in found])
        if self.tower.tap_merger is None:
            return ImageFeatures(embeddings)
        layers = [one.by_layer[:, 0] for one in found if one.by_layer is not None]
        return ImageFeatures(embeddings, jnp.concatenate(layers, axis=1))

    def _row(self, params: Params, images: Sequence[PreparedImage]) -> ImageEmbeddings:
        """One pass over images in a row, without padding in the result."""
        c, grids = self.config, []
        for image in images:
            if image.grid is None or len(image.pixels) != image.grid[0] * image.grid[1]:
                raise DataError(
                    "image", found=f"{len(image.pixels)} patches in a grid of {image.grid}",
                    expected="rows and columns of patches, and as many patches",
                )  # fmt: skip
            grids.append(image.grid)
        whole, block = np.concatenate([image.pixels for image in images]), c.merge_size**2
        room = block * rounded(len(whole) // block)
        windows = None if c.window is None else rounded(window_count(grids, c.window))
        where = patch_places([grids], c.merge_size, c.window, patches=room, windows=windows)
        padded = np.pad(whole.astype(np.float32), ((0, room - len(whole)), (0, 0)))
        found = _embedded(self.graph, params, jnp.asarray(padded)[None], where)
        tokens = len(whole) // block
        by_layer = None if found.by_layer is None else found.by_layer[:, :, :tokens]
        return ImageEmbeddings(found.embeddings[:, :tokens], by_layer)

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


@partial(jax.jit, static_argnums=0)
def _embedded(
    graph: Any, params: Params, patches: Float[Array, "b n p"], where: PatchPlaces
) -> ImageEmbeddings:
    return nnx.merge(graph, params)(patches, where)
