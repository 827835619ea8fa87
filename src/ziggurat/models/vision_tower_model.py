"""A vision tower as pure functions over a nested dict of parameters."""

import dataclasses
from functools import partial
from typing import Protocol, runtime_checkable

from flax import nnx
from jaxtyping import Array, Float

from ziggurat.models.traced_model import Params, TracedModel
from ziggurat.nn.precision import Precision
from ziggurat.nn.vision_tower import ImageEmbeddings, PatchPlaces, VisionTower, VisionTowerConfig


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
