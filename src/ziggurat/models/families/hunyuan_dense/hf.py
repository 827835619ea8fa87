"""Hunyuan in Hugging Face's ``config.json`` and safetensors."""

from collections.abc import Mapping
from typing import Any

from ziggurat.models.conversion import block_names
from ziggurat.models.conversion.hf_config import HFConfig, checked
from ziggurat.models.conversion.rotary_settings import hf_rope
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.decoder_fields import (
    decoder_names,
    read_fields,
    read_rotary,
    write_fields,
)
from ziggurat.models.families.hunyuan_dense.config import HunyuanDenseConfig
from ziggurat.nn.rope import NtkScaling, RopeConfig

OF_PUBLISHED = {
    "add_classification_head": (False,),
    "cla_share_factor": (2,),
    "mlp_bias": (False,),
    "norm_type": ("rms", "hf_rms", "fused"),
    "position_embedding_xdrope": (False,),
    "use_cla": (False,),
    "use_qk_norm": (True,),
    "use_rotary_pos_emb": (True,),
}
"""Keys of Tencent's own code in published files, which say what the architecture is anyway."""


def from_hf(values: Mapping[str, Any]) -> HunyuanDenseConfig:
    """``config.json`` of ``HunYuanDenseV1ForCausalLM`` to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    alpha, rest = split_alpha(values)
    hf = HFConfig(rest)
    for key, said in OF_PUBLISHED.items():
        hf.refuse_unless(key, said)
    settings = read_fields(hf)
    hf.refuse_unless("attention_head_dim", (settings["head_dim"],), "it is head_dim")
    settings |= read_rotary(hf, settings["max_sequence_length"])
    if alpha is not None:
        theta = settings["rope"].theta
        settings["rope"] = RopeConfig(theta=theta, scaling=NtkScaling(alpha=alpha))
    settings["attention_bias"] = hf.get("attention_bias")
    hf.finish()
    return checked(HunyuanDenseConfig, settings, "config.json")


def split_alpha(values: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """``alpha`` of rotary settings of type dynamic, by which they are NTK-aware scaling, and the
    config without that scaling."""
    forms = ("rope_scaling", "rope_parameters")  # the former goes before the latter
    form = next((values[key] for key in forms if values.get(key)), None)
    if not isinstance(form, Mapping) or "alpha" not in form:
        return None, dict(values)
    rest = {key: value for key, value in values.items() if key not in forms}
    dynamic = form.get("rope_type", form.get("type")) == "dynamic"
    found = form["alpha"] if dynamic and form["alpha"] else None
    kept = ("rope_theta",) if found is not None else tuple(form.keys() - {"alpha"})
    rest["rope_parameters"] = {key: form[key] for key in kept if key in form}
    return found, rest


def to_hf(config: HunyuanDenseConfig) -> dict[str, Any]:
    """Config to ``config.json``."""
    return {
        "architectures": ["HunYuanDenseV1ForCausalLM"],
        "model_type": "hunyuan_v1_dense",
        **write_fields(config),
        **hf_rope(config.rope),
        "attention_bias": config.attention_bias,
    }


def hf_names(config: HunyuanDenseConfig) -> list[WeightName]:
    """Weight names in safetensors files."""
    names = decoder_names(config.decoder())
    norms = {
        f"self_attn.{name[0]}_norm": f"self_attn.{name}_layernorm" for name in ("query", "key")
    }
    return block_names.renamed(names, norms)
