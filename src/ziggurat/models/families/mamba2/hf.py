"""Mamba-2 in Hugging Face's ``config.json`` and safetensors."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ziggurat.core.errors import ModelError
from ziggurat.models.conversion import block_names
from ziggurat.models.conversion.hf_config import HFConfig, activation, checked, hf_activation
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.mamba2.config import Mamba2ModelConfig
from ziggurat.models.families.mamba_fields import hf_step_limits, mamba_names, read_step_limits
from ziggurat.nn.mamba2 import Mamba2Config

KEYS = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "mamba_heads": "num_heads",
    "mamba_head_dim": "head_dim",
    "mamba_groups": "n_groups",
    "mamba_state_dim": "state_size",
    "mamba_taps": "conv_kernel",
    "mamba_bias": "use_bias",
    "mamba_convolution_bias": "use_conv_bias",
    "tie_embeddings": "tie_word_embeddings",
    "norm_eps": "layer_norm_epsilon",
    "init_std": "initializer_range",
}
"""Config fields and keys of one value."""
INERT = (
    "chunk_size",  # how long the chunks are in which the same is computed
    "intermediate_size",  # follows from ``expand``
    "norm_before_gate",  # transformers' norm comes after the gate, whatever this key says
    "rescale_prenorm_residual",  # initial weights
    "residual_in_fp32",  # the type of computing's own matter
    "time_step_floor",  # initial weights, as all of the following
    "time_step_init_scheme",
    "time_step_rank",
    "time_step_scale",
)
"""Keys that change no result."""


def from_hf(values: Mapping[str, Any]) -> Mamba2ModelConfig:
    """``config.json`` of ``Mamba2ForCausalLM`` to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    settings = {ours: hf.get(theirs) for ours, theirs in KEYS.items()}
    channels = hf.whole("num_heads", 128) * hf.whole("head_dim", 64)
    width, expand = hf.whole("hidden_size", 4096), hf.whole("expand", 2)
    if expand * width != channels:
        raise ModelError(
            "config.json: expand",
            found=f"{expand} times hidden_size = {width}",
            expected=f"num_heads times head_dim = {channels}",
        )
    settings |= read_step_limits(hf) | {
        "mamba_activation": activation(hf),
        "initial_steps": _initial_steps(hf),
    }
    hf.refuse_unless("rms_norm", (True,), "the output is always normalised here")
    for key in INERT:
        hf.given(key)
    hf.finish()
    return checked(Mamba2ModelConfig, settings, "config.json")


def _initial_steps(hf: HFConfig) -> tuple[Any, Any]:
    """Ends of the interval that initial steps are drawn from, in whichever order they stand."""
    first, last = hf.get("time_step_min"), hf.get("time_step_max")
    numbers = all(isinstance(end, (int, float)) for end in (first, last))
    return (last, first) if numbers and last < first else (first, last)


def to_hf(config: Mamba2ModelConfig) -> dict[str, Any]:
    """Config to ``config.json``."""
    smallest, largest = config.initial_steps
    heads = config.heads_of(config.d_model)
    return {
        "architectures": ["Mamba2ForCausalLM"],
        "model_type": "mamba2",
        **{theirs: getattr(config, ours) for ours, theirs in KEYS.items()},
        "num_heads": heads,
        "expand": heads * config.mamba_head_dim // config.d_model,
        "hidden_act": hf_activation(config.mamba_activation),
        "time_step_limit": hf_step_limits(config),
        "time_step_min": smallest,
        "time_step_max": largest,
    }


def hf_names(config: Mamba2ModelConfig) -> list[WeightName]:
    """Weight names in safetensors files."""
    d = config.decoder()
    ((stack, layers),) = block_names.stacked_layers(d).items()
    mixer = d.layers[0].block.mixer
    assert isinstance(mixer, Mamba2Config)
    names = block_names.ends(d, embedding="embeddings", norm="norm_f")
    names += block_names.scales(stack, {"mamba_norm": "norm"}, layers)
    names += mamba_names(stack, mixer, layers, "mixer")
    return [_under_backbone(name) for name in names]


def _under_backbone(name: WeightName) -> WeightName:
    theirs = name.theirs
    if theirs.startswith("model."):
        theirs = "backbone." + theirs.removeprefix("model.")
    return dataclasses.replace(name, theirs=theirs)
