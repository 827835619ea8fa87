"""Model families: one scanned decoder, and a folder per family holding only what differs
(config, Hugging Face names).

>>> from ziggurat import models
>>> config = models.LlamaConfig(vocab_size=512, d_model=64, n_layers=2, n_heads=4)
>>> models.LanguageModel.build(config).parameter_count
139584
"""

from ziggurat.models.diffusion_model import AutoencoderModel, DiffusionModel
from ziggurat.models.encoder_model import EncoderModel
from ziggurat.models.families.arcee import ArceeConfig
from ziggurat.models.families.autoencoder_kl import AutoencoderKLConfig
from ziggurat.models.families.bert import BertConfig
from ziggurat.models.families.clip import ClipConfig, ClipImageConfig, ClipTextConfig
from ziggurat.models.families.cohere import Cohere2Config, CohereConfig
from ziggurat.models.families.deberta import DebertaV2Config
from ziggurat.models.families.deepseek import DeepseekV2Config, DeepseekV3Config
from ziggurat.models.families.dinov2 import Dinov2Config
from ziggurat.models.families.dinov3 import Dinov3Config
from ziggurat.models.families.distilbert import DistilBertConfig
from ziggurat.models.families.dit import DitConfig
from ziggurat.models.families.electra import ElectraConfig
from ziggurat.models.families.ernie import Ernie45Config, Ernie45MoeConfig
from ziggurat.models.families.exaone4 import Exaone4Config
from ziggurat.models.families.falcon import FalconConfig
from ziggurat.models.families.family import (
    FAMILIES,
    Family,
    family_for_architecture,
    family_for_config,
    family_of,
)
from ziggurat.models.families.gemma import Gemma2Config, Gemma3Config, GemmaConfig
from ziggurat.models.families.gemma4 import Gemma4Config
from ziggurat.models.families.gemma_vision import Gemma3VisionConfig
from ziggurat.models.families.glm import Glm4Config, GlmConfig
from ziggurat.models.families.glm_moe import Dots1Config, Glm4MoeConfig, SolarOpenConfig
from ziggurat.models.families.gpt2 import Gpt2Config
from ziggurat.models.families.gpt_neox import GPTNeoXConfig
from ziggurat.models.families.gpt_oss import GptOssConfig
from ziggurat.models.families.granite import GraniteConfig
from ziggurat.models.families.granite_hybrid import GraniteHybridConfig
from ziggurat.models.families.granite_moe import GraniteMoeConfig
from ziggurat.models.families.helium import HeliumConfig
from ziggurat.models.families.hunyuan_dense import HunyuanDenseConfig
from ziggurat.models.families.hunyuan_moe import HunyuanMoeConfig
from ziggurat.models.families.lfm2 import Lfm2Config, Lfm2MoeConfig
from ziggurat.models.families.llama import LlamaConfig
from ziggurat.models.families.llava import LlavaConfig
from ziggurat.models.families.mamba2 import Mamba2ModelConfig
from ziggurat.models.families.minimax import MiniMaxM2Config
from ziggurat.models.families.ministral import Ministral3Config, MinistralConfig
from ziggurat.models.families.mixtral import MixtralConfig
from ziggurat.models.families.modernbert import ModernBertConfig
from ziggurat.models.families.mpnet import MPNetConfig
from ziggurat.models.families.nemotron import NemotronConfig
from ziggurat.models.families.nomic import NomicConfig
from ziggurat.models.families.olmo import Olmo2Config, Olmo3Config
from ziggurat.models.families.olmoe import OlmoeConfig
from ziggurat.models.families.opt import OptConfig
from ziggurat.models.families.phi import PhiConfig
from ziggurat.models.families.phi3 import Phi3Config
from ziggurat.models.families.pixtral import (
    LlavaPixtralConfig,
    Mistral3Config,
    PixtralVisionConfig,
)
from ziggurat.models.families.qwen import Qwen2Config, Qwen3Config
from ziggurat.models.families.qwen_hybrid import (
    Qwen3NextConfig,
    Qwen35Config,
    Qwen35MoeConfig,
)
from ziggurat.models.families.qwen_moe import Qwen2MoeConfig, Qwen3MoeConfig
from ziggurat.models.families.qwen_vl import (
    Qwen3MoeVLConfig,
    Qwen3VisionConfig,
    Qwen3VLConfig,
    Qwen25VisionConfig,
    Qwen25VLConfig,
    Qwen35MoeVLConfig,
    Qwen35VLConfig,
)
from ziggurat.models.families.roberta import RobertaConfig
from ziggurat.models.families.seed_oss import SeedOssConfig
from ziggurat.models.families.siglip import SiglipConfig, SiglipImageConfig, SiglipTextConfig
from ziggurat.models.families.smollm3 import SmolLM3Config
from ziggurat.models.families.stablelm import StableLmConfig
from ziggurat.models.families.starcoder2 import Starcoder2Config
from ziggurat.models.families.vit import VitConfig
from ziggurat.models.families.whisper import WhisperConfig
from ziggurat.models.image_embedder import ImageEmbedder
from ziggurat.models.language_model import LanguageModel, ModelConfig, Params
from ziggurat.models.speech_model import SpeechModel
from ziggurat.models.text_embedder import TextEmbedder
from ziggurat.models.text_scorer import CrossEncoder, VectorScorer
from ziggurat.models.transcriber import Transcriber
from ziggurat.models.two_tower_model import TwoTowerModel
from ziggurat.models.vision_language_model import VisionLanguageModel

