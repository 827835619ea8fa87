"""DiT: transformers that take noise out of images of a class."""

from typing import Literal

from ziggurat.core import config
from ziggurat.nn.attention import GroupedAttentionConfig
from ziggurat.nn.diffusion_transformer import DiffusionTransformerConfig
from ziggurat.nn.mlp import Activation, GatedMlpConfig, PlainMlpConfig


@config.node
class DitConfig:
    """A transformer over an image's patches, steered by time and class (adaLN-zero).

    The published DiT-XL/2 has ``d_model = 1152, n_layers = 28, n_heads = 16`` over latents of four
    channels. Paper: Peebles and Xie 2023, https://arxiv.org/abs/2212.09748.
    """

    kind: Literal["dit"] = "dit"
    image_size: int
    """Rows and columns of the images, or of their latents."""
    channels: int
    """Channels of the images, or of their latents."""
    classes: int
    """Classes; one more embedding stands for none."""
    patch_size: int = 2
    """Rows and columns of a patch, which is a token."""
    d_model: int
    """Model width."""
    n_layers: int
    """Blocks."""
    n_heads: int
    """Heads."""
    d_ff: int | None = None
    """Feed-forward width; default ``4 d_model``."""
    activation: Activation = "gelu_tanh"
    """Function in the feed-forward block."""
    gated: bool = False
    """A gated feed-forward block (GEGLU, SwiGLU)."""
    attention_bias: bool = True
    """Biases on query, key and value."""
    norm_eps: float = 1e-6
    """Epsilon of the norm before the feed-forward block."""
    norm_affine: bool = False
    """A scale and a bias of that norm's own."""
    learned_variance: bool = False
    """Twice the channels come out; what the second half says of the variance is not used here."""
    shared_conditioning: bool = True
    """One embedding of time and class for all blocks; else one for each, as files of diffusers may
    have it."""

    def __post_init__(self):
        names = ("image_size", "channels", "classes", "patch_size", "d_model", "n_layers")
        for name in (*names, "n_heads"):
            config.require(getattr(self, name) >= 1, name, getattr(self, name), "a number >= 1")
        config.require(self.d_ff is None or self.d_ff >= 1, "d_ff", self.d_ff, "a number >= 1")
        whole = self.image_size % self.patch_size == 0
        expected = f"a multiple of patch_size = {self.patch_size}"
        config.require(whole, "image_size", self.image_size, expected)
        divides = self.d_model % self.n_heads == 0
        config.require(divides, "d_model", self.d_model, f"a multiple of {self.n_heads} heads")
        config.require(self.d_model % 4 == 0, "d_model", self.d_model, "a multiple of 4")

    @property
    def tokens(self) -> int:
        """Patches of an image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return self.channels * (2 if self.learned_variance else 1)

    def transformer(self) -> DiffusionTransformerConfig:
        """The diffusion transformer this config stands for."""
        hidden, heads = self.d_ff or 4 * self.d_model, self.n_heads
        mlp = GatedMlpConfig if self.gated else PlainMlpConfig
        return DiffusionTransformerConfig(
            image_size=self.image_size,
            patch_size=self.patch_size,
            in_channels=self.channels,
            out_channels=self.out_channels,
            d_model=self.d_model,
            n_layers=self.n_layers,
            attention=GroupedAttentionConfig(
                heads=heads,
                kv_heads=heads,
                head_dim=self.d_model // heads,
                bias=self.attention_bias,
                out_bias=True,
            ),
            mlp=mlp(hidden=hidden, activation=self.activation, bias=True),
            mlp_width=hidden,
            classes=self.classes,
            norm_eps=self.norm_eps,
            norm_affine=self.norm_affine,
            shared_conditioning=self.shared_conditioning,
        )
