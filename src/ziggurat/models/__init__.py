"""Model families: one scanned decoder, and a folder per family holding only what differs
(config, Hugging Face names).

>>> from ziggurat import models
>>> config = models.LlamaConfig(vocab_size=512, d_model=64, n_layers=2, n_heads=4)
>>> models.LanguageModel.build(config).parameter_count
139584
"""

from ziggurat.models.diffusion_model import AutoencoderModel, DiffusionModel
from ziggurat.models.encoder_model import EncoderModel
from ziggurat.models.families.autoencoder_kl import AutoencoderKLConfig
from ziggurat.models.families.bert import BertConfig
from ziggurat.models.families.deepseek import DeepseekV3Config
from ziggurat.models.families.dit import DitConfig
from ziggurat.models.families.family import (
    FAMILIES,
    Family,
    family_for_architecture,
    family_for_config,
    family_of,
)
from ziggurat.models.families.gemma import Gemma2Config, Gemma3Config
from ziggurat.models.families.gpt2 import Gpt2Config
from ziggurat.models.families.gpt_oss import GptOssConfig
from ziggurat.models.families.llama import LlamaConfig
from ziggurat.models.families.mixtral import MixtralConfig
from ziggurat.models.families.qwen import Qwen2Config, Qwen3Config
from ziggurat.models.families.qwen_moe import Qwen3MoeConfig
from ziggurat.models.language_model import LanguageModel, ModelConfig, Params
from ziggurat.models.text_embedder import TextEmbedder

__all__ = [
    "FAMILIES",
    "AutoencoderKLConfig",
    "AutoencoderModel",
    "BertConfig",
    "DeepseekV3Config",
    "DiffusionModel",
    "DitConfig",
    "EncoderModel",
    "Family",
    "Gemma2Config",
    "Gemma3Config",
    "Gpt2Config",
    "GptOssConfig",
    "LanguageModel",
    "LlamaConfig",
    "MixtralConfig",
    "ModelConfig",
    "Params",
    "Qwen2Config",
    "Qwen3Config",
    "Qwen3MoeConfig",
    "TextEmbedder",
    "family_for_architecture",
    "family_for_config",
    "family_of",
]