__all__ = [
    "FAMILIES",
    "ArceeConfig",
    "AutoencoderKLConfig",
    "AutoencoderModel",
    "BertConfig",
    "ClipConfig",
    "ClipImageConfig",
    "ClipTextConfig",
    "Cohere2Config",
    "CohereConfig",
    "CrossEncoder",
    "DebertaV2Config",
    "DeepseekV2Config",
    "DeepseekV3Config",
    "DiffusionModel",
    "Dinov2Config",
    "Dinov3Config",
    "DistilBertConfig",
    "DitConfig",
    "Dots1Config",
    "ElectraConfig",
    "EncoderModel",
    "Ernie45Config",
    "Ernie45MoeConfig",
    "Exaone4Config",
    "FalconConfig",
    "Family",
    "GPTNeoXConfig",
    "Gemma2Config",
    "Gemma3Config",
    "Gemma3VisionConfig",
    "Gemma4Config",
    "GemmaConfig",
    "Glm4Config",
    "Glm4MoeConfig",
    "GlmConfig",
    "Gpt2Config",
    "GptOssConfig",
    "GraniteConfig",
    "GraniteHybridConfig",
    "GraniteMoeConfig",
    "HeliumConfig",
    "HunyuanDenseConfig",
    "HunyuanMoeConfig",
    "ImageEmbedder",
    "LanguageModel",
    "Lfm2Config",
    "Lfm2MoeConfig",
    "LlamaConfig",
    "LlavaConfig",
    "LlavaPixtralConfig",
    "MPNetConfig",
    "Mamba2ModelConfig",
    "MiniMaxM2Config",
    "Ministral3Config",
    "MinistralConfig",
    "Mistral3Config",
    "MixtralConfig",
    "ModelConfig",
    "ModernBertConfig",
    "NemotronConfig",
    "NomicConfig",
    "Olmo2Config",
    "Olmo3Config",
    "OlmoeConfig",
    "OptConfig",
    "Params",
    "Phi3Config",
    "PhiConfig",
    "PixtralVisionConfig",
    "Qwen2Config",
    "Qwen2MoeConfig",
    "Qwen3Config",
    "Qwen3MoeConfig",
    "Qwen3MoeVLConfig",
    "Qwen3NextConfig",
    "Qwen3VLConfig",
    "Qwen3VisionConfig",
    "Qwen25VLConfig",
    "Qwen25VisionConfig",
    "Qwen35Config",
    "Qwen35MoeConfig",
    "Qwen35MoeVLConfig",
    "Qwen35VLConfig",
    "RobertaConfig",
    "SeedOssConfig",
    "SiglipConfig",
    "SiglipImageConfig",
    "SiglipTextConfig",
    "SmolLM3Config",
    "SolarOpenConfig",
    "SpeechModel",
    "StableLmConfig",
    "Starcoder2Config",
    "TextEmbedder",
    "Transcriber",
    "TwoTowerModel",
    "VectorScorer",
    "VisionLanguageModel",
    "VitConfig",
    "WhisperConfig",
    "family_for_architecture",
    "family_for_config",
    "family_of",
]
