"""Hunyuan V1 with mixtures of experts in Hugging Face's ``config.json`` and safetensors."""

from collections.abc import Mapping
from typing import Any

from ziggurat.core.errors import ModelError
from ziggurat.models.conversion import block_names
from ziggurat.models.conversion.hf_config import HFConfig, checked
from ziggurat.models.conversion.rotary_settings import hf_rope
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.decoder_fields import read_fields, read_rotary, write_fields
from ziggurat.models.families.hunyuan_dense.hf import OF_PUBLISHED, split_alpha
from ziggurat.models.families.hunyuan_moe.config import HunyuanMoeConfig
from ziggurat.models.families.mixture_fields import feed_forward_names
from ziggurat.nn.attention import GroupedAttentionConfig
from ziggurat.nn.rope import NtkScaling, RopeConfig

OF_MIXTURES: dict[str, tuple[Any, ...]] = {
    "use_mla": (False,),
    "use_mixed_mlp_moe": (True,),
    "moe_layer_num_skipped": (0,),
    "group_limited_greedy": (False,),
}
"""More such keys, of models with experts."""


def from_hf(values: Mapping[str, Any]) -> HunyuanMoeConfig:
    """``config.json`` of ``HunYuanMoEV1ForCausalLM`` to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    alpha, rest = split_alpha(values)
    hf = HFConfig(rest)
    for key, said in (OF_PUBLISHED | OF_MIXTURES).items():
        hf.refuse_unless(key, said)
    settings = read_fields(hf)
    layers = settings["n_layers"]
    hf.refuse_unless("attention_head_dim", (settings["head_dim"],), "it is head_dim")
    settings |= read_rotary(hf, settings["max_sequence_length"])
    if alpha is not None:
        theta = settings["rope"].theta
        settings["rope"] = RopeConfig(theta=theta, scaling=NtkScaling(alpha=alpha))
    settings |= {
        "attention_bias": hf.get("attention_bias"),
        "n_experts": _of_every_layer(hf, "num_experts", layers),
        "experts_per_token": _of_every_layer(hf, "moe_topk", layers),
    }
    for key, expected in (("moe_intermediate_size", settings["d_ff"]), ("num_shared_expert", 1)):
        found = _of_every_layer(hf, key, layers)
        if found not in (None, expected):
            raise ModelError(f"config.json: {key}", found=found, expected=expected)
    hf.finish()
    return checked(HunyuanMoeConfig, settings, "config.json")


def _of_every_layer(hf: HFConfig, key: str, layers: Any) -> Any:
    """A number, or the one that all entries of a list by layer are.

    Raises:
        ModelError: layers differ.
    """
    value = hf.get(key)
    if not isinstance(value, list):
        return value
    if len(value) < layers or len({str(entry) for entry in value[:layers]}) != 1:
        raise ModelError(
            f"config.json: {key}", found=value, expected="one number, the same in every layer"
        )
    return value[0]


def to_hf(config: HunyuanMoeConfig) -> dict[str, Any]:
    """Config to ``config.json``."""
    return {
        "architectures": ["HunYuanMoEV1ForCausalLM"],
        "model_type": "hunyuan_v1_moe",
        **write_fields(config),
        **hf_rope(config.rope),
        "attention_bias": config.attention_bias,
        "num_experts": config.n_experts,
        "moe_topk": config.experts_per_token,
    }


def hf_names(config: HunyuanMoeConfig) -> list[WeightName]:
    """Weight names in safetensors files."""
    d = config.decoder()
    (block,) = d.stacks
    ((stack, layers),) = block_names.stacked_layers(d).items()
    assert isinstance(block.mixer, GroupedAttentionConfig)
    norms = {f"self_attn.{n[0]}_norm": f"self_attn.{n}_layernorm" for n in ("query", "key")}
    attention = block_names.grouped_attention(stack, block.mixer, layers)
    return [
        *block_names.ends(d),
        *block_names.scales(stack, block_names.PRE_NORMS, layers),
        *block_names.renamed(attention, norms),
        *feed_forward_names(stack, block.mlp, layers, router="gate.wg", shared="shared_mlp"),
    ]
