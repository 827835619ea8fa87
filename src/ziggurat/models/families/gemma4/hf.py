"""Gemma 4 (text) in Hugging Face's ``config.json`` and safetensors."""

import re
from collections.abc import Mapping
from typing import Any

from ziggurat.core.errors import ModelError
from ziggurat.models.conversion import block_names
from ziggurat.models.conversion.hf_config import HFConfig, checked
from ziggurat.models.conversion.rotary_settings import hf_ropes_by_reach, read_ropes_by_reach
from ziggurat.models.conversion.weight_names import AxisSlice, WeightName
from ziggurat.models.families.decoder_fields import (
    Reach,
    reach_of_layers,
    read_fields,
    read_pattern,
    shortest_period,
    write_fields,
    write_pattern,
)
from ziggurat.models.families.gemma.hf import ACTIVATION, NORMS, read_softcap
from ziggurat.models.families.gemma4.config import Gemma4Config
from ziggurat.nn.attention import GroupedAttentionConfig
from ziggurat.nn.mlp import GatedMlpConfig
from ziggurat.nn.moe import MixtureOfExpertsConfig
from ziggurat.nn.rope import ProportionalScaling, RopeConfig

USUAL_ROPES = (
    RopeConfig(theta=1e6, scaling=ProportionalScaling(share=0.25)),
    RopeConfig(theta=1e4),
)
"""Rotary settings of global and of local layers where a config does not say."""
EXPERTS = {
    "n_experts": "num_experts",
    "experts_per_token": "top_k_experts",
    "d_ff_expert": "moe_intermediate_size",
}
"""Settings of the mixture, ours and theirs."""
BRANCH_NORMS = {
    "mlp.shared_norm": "pre_feedforward_layernorm",
    "mlp.shared_post_norm": "post_feedforward_layernorm_1",
    "mlp.experts_norm": "pre_feedforward_layernorm_2",
    "mlp.experts_post_norm": "post_feedforward_layernorm_2",
}
"""Norms of the two branches of a sparse layer's feed-forward part, ours and theirs."""
LAYER_INPUTS = [
    WeightName("layer_inputs.table.table", "model.embed_tokens_per_layer.weight"),
    WeightName(
        "layer_inputs.project.kernel", "model.per_layer_model_projection.weight", transpose=True
    ),
    WeightName("layer_inputs.norm.scale", "model.per_layer_projection_norm.weight"),
]
"""Names of what makes the inputs of single layers."""
GATE = {
    "layer_input.gate": "per_layer_input_gate",
    "layer_input.out": "per_layer_projection",
}
"""Projections of the branch that reads a layer's own input, ours and theirs."""
GATE_NORM = {"layer_input.norm": "post_per_layer_input_norm"}
"""Norm of that branch."""


