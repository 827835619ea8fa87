"""Encoders of texts and of images whose vectors are compared, as pure functions over parameters.

>>> import jax, jax.numpy as jnp
>>> from ziggurat.models import ClipConfig, ClipImageConfig, ClipTextConfig
>>> sizes = dict(d_model=16, n_layers=1, n_heads=2, projection=8)
>>> text = ClipTextConfig(vocab_size=32, end_id=2, **sizes)
>>> image = ClipImageConfig(image_size=(8, 8), patch_size=(4, 4), **sizes)
>>> model = TwoTowerModel.build(ClipConfig(text=text, image=image))
>>> params = model.init(jax.random.key(0))
>>> model.logits(params, jnp.array([[1, 5, 2]]), None, jnp.ones((3, 3, 8, 8))).shape
(1, 3)
"""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ziggurat.mesh import Layout
from ziggurat.models.encoder_model import EncoderFamilyConfig, EncoderModel
from ziggurat.models.traced_model import Params
from ziggurat.nn.precision import Precision


@runtime_checkable
class TwoTowerFamilyConfig(Protocol):
    """Interface of the config node of a family with a tower for texts and one for images."""

    @property
    def kind(self) -> str: ...

    @property
    def text(self) -> EncoderFamilyConfig: ...

    @property
    def image(self) -> EncoderFamilyConfig: ...

    @property
    def logit_scale(self) -> float:
        """Logarithm of the factor on cosines, before training."""
        ...

    @property
    def logit_bias(self) -> float | None:
        """Added to the logits, before training; ``None``: nothing is."""
        ...

    @property
    def scalar_shape(self) -> tuple[int, ...]:
        """Shape in which files have the factor and what is added."""
        ...


@dataclasses.dataclass(frozen=True)
class TwoTowerModel:
    """A family's config with the traced structure of both towers; holds no arrays."""

    config: TwoTowerFamilyConfig
    text: EncoderModel
    image: EncoderModel

    @classmethod
    def build(
        cls, config: TwoTowerFamilyConfig, precision: Precision | None = None
    ) -> "TwoTowerModel":
        """Trace the model's structure; allocates nothing.

        Args:
            config: a family's config node, e.g. ``ClipConfig``.
            precision: parameter and compute types (default float32 for both).
        """
        text, image = EncoderModel.build(config.text, precision), config.image
        return cls(config, text, EncoderModel.build(image, precision))

    @property
    def precision(self) -> Precision:
        """Parameter and compute types."""
        return self.text.precision

    @property
    def n_layers(self) -> int:
        """Layers of the deeper tower."""
        return max(self.text.n_layers, self.image.n_layers)

    @property
    def abstract(self) -> Params:
        """Shapes and types of the parameters."""
        scalar = jax.ShapeDtypeStruct(self.config.scalar_shape, self.precision.param_dtype)
        return self._with_scalars(self.text.abstract, self.image.abstract, scalar, scalar)

    def init(self, key: Key[Array, ""]) -> Params:
        """Fresh parameters."""
        first, second = jax.random.split(key)
        shape, dtype = self.config.scalar_shape, self.precision.param_dtype
        scale, bias = (jnp.full(shape, x or 0.0, dtype) for x in self._scalars)
        return self._with_scalars(self.text.init(first), self.image.init(second), scale, bias)

    def shardings(self, layout: Layout) -> Params:
        """Where each parameter lives.

        Raises:
            ShardingError: heads, vocabulary or another dimension does not divide over the mesh.
        """
        scalar = layout.replicated()
        text, image = self.text.shardings(layout), self.image.shardings(layout)
        return self._with_scalars(text, image, scalar, scalar)

    @property
    def _scalars(self) -> tuple[float, float | None]:
        return self.config.logit_scale, self.config.logit_bias

    def _with_scalars(self, text: Any, image: Any, scale: Any, bias: Any) -> dict[str, Any]:
        found = {"text": text, "image": image, "logit_scale": scale}
        return found if self.config.logit_bias is None else found | {"logit_bias": bias}

    def text_vectors(
        self, params: Params, tokens: Int[Array, "b t"], mask: Int[Array, "b t"] | None = None
    ) -> Float[Array, "b e"]:
        """Vectors of length one for texts; ``mask`` is 0 at padding."""
        hidden = self.text.hidden(params["text"], tokens, mask)
        return _unit(self.text.pooled(params["text"], hidden, mask, tokens))

    def image_vectors(self, params: Params, pixels: Float[Array, "b c h w"]) -> Float[Array, "b e"]:
        """Vectors of length one for images."""
        hidden = self.image.hidden(params["image"], pixels)
        return _unit(self.image.pooled(params["image"], hidden, None, pixels))

    def logits(
        self,
        params: Params,
        tokens: Int[Array, "n t"],
        mask: Int[Array, "n t"] | None,
        pixels: Float[Array, "m c h w"],
    ) -> Float[Array, "n m"]:
        """Logits of each text with each image: scaled cosines."""
        texts, images = self.text_vectors(params, tokens, mask), self.image_vectors(params, pixels)
        scale = jnp.exp(params["logit_scale"].astype(jnp.float32)).reshape(1, 1)
        logits = jnp.einsum("ne,me->nm", texts, images) * scale
        if "logit_bias" not in params:
            return logits
        return logits + params["logit_bias"].astype(jnp.float32).reshape(1, 1)

    @property
    def parameter_count(self) -> int:
        """Number of parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.abstract))


def _unit(vectors: Float[Array, "b e"]) -> Float[Array, "b e"]:
    wide = vectors.astype(jnp.float32)
    return wide / jnp.linalg.norm(wide, axis=-1, keepdims=True)
