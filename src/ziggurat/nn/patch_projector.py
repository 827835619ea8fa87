"""The projector behind a vision tower whose patches are merged by a matmul, or not at all."""

import dataclasses

from flax import nnx
from jaxtyping import Array, Float

from ziggurat.nn.linear import Linear
from ziggurat.nn.mlp import Activation
from ziggurat.nn.norm import NormConfig
from ziggurat.nn.precision import Precision
from ziggurat.nn.projected_encoder import MlpProjectorConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatchProjectorConfig:
    """Config of a :class:`PatchProjector`."""

    outputs: int
    """Length of an embedding."""
    patches: int = 1
    """Patches that become one embedding."""
    norm: NormConfig | None = None
    """Norm of each patch before the matmul that merges; ``None``: there is neither, and a patch
    is one embedding."""
    activation: Activation = "gelu"
    """Function between the last two matmuls."""
    bias: bool = False
    """Biases on the last two."""

    def __post_init__(self):
        assert self.norm is not None or self.patches == 1, "patches are merged behind a norm"

    def build(
        self, width: int, std: float, precision: Precision, rngs: nnx.Rngs
    ) -> "PatchProjector":
        return PatchProjector(self, width, std, precision, rngs)


class PatchProjector(nnx.Module):
    r"""Neighbouring patches to one embedding: :math:`y = \sigma(m W_u + b_u) W_d + b_d` with
    :math:`m = N(x) W_m`, or :math:`m = x` where patches are not merged.

    The merged patches lie in ``x`` channel by channel: all patches' first numbers, then all second
    ones, as published weights of Mistral Small 3.1 have it.

    Paper: Agrawal et al. 2024 (Pixtral), https://arxiv.org/abs/2410.07073, section 2.1; merging:
    Mistral AI 2025, https://mistral.ai/news/mistral-small-3-1.
    """

    def __init__(
        self,
        c: PatchProjectorConfig,
        width: int,
        std: float,
        precision: Precision,
        rngs: nnx.Rngs,
    ):
        self.config = c
        self.norm = c.norm and c.norm.build(width, precision)
        self.merge = c.norm and Linear(
            width * c.patches, width, (None, "embed"), bias=False, std=std, precision=precision,
            rngs=rngs,
        )  # fmt: skip
        projector = MlpProjectorConfig(activation=c.activation, bias=c.bias)
        self.mlp = projector.build(width, c.outputs, std, precision, rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b m e"]:
        """Embeddings, one for each block of patches that follow one another."""
        if self.norm is None or self.merge is None:
            return self.mlp(x)
        batch, patches, width = x.shape
        blocks = self.norm(x).reshape(batch, patches // self.config.patches, -1, width)
        return self.mlp(self.merge(blocks.swapaxes(2, 3).reshape(*blocks.shape[:2], -1)))
