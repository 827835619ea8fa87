"""Model families: one scanned decoder, and a folder per family holding only what differs
(config, Hugging Face names).

>>> from ziggurat import models
>>> config = models.LlamaConfig(vocab_size=512, d_model=64, n_layers=2, n_heads=4)
>>> models.LanguageModel.build(config).parameter_count
139584
"""

from ziggurat.models.family import FAMILIES, Family, family_for_architecture, family_of
from ziggurat.models.language_model import LanguageModel, ModelConfig, Params
from ziggurat.models.llama import LlamaConfig

__all__ = [
    "FAMILIES",
    "Family",
    "LanguageModel",
    "LlamaConfig",
    "ModelConfig",
    "Params",
    "family_for_architecture",
    "family_of",
]
