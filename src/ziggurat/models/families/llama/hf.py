"""Llama and Mistral in Hugging Face's ``config.json`` and safetensors."""

from collections.abc import Mapping
from typing import Any

from ziggurat.core.errors import ModelError
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
from ziggurat.models.families.llama.config import LlamaConfig


def from_hf(values: Mapping[str, Any]) -> LlamaConfig:
    """``config.json`` of ``LlamaForCausalLM`` or ``MistralForCausalLM`` to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    mistral = hf.model_type == "mistral"
    settings = read_fields(hf)
    settings |= read_rotary(hf, settings["max_sequence_length"])
    if mistral:
        settings["window"] = hf.get("sliding_window")
    else:
        settings |= {key: hf.get(key) for key in ("attention_bias", "mlp_bias")}
    same_reach(hf, settings.get("window"))
    hf.finish()
    return checked(LlamaConfig, settings, "config.json")


def to_hf(config: LlamaConfig) -> dict[str, Any]:
    """Config to ``config.json``: Mistral where a sliding window is set, Llama otherwise.

    Raises:
        ModelError: a window together with biases, or a mixer other than attention, which no
            published architecture of the family has.
    """
    _refuse_mixer(config)
    mistral = config.window is not None
    if mistral and (config.attention_bias or config.mlp_bias):
        raise ModelError(
            "export to Hugging Face",
            found="a sliding window together with biases",
            expected="one of the two",
        )
    values = {
        "architectures": ["MistralForCausalLM" if mistral else "LlamaForCausalLM"],
        "model_type": "mistral" if mistral else "llama",
        **write_fields(config),
        **hf_rope(config.rope),
    }
    if mistral:
        return values | {"sliding_window": config.window}
    return values | {"attention_bias": config.attention_bias, "mlp_bias": config.mlp_bias}


def hf_names(config: LlamaConfig) -> list[WeightName]:
    """Weight names in safetensors files.

    Raises:
        ModelError: the model has another mixer than attention.
    """
    _refuse_mixer(config)
    return decoder_names(config.decoder())


def _refuse_mixer(config: LlamaConfig) -> None:
    if config.mixer is not None:
        raise ModelError(
            "names and settings of Hugging Face",
            found=f"model.mixer of kind {config.mixer.kind}",
            expected="attention, as all published models of the family have",
            fix="keep the model as a run; generate, eval and serve read it",
        )
