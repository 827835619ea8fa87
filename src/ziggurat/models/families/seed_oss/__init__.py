"""The Seed-OSS family."""

from ziggurat.models.families.family import FAMILIES, Family
from ziggurat.models.families.seed_oss import hf
from ziggurat.models.families.seed_oss.config import SeedOssConfig

FAMILIES.add(
    "seed_oss",
    Family(
        name="seed_oss",
        config_class=SeedOssConfig,
        architectures=("SeedOssForCausalLM",),
        from_hf=hf.from_hf,
        to_hf=hf.to_hf,
        hf_names=hf.hf_names,
    ),
)

__all__ = ["SeedOssConfig"]
