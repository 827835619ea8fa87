"""The DiT family: class-conditional diffusion transformers."""

from ziggurat.models.dit.config import DitConfig

__all__ = ["DitConfig"]
