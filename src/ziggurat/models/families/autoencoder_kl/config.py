"""AutoencoderKL: between images and the latents that a diffusion model works on."""

from typing import Literal

from ziggurat.core import config
from ziggurat.nn.image_autoencoder import ImageAutoencoderConfig
from ziggurat.nn.mlp import Activation


@config.node
class AutoencoderKLConfig:
    """Convolutions down to a Gaussian over latents, and up again.

    Paper: Rombach et al. 2022, https://arxiv.org/abs/2112.10752.
    """

    kind: Literal["autoencoder_kl"] = "autoencoder_kl"
    in_channels: int = 3
    """Channels of an image that is encoded."""
    out_channels: int = 3
    """Channels of an image that is decoded."""
    latent_channels: int = 4
    """Channels of the latents."""
    level_channels: tuple[int, ...] = (64,)
    """Channels of each level, finest first; each but the last halves rows and columns."""
    blocks_per_level: int = 1
    """Residual blocks of a level of the encoder; the decoder's have one more."""
    groups: int = 32
    """Groups of channels in norms."""
    activation: Activation = "silu"
    """Function in residual blocks."""
    middle_attention: bool = True
    """Attention at the coarsest level."""
    quant: bool = True
    """A 1 x 1 convolution behind the encoder."""
    post_quant: bool = True
    """A 1 x 1 convolution before the decoder."""
    image_size: int = 32
    """Rows and columns of the images it was made for; others work too."""
    scaling: float = 0.18215
    """By which latents are multiplied for the diffusion model, so that they have unit variance."""
    shift: float = 0.0
    """Taken from the latents before that."""

    def __post_init__(self):
        levels = self.level_channels
        config.require(bool(levels), "level_channels", levels, "at least one")
        for name in ("in_channels", "out_channels", "latent_channels", "blocks_per_level"):
            config.require(getattr(self, name) >= 1, name, getattr(self, name), "a number >= 1")
        config.require(self.groups >= 1, "groups", self.groups, "a number >= 1")
        for channels in levels:
            whole = channels >= 1 and channels % self.groups == 0
            config.require(whole, "level_channels", channels, f"multiples of {self.groups} groups")
        config.require(self.scaling > 0, "scaling", self.scaling, "more than 0")
        config.require(self.image_size >= 1, "image_size", self.image_size, "a number >= 1")

    @property
    def shrink(self) -> int:
        """Rows of an image for each row of its latents."""
        return 2 ** (len(self.level_channels) - 1)

    def autoencoder(self) -> ImageAutoencoderConfig:
        """The networks this config stands for."""
        return ImageAutoencoderConfig(
            in_channels=self.in_channels,
            out_channels=self.out_channels,
            latent_channels=self.latent_channels,
            channels=self.level_channels,
            blocks_per_level=self.blocks_per_level,
            groups=self.groups,
            activation=self.activation,
            middle_attention=self.middle_attention,
            quant=self.quant,
            post_quant=self.post_quant,
        )
