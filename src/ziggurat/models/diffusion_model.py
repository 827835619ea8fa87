"""A diffusion model, and the autoencoder of its latents, as pure functions over nested dicts of
parameters.

>>> import jax, jax.numpy as jnp
>>> from ziggurat.models import DitConfig
>>> config = DitConfig(image_size=8, channels=1, classes=10, d_model=16, n_layers=2, n_heads=2)
>>> model = DiffusionModel.build(config)
>>> params = model.init(jax.random.key(0))
>>> images, labels = jnp.zeros((3, 8, 8, 1)), jnp.array([0, 3, 10])
>>> jax.jit(model.predict)(params, images, jnp.full(3, 500.0), labels).shape
(3, 8, 8, 1)
"""

import dataclasses
from functools import partial
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from ziggurat.models.families.autoencoder_kl.config import AutoencoderKLConfig
from ziggurat.models.traced_model import Params, TracedModel
from ziggurat.nn.diffusion_transformer import DiffusionTransformer, DiffusionTransformerConfig
from ziggurat.nn.image_autoencoder import ImageAutoencoder
from ziggurat.nn.layer_scan import Remat
from ziggurat.nn.precision import Precision


@runtime_checkable
class DiffusionFamilyConfig(Protocol):
    """Interface of a diffusion family's config node."""

    @property
    def kind(self) -> str: ...

    @property
    def image_size(self) -> int: ...

    @property
    def channels(self) -> int: ...

    @property
    def classes(self) -> int: ...

    @property
    def tokens(self) -> int:
        """Tokens of an image inside the model."""
        ...

    def transformer(self) -> DiffusionTransformerConfig:
        """The diffusion transformer this config stands for."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionModel(TracedModel):
    """A family's config with its traced transformer; holds no arrays."""

    config: DiffusionFamilyConfig
    transformer: DiffusionTransformerConfig

    @classmethod
    def build(
        cls,
        config: DiffusionFamilyConfig,
        precision: Precision | None = None,
        remat: Remat = "none",
        attention_kernel: str = "auto",
    ) -> "DiffusionModel":
        """Trace the model's structure; allocates nothing.

        Args:
            config: a family's config node, e.g. ``DitConfig``.
            precision: parameter and compute types (default float32 for both).
            remat: what a block keeps for its backward pass.
            attention_kernel: a name of ``ziggurat.kernels.attention``, or ``"auto"``.
        """
        precision, transformer = precision or Precision(), config.transformer()

        make = partial(
            DiffusionTransformer,
            transformer,
            precision=precision,
            remat=remat,
            attention_kernel=attention_kernel,
        )
        return cls.trace(make, precision, config=config, transformer=transformer)

    @property
    def heads(self) -> list[dict[str, int]]:
        return [self.transformer.attention.divided]

    def predict(
        self,
        params: Params,
        x: Float[Array, "b i j o"],
        time: Float[Array, "b"],
        labels: Int[Array, "b"],
    ) -> Float[Array, "b i j o"]:
        """Prediction of the model for noisy images, in float32, without a predicted variance."""
        output = nnx.merge(self.graph, params)(x, time, labels)
        return output[..., : x.shape[-1]].astype(jnp.float32)

    @property
    def none(self) -> int:
        """The label that stands for no class."""
        return self.config.classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Rows, columns and channels of what the model works on."""
        return (self.config.image_size, self.config.image_size, self.config.channels)

    @property
    def matmul_parameter_count(self) -> int:
        """Parameters that multiply every token: all matrices; those of time, class and modulation
        multiply once for an image, and count by so much less."""
        count = 0.0
        for name, leaf in self.weights.items():
            once = "conditioning" in name or "modulation" in name
            if name.endswith("kernel") or name == "patch":
                count += leaf.size / (self.config.tokens if once else 1)
        return round(count)

    @property
    def has_experts(self) -> bool:
        return False

    @property
    def index_limits(self) -> dict[str, int]:
        """First class that is too large to look up; ``none`` stands for no class."""
        return {"labels": self.none + 1}

    @property
    def attention_channels(self) -> float:
        """Query channels of all heads of all layers: each costs 4 FLOPs per query and key."""
        attention = self.transformer.attention
        return self.transformer.n_layers * attention.cost.per_pair / 4

    @property
    def recurrent_flops_per_token(self) -> int:
        """FLOPs of recurrent layers per token: 0, since a diffusion transformer has none."""
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderModel(TracedModel):
    """An autoencoder's config with its traced module; holds no arrays.

    >>> import jax, jax.numpy as jnp
    >>> config = AutoencoderKLConfig(level_channels=(8, 16), groups=4)
    >>> model = AutoencoderModel.build(config)
    >>> latents, _ = jax.eval_shape(model.encode, model.abstract, jnp.zeros((1, 8, 8, 3)))
    >>> latents.shape, jax.eval_shape(model.decode, model.abstract, latents).shape
    ((1, 4, 4, 4), (1, 8, 8, 3))
    """

    config: AutoencoderKLConfig

    @classmethod
    def build(
        cls, config: AutoencoderKLConfig, precision: Precision | None = None
    ) -> "AutoencoderModel":
        """Trace the model's structure; allocates nothing."""
        precision = precision or Precision()
        make = partial(ImageAutoencoder, config.autoencoder(), precision=precision)
        return cls.trace(make, precision, config=config)

    def encode(
        self, params: Params, images: Float[Array, "b i j o"]
    ) -> tuple[Float[Array, "b _ _ _"], Float[Array, "b _ _ _"]]:
        """Means and standard deviations of the latents of images of -1 to 1, scaled for a
        diffusion model, in float32."""
        config = self.config
        mean, deviation = nnx.merge(self.graph, params).encode(images)
        mean, deviation = (x.astype(jnp.float32) for x in (mean, deviation))
        return (mean - config.shift) * config.scaling, deviation * config.scaling

    def decode(self, params: Params, latents: Float[Array, "b i j o"]) -> Float[Array, "b _ _ _"]:
        """Images, about -1 to 1, of latents as a diffusion model has them, in float32."""
        plain = latents / self.config.scaling + self.config.shift
        return nnx.merge(self.graph, params).decode(plain).astype(jnp.float32)
