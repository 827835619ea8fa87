"""An encoder of images whose states a projector turns into embeddings of a language model."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
from flax import nnx
from jaxtyping import Array, Float

from ziggurat.nn.encoder import Encoder, EncoderConfig
from ziggurat.nn.linear import Linear, parameter
from ziggurat.nn.mlp import ACTIVATIONS, Activation
from ziggurat.nn.norm import NormConfig
from ziggurat.nn.precision import Precision


@runtime_checkable
class ProjectorConfig(Protocol):
    """Interface of a projector's config."""

    def build(
        self, width: int, outputs: int, std: float, precision: Precision, rngs: nnx.Rngs
    ) -> Any:
        """The module: states of patches ``[b, p, w]`` to embeddings ``[b, n, d]``."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class MlpProjectorConfig:
    """Config of a :class:`MlpProjector`."""

    activation: Activation = "gelu"
    """Function between the two matmuls."""
    bias: bool = True
    """Biases on both."""

    def build(
        self, width: int, outputs: int, std: float, precision: Precision, rngs: nnx.Rngs
    ) -> "MlpProjector":
        return MlpProjector(self, width, outputs, std, precision, rngs)


class MlpProjector(nnx.Module):
    r"""Projector :math:`\sigma(h W_u + b_u) W_d + b_d` of each patch's state.

    Paper: Liu et al. 2023 (LLaVA-1.5), https://arxiv.org/abs/2310.03744, section 3.
    """

    def __init__(
        self,
        c: MlpProjectorConfig,
        width: int,
        outputs: int,
        std: float,
        precision: Precision,
        rngs: nnx.Rngs,
    ):
        def linear(inputs: int, axes: tuple[str, str]) -> Linear:
            return Linear(
                inputs, outputs, axes, bias=c.bias, std=std, precision=precision, rngs=rngs
            )

        self.up, self.down = linear(width, ("embed", "mlp")), linear(outputs, ("mlp", "embed"))
        self.activation = c.activation

    def __call__(self, hidden: Float[Array, "b p w"]) -> Float[Array, "b p d"]:
        """Embeddings, one for each patch."""
        return self.down(ACTIVATIONS[self.activation](self.up(hidden)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PooledProjectorConfig:
    """Config of a :class:`PooledProjector`."""

    grid: int
    """Rows, and columns, of patches."""
    side: int
    """Rows, and columns, of embeddings; it divides ``grid``."""
    norm: NormConfig
    """Norm of the means."""

    def build(
        self, width: int, outputs: int, std: float, precision: Precision, rngs: nnx.Rngs
    ) -> "PooledProjector":
        return PooledProjector(self, width, outputs, std, precision, rngs)


class PooledProjector(nnx.Module):
    r"""Projector :math:`N(\bar h) W` of the mean state of each square of patches.

    Paper: Kamath et al. 2025 (Gemma 3), https://arxiv.org/abs/2503.19786, section 2.1.
    """

    def __init__(
        self,
        c: PooledProjectorConfig,
        width: int,
        outputs: int,
        std: float,
        precision: Precision,
        rngs: nnx.Rngs,
    ):
        self.grid, self.side = c.grid, c.side
        self.norm = c.norm.build(width, precision)
        self.kernel = parameter(rngs, (width, outputs), ("mlp", "embed"), std, precision)

    def __call__(self, hidden: Float[Array, "b p w"]) -> Float[Array, "b n d"]:
        """Embeddings, one for each square, row by row."""
        side, square = self.side, self.grid // self.side
        rows = hidden.reshape(hidden.shape[0], side, square, side, square, hidden.shape[-1])
        means = rows.mean((2, 4)).reshape(hidden.shape[0], side * side, hidden.shape[-1])
        means = self.norm(means)
        return means @ self.kernel[...].astype(means.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProjectedEncoderConfig:
    """Config of a :class:`ProjectedEncoder`."""

    encoder: EncoderConfig
    """Encoder of images."""
    left_out: int = 0
    """States at the beginning that the projector does not read: learned tokens."""
    projector: ProjectorConfig
    """Projector of the states."""
    outputs: int
    """Width of the embeddings: that of the language model."""


class ProjectedEncoder(nnx.Module):
    """Images to embeddings of a language model."""

    def __init__(self, c: ProjectedEncoderConfig, *, precision: Precision, rngs: nnx.Rngs):
        self.left_out = c.left_out
        self.encoder = Encoder(c.encoder, precision=precision, rngs=rngs)
        width, std = c.encoder.d_model, c.encoder.init_std
        self.projector: Any = c.projector.build(width, c.outputs, std, precision, rngs)

    def __call__(self, pixels: Float[Array, "b c h w"]) -> Float[Array, "b n d"]:
        """Embeddings of images of one size."""
        hidden = self.encoder(pixels)[:, self.left_out :]
        with jax.named_scope("projector"):
            return self.projector(hidden)
