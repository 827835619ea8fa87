"""Ministral in Hugging Face's ``config.json`` and safetensors."""

from collections.abc import Mapping
from typing import Any

from ziggurat.core.errors import ModelError
from ziggurat.models.conversion.hf_config import HFConfig, checked
from ziggurat.models.conversion.rotary_settings import hf_rope, hf_rope_parameters
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.decoder_fields import (
    decoder_names,
    read_fields,
    read_rotary,
    read_windows,
    same_reach,
    write_fields,
    write_windows,
)
from ziggurat.models.families.ministral.config import (
    Ministral3Config,
    MinistralConfig,
    ministral3_rope,
)

FORMS = ("rope_scaling", "rope_parameters")
GROWTH = "llama_4_scaling_beta"


def from_hf(values: Mapping[str, Any]) -> MinistralConfig | Ministral3Config:
    """``config.json`` of ``MinistralForCausalLM`` or ``Ministral3ForCausalLM`` to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    if hf.model_type == "ministral3":
        return _ministral3(values)
    settings = read_fields(hf)
    settings |= read_rotary(hf, settings["max_sequence_length"])
    window = hf.get("sliding_window")
    kind = "full_attention" if window is None else "sliding_attention"
    settings |= read_windows(hf, [kind] * hf.whole("num_hidden_layers"), window)
    hf.finish()
    return checked(MinistralConfig, settings, "config.json")


def _ministral3(values: Mapping[str, Any]) -> Ministral3Config:
    """Growth of queries stands among the rotary settings; without any, those of the 2025 models
    are meant."""
    form = next((values[key] for key in FORMS if values.get(key)), None)
    if form is None:
        form = hf_rope_parameters(ministral3_rope()) | {GROWTH: 0.1}
    if not isinstance(form, Mapping) or GROWTH not in form:
        raise ModelError(
            "config.json: rope_parameters", found=repr(form), expected=f"a table with {GROWTH}"
        )
    apart = (GROWTH, "max_position_embeddings")  # the latter repeats what stands beside
    rotary = {key: value for key, value in form.items() if key not in apart}
    rest = {key: value for key, value in values.items() if key not in FORMS}
    hf = HFConfig(rest | {"rope_parameters": rotary})
    settings = read_fields(hf)
    settings |= read_rotary(hf, settings["max_sequence_length"])
    original = form.get("original_max_position_embeddings")
    if form.get("rope_type", form.get("type")) in ("yarn", "llama3", "longrope"):
        beside = hf.get("original_max_position_embeddings")
        original = beside or original or settings["max_sequence_length"]
    settings |= {"query_growth": form[GROWTH], "query_growth_length": original or 0}
    window = hf.get("sliding_window")
    same_reach(hf, window)
    settings |= {"window": window, "pattern": ("global" if window is None else "local",)}
    hf.finish()
    return checked(Ministral3Config, settings, "config.json")


def to_hf(config: MinistralConfig | Ministral3Config) -> dict[str, Any]:
    """Config to ``config.json``.

    Raises:
        ModelError: Ministral 3 whose layers differ, which transformers does not have.
    """
    if isinstance(config, MinistralConfig):
        name = {"architectures": ["MinistralForCausalLM"], "model_type": "ministral"}
        return name | write_fields(config) | hf_rope(config.rope) | write_windows(config)
    if len(set(config.reaches)) > 1:
        raise ModelError(
            "export to Hugging Face: pattern",
            found=config.pattern,
            expected="layers that are alike",
        )
    growth = {
        GROWTH: config.query_growth,
        "original_max_position_embeddings": config.query_growth_length,
    }
    return {
        "architectures": ["Ministral3ForCausalLM"],
        "model_type": "ministral3",
        **write_fields(config),
        "rope_parameters": growth | hf_rope_parameters(config.rope),
        "sliding_window": config.window,
    }


def hf_names(config: MinistralConfig | Ministral3Config) -> list[WeightName]:
    """Weight names in safetensors files."""
    return decoder_names(config.decoder())
