"""An encoder of images with its projector as pure functions over a nested dict of parameters."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from ziggurat.mesh import active_layout
from ziggurat.models.traced_model import Params, TracedModel
from ziggurat.models.vision_language_model import ImageFeatures, PreparedImage
from ziggurat.nn.precision import Precision
from ziggurat.nn.projected_encoder import ProjectedEncoder, ProjectedEncoderConfig

AT_ONCE = 8
"""Most images of one pass; their number is rounded up to a power of two, so that few programs are
compiled."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProjectedEncoderModel(TracedModel):
    """A tower for images of one size, traced; holds no arrays."""

    config: ProjectedEncoderConfig

    @classmethod
    def build(
        cls, config: ProjectedEncoderConfig, precision: Precision | None = None
    ) -> "ProjectedEncoderModel":
        """Trace the tower's structure; allocates nothing.

        Args:
            config: the tower.
            precision: parameter and compute types (default float32 for both).
        """
        precision = precision or Precision()
        make = partial(ProjectedEncoder, config, precision=precision)
        return cls.trace(make, precision, config=config)

    @property
    def heads(self) -> list[dict[str, int]]:
        return [block.mixer.divided for block in self.config.encoder.stacks]

    @property
    def n_layers(self) -> int:
        return self.config.encoder.n_layers

    def features(self, params: Params, images: Sequence[PreparedImage]) -> ImageFeatures:
        """Embeddings of images, all of one size.

        Args:
            params: the parameters.
            images: with pixels ``[c, h, w]``.
        """
        parts = []
        for start in range(0, len(images), AT_ONCE):
            pixels = np.stack([image.pixels for image in images[start : start + AT_ONCE]])
            room = 1 << (len(pixels) - 1).bit_length()
            padded = np.pad(pixels, ((0, room - len(pixels)), (0, 0), (0, 0), (0, 0)))
            found = _embedded(self.graph, active_layout(), params, jnp.asarray(padded))
            parts.append(found[: len(pixels)])
        embeddings = jnp.concatenate(parts)
        return ImageFeatures(embeddings.reshape(-1, embeddings.shape[-1]))


@partial(jax.jit, static_argnums=(0, 1))
def _embedded(graph: Any, layout: Any, params: Params, pixels: Float[Array, "b c h w"]) -> Array:
    """Embeddings; the layout is the active one, by which a program is compiled."""
    return nnx.merge(graph, params)(pixels)