def from_hf(values: Mapping[str, Any]) -> Gemma4Config:
    """``config.json`` of ``Gemma4ForCausalLM`` to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    settings = read_fields(hf, ACTIVATION)
    hf.refuse_unless("use_bidirectional_attention", ("vision",), "attention to text is causal")
    for key in ("rope_theta", "rope_scaling", "rope_local_base_freq"):
        hf.refuse_unless(key, (), "transformers reads rope_parameters alone")
    reaches = _reaches(hf, settings["n_layers"])
    ropes = USUAL_ROPES  # transformers' where a file says nothing
    if hf.given("rope_parameters") is not None:
        ropes = read_ropes_by_reach(hf, settings["max_sequence_length"])
    dim, heads = _global_heads(hf, reaches)
    settings |= {
        "attention_bias": hf.get("attention_bias"),
        "logit_softcap": read_softcap(hf, "final_logit_softcapping"),
        "window": hf.get("sliding_window"),
        "pattern": shortest_period(reaches),
        "rope": ropes[0],
        "local_rope": ropes[1],
        "global_head_dim": dim,
        "n_global_kv_heads": heads,
        "shared_key_value": hf.get("attention_k_eq_v"),
        "sparse": hf.get("enable_moe_block"),
        **_small_models(hf, settings["vocab_size"]),
    }
    experts = {ours: hf.given(theirs) for ours, theirs in EXPERTS.items()}
    if settings["sparse"]:
        settings |= {ours: hf.need(EXPERTS[ours]) for ours in experts}
    hf.finish()
    return checked(Gemma4Config, settings, "config.json")


def _small_models(hf: HFConfig, vocab_size: Any) -> dict[str, Any]:
    """Settings of E2B and E4B, whose layers read embeddings of their own and share keys and
    values."""
    width, rows = hf.get("hidden_size_per_layer_input"), hf.get("vocab_size_per_layer_input")
    own = bool(width)
    padding = hf.get("pad_token_id") if own else None
    return {
        "layer_input_width": width,
        "layer_input_vocab_size": rows if own and rows != vocab_size else None,
        "padding_token": (padding or 0) if own else 0,
        "sharing_layers": hf.get("num_kv_shared_layers"),
        "wide_sharing_mlp": hf.get("use_double_wide_mlp"),
    }


def _reaches(hf: HFConfig, layers: Any) -> tuple[Reach, ...]:
    """Reach of each layer's attention; the last sees all, whatever the file says, as in
    transformers."""
    count = hf.whole("num_hidden_layers")
    usual = ["full_attention" if (i + 1) % 6 == 0 else "sliding_attention" for i in range(count)]
    found = reach_of_layers(read_pattern(hf, count, usual), count)
    return (*found[:-1], "global")


def _global_heads(hf: HFConfig, reaches: tuple[Reach, ...]) -> tuple[Any, Any]:
    """Channels and key/value heads of global layers: named by themselves, or layer by layer as
    transformers writes them.

    Raises:
        ModelError: layers of one reach differ, or another key differs from layer to layer.
    """
    dim, heads = hf.given("global_head_dim"), hf.given("num_global_key_value_heads")
    by_layer = hf.given("per_layer_config")
    if by_layer is None:
        shared = hf.get("attention_k_eq_v")
        return 512 if dim is None else dim, heads if shared else None
    places = {str(i) for i, reach in enumerate(reaches) if reach == "global"}
    entries = list(by_layer.values()) if isinstance(by_layer, Mapping) else []
    alike = all(entry == entries[0] for entry in entries)
    known = {"head_dim", "num_key_value_heads"}
    fits = entries and alike and set(map(str, by_layer)) == places and entries[0].keys() <= known
    if not fits:
        raise ModelError(
            "config.json: per_layer_config",
            found=repr(by_layer)[:200],
            expected="head_dim and num_key_value_heads of the layers of full attention, all alike",
        )
    return entries[0].get("head_dim", hf.get("head_dim")), entries[0].get("num_key_value_heads")


def to_hf(config: Gemma4Config) -> dict[str, Any]:
    """Config to ``config.json``."""
    values = {
        "architectures": ["Gemma4ForCausalLM"],
        "model_type": "gemma4_text",
        **write_fields(config, ACTIVATION),
        **hf_ropes_by_reach(config.rope, config.local_rope),
        "attention_bias": config.attention_bias,
        "sliding_window": config.window,
        "layer_types": write_pattern(config.pattern, config.n_layers),
        "final_logit_softcapping": config.logit_softcap or None,
        "attention_k_eq_v": config.shared_key_value,
        "hidden_size_per_layer_input": config.layer_input_width,
        "vocab_size_per_layer_input": config.layer_input_vocab_size or config.vocab_size,
        "num_kv_shared_layers": config.sharing_layers,
        "use_double_wide_mlp": config.wide_sharing_mlp,
        "enable_moe_block": config.sparse,
    }
    if config.layer_input_width:
        values["pad_token_id"] = config.padding_token
    if values["layer_types"][-1] != "full_attention":
        raise ModelError(
            "export to Hugging Face: pattern",
            found="a last layer that sees a window",
            expected="one that sees all, as transformers has it",
        )
    entry = {"head_dim": config.global_head_dim}
    if config.n_global_kv_heads is not None:
        entry["num_key_value_heads"] = config.n_global_kv_heads
    types = enumerate(values["layer_types"])
    values["per_layer_config"] = {
        str(layer): entry for layer, kind in types if kind == "full_attention"
    }
    if config.sparse:
        values |= {theirs: getattr(config, ours) for ours, theirs in EXPERTS.items()}
    return values


def hf_names(config: Gemma4Config) -> list[WeightName]:
    """Weight names in safetensors files."""
    d = config.decoder()
    names = block_names.ends(d)
    if d.layer_inputs is not None:
        names += LAYER_INPUTS
    for block, (stack, layers) in zip(d.stacks, block_names.stacked_layers(d).items()):
        attention, mlp = block.mixer, block.mlp
        assert isinstance(attention, GroupedAttentionConfig)
        scale = f"{block_names.LAYER}layer_scalar"
        names.append(WeightName(f"{stack}.stream_scale", scale, layers=layers))
        names += block_names.grouped_attention(stack, attention, layers)
        if block.layer_input is not None:
            names += block_names.projections(stack, GATE, layers)
            names += block_names.scales(stack, GATE_NORM, layers)
        if isinstance(mlp, MixtureOfExpertsConfig):
            own = {ours: theirs for ours, theirs in NORMS.items() if ours != "mlp_norm"}
            names += block_names.scales(stack, own, layers)
            names += _mixture(stack, mlp, layers)
        else:
            assert isinstance(mlp, GatedMlpConfig)
            names += block_names.scales(stack, NORMS, layers)
            names += block_names.gated_mlp(stack, layers)
    return names


def ignored(config: Gemma4Config, name: str) -> bool:
    """Whether a tensor is one of keys and values in a layer that attends to those of another."""
    found = re.search(r"layers\.(\d+)\.self_attn\.(?:[kv]_proj|[kv]_norm)\.", name)
    return found is not None and int(found[1]) >= config.n_layers - config.sharing_layers


def _mixture(
    stack: str, mlp: MixtureOfExpertsConfig, layers: block_names.Layers
) -> list[WeightName]:
    def weight(ours: str, theirs: str, **layout: Any) -> WeightName:
        there = f"{block_names.LAYER}{theirs}"
        return WeightName(f"{stack}.mlp.{ours}", there, layers=layers, **layout)

    width = mlp.hidden
    gate, up = AxisSlice(1, slice(0, width)), AxisSlice(1, slice(width, 2 * width))
    return [
        *block_names.scales(stack, BRANCH_NORMS, layers),
        *block_names.gated_mlp(stack, layers, "mlp.shared"),
        weight("router.kernel", "router.proj.weight", transpose=True),
        weight("router.input_scale", "router.scale"),
        weight("router.expert_scale", "router.per_expert_scale"),
        weight("experts.gate.kernel", "experts.gate_up_proj", transpose=True, part=gate),
        weight("experts.up.kernel", "experts.gate_up_proj", transpose=True, part=up),
        weight("experts.down.kernel", "experts.down_proj", transpose=True),
    ]
