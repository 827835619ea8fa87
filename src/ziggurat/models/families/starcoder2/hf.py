"""StarCoder2 in Hugging Face's ``config.json`` and safetensors."""

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
    same_reach,
    write_fields,
)
from ziggurat.models.families.starcoder2.config import Starcoder2Config

EPS = "norm_epsilon"
MLP = {"mlp.up_proj": "mlp.c_fc", "mlp.down_proj": "mlp.c_proj"}
OF_PUBLISHED = {
    "activation_function": ("gelu",),
    "attention_softmax_in_fp32": (True,),
    "mlp_type": ("default",),
    "norm_type": ("layer_norm",),
    "scale_attention_softmax_in_fp32": (True,),
    "scale_attn_weights": (True,),
}
"""Keys that older published files hold, with the values that the architecture has anyway."""


def from_hf(values: Mapping[str, Any]) -> Starcoder2Config:
    """``config.json`` of ``Starcoder2ForCausalLM`` to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    settings = read_fields(hf, eps=EPS)
    settings |= read_rotary(hf, settings["max_sequence_length"])
    settings |= {"bias": hf.get("use_bias"), "window": hf.get("sliding_window")}
    same_reach(hf, settings["window"])
    for key, said in OF_PUBLISHED.items():
        hf.refuse_unless(key, said)
    hf.refuse_unless("layer_norm_epsilon", (settings["norm_eps"],), f"it is {EPS}")
    hf.finish()
    return checked(Starcoder2Config, settings, "config.json")


def to_hf(config: Starcoder2Config) -> dict[str, Any]:
    """Config to ``config.json``."""
    return {
        "architectures": ["Starcoder2ForCausalLM"],
        "model_type": "starcoder2",
        **write_fields(config, eps=EPS, mlp=config.plain_mlp()),
        **hf_rope(config.rope),
        "use_bias": config.bias,
        "sliding_window": config.window,
    }


def hf_names(config: Starcoder2Config) -> list[WeightName]:
    """Weight names in safetensors files."""
    return block_names.renamed(decoder_names(config.decoder()), MLP)
