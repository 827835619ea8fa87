"""AutoencoderKL: the autoencoders of latent diffusion."""

from ziggurat.models.families.autoencoder_kl.config import AutoencoderKLConfig

__all__ = ["AutoencoderKLConfig"]
