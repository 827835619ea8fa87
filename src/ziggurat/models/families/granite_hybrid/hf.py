"""Granite 4 in Hugging Face's ``config.json`` and safetensors."""

from collections.abc import Mapping
from typing import Any

from ziggurat.core.errors import ModelError
from ziggurat.models.conversion import block_names
from ziggurat.models.conversion.hf_config import HFConfig, checked
from ziggurat.models.conversion.rotary_settings import hf_rope, read_rope
from ziggurat.models.conversion.weight_names import AxisSlice, WeightName
from ziggurat.models.families.decoder_fields import read_fields, write_fields
from ziggurat.models.families.granite_hybrid.config import GraniteHybridConfig
from ziggurat.models.families.mamba_fields import hf_mamba, mamba_names, read_mamba
from ziggurat.nn.attention import GroupedAttentionConfig
from ziggurat.nn.mamba2 import Mamba2Config

KEYS = {
    "attention_bias": "attention_bias",
    "n_experts": "num_local_experts",
    "experts_per_token": "num_experts_per_tok",
    "d_ff_expert": "intermediate_size",
    "d_ff": "shared_intermediate_size",
    "embedding_scale": "embedding_multiplier",
    "attention_scale": "attention_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_divisor": "logits_scaling",
}
"""Config fields and keys of one value."""
ATTENTION = {"attention": True, "full_attention": True, "mamba": False, "linear_attention": False}
"""Types of layers, and whether they attend."""


def from_hf(values: Mapping[str, Any]) -> GraniteHybridConfig:
    """``config.json`` of ``GraniteMoeHybridForCausalLM`` to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    settings = read_fields(hf) | {ours: hf.get(theirs) for ours, theirs in KEYS.items()}
    positions = hf.get("position_embedding_type")
    hf.refuse_unless("position_embedding_type", ("rope", "nope"))
    settings |= read_mamba(hf, hf.whole("hidden_size")) | {
        "rotary": positions == "rope",
        "rope": read_rope(hf, settings["max_sequence_length"]),
        "attention_layers": _attention_layers(hf),
    }
    hf.finish()
    return checked(GraniteHybridConfig, settings, "config.json")


def _attention_layers(hf: HFConfig) -> list[int]:
    """Numbers of the layers with attention.

    Raises:
        ModelError: another number of entries than layers, or a type that is not known.
    """
    layers = hf.whole("num_hidden_layers")
    types = hf.get("layer_types", ["mamba"] * layers)
    if not isinstance(types, list) or len(types) != layers or not ATTENTION.keys() >= set(types):
        expected = f"{layers} of " + ", ".join(ATTENTION)
        raise ModelError("config.json: layer_types", found=repr(types), expected=expected)
    return [number for number, kind in enumerate(types) if ATTENTION[kind]]


def to_hf(config: GraniteHybridConfig) -> dict[str, Any]:
    """Config to ``config.json``."""
    return {
        "architectures": ["GraniteMoeHybridForCausalLM"],
        "model_type": "granitemoehybrid",
        **write_fields(config),
        **hf_rope(config.rope),
        **hf_mamba(config, config.d_model),
        **{theirs: getattr(config, ours) for ours, theirs in KEYS.items()},
        "shared_intermediate_size": config.mlp().hidden,
        "position_embedding_type": "rope" if config.rotary else None,
        "layer_types": [
            "full_attention" if n in config.attention_layers else "linear_attention"
            for n in range(config.n_layers)
        ],
    }


def hf_names(config: GraniteHybridConfig) -> list[WeightName]:
    """Weight names in safetensors files; gate and up are one tensor there."""
    d = config.decoder()
    names = block_names.ends(d)
    for (stack, layers), block in zip(block_names.stacked_layers(d).items(), d.stacks):
        norms = {
            f"{block.mixer.name}_norm": "input_layernorm",
            "mlp_norm": "post_attention_layernorm",
        }
        names += block_names.scales(stack, norms, layers)
        if isinstance(block.mixer, GroupedAttentionConfig):
            names += block_names.grouped_attention(stack, block.mixer, layers)
        else:
            assert isinstance(block.mixer, Mamba2Config)
            names += mamba_names(stack, block.mixer, layers, "mamba")
        shared = config.mlp().hidden
        if config.n_experts == 0:
            names += _fused(stack, "mlp", "shared_mlp", shared, layers)
            continue
        names += _fused(stack, "mlp.shared", "shared_mlp", shared, layers)
        there = "block_sparse_moe"
        router = {"mlp.router": f"{there}.router.layer"}
        names += block_names.projections(stack, router, layers)
        names += _fused(stack, "mlp.experts", there, config.d_ff_expert, layers)
    return names


def _fused(
    stack: str, ours: str, theirs: str, hidden: int, layers: block_names.Layers
) -> list[WeightName]:
    """Gate and up as one tensor ``[..., 2 f, d]``, and down."""
    here, there = f"{stack}.{ours}.", f"{block_names.LAYER}{theirs}."
    parts = {"gate": slice(0, hidden), "up": slice(hidden, 2 * hidden)}
    names = [
        WeightName(
            f"{here}{name}.kernel",
            f"{there}input_linear.weight",
            transpose=True,
            layers=layers,
            part=AxisSlice(-2, part),
        )
        for name, part in parts.items()
    ]
    down = f"{there}output_linear.weight"
    return [*names, WeightName(f"{here}down.kernel", down, transpose=True, layers=layers)]
