"""The DiT family: class-conditional diffusion transformers."""

from ziggurat.models.families.dit.config import DitConfig

__all__ = ["DitConfig"]
