"""LFM2 in Hugging Face's ``config.json`` and safetensors."""

from collections.abc import Mapping
from typing import Any

from ziggurat.core.errors import ModelError
from ziggurat.models.conversion import block_names
from ziggurat.models.conversion.hf_config import HFConfig, checked
from ziggurat.models.conversion.rotary_settings import hf_rope, read_rope
from ziggurat.models.conversion.weight_names import AxisSlice, WeightName
from ziggurat.models.families.lfm2.config import Lfm2Config, Lfm2MoeConfig
from ziggurat.nn.attention import GroupedAttentionConfig
from ziggurat.nn.moe import MixtureOfExpertsConfig
from ziggurat.nn.short_convolution import ShortConvolutionConfig

KEYS = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "max_sequence_length": "max_position_embeddings",
    "norm_eps": "norm_eps",
    "init_std": "initializer_range",
    "taps": "conv_L_cache",
    "convolution_bias": "conv_bias",
}
"""Config fields and keys of one value."""
EXPERTS = {
    "dense_layers": "num_dense_layers",
    "n_experts": "num_experts",
    "experts_per_token": "num_experts_per_tok",
    "d_ff_expert": "moe_intermediate_size",
    "normalise_weights": "norm_topk_prob",
    "routed_scale": "routed_scaling_factor",
    "correction": "use_expert_bias",
}
"""Config fields of mixtures of experts and keys of one value."""
NORMS = {"mlp_norm": "ffn_norm"}
MLP = {"gate": "w1", "up": "w3", "down": "w2"}
SAME = {
    "block_dim": "hidden_size",
    "conv_dim": "hidden_size",
    "conv_dim_out": "hidden_size",
    "num_heads": "num_attention_heads",
}
"""Keys that transformers does not read, and those that must say the same."""
INERT = (
    "block_mlp_init_scale",  # initial weights, as the next three
    "block_out_init_scale",
    "block_use_xavier_init",
    "conv_use_xavier_init",
    "block_norm_eps",  # other names of what other keys say; transformers reads those
    "theta",
)
"""Keys that change no result."""


def from_hf(values: Mapping[str, Any]) -> Lfm2Config:
    """``config.json`` of ``Lfm2ForCausalLM`` or ``Lfm2MoeForCausalLM`` to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    settings = {ours: hf.get(theirs) for ours, theirs in KEYS.items()}
    tied = hf.given("tie_embedding")  # their older name, which goes before the other
    settings["tie_embeddings"] = hf.get("tie_word_embeddings") if tied is None else tied
    settings["rope"] = read_rope(hf, settings["max_sequence_length"])
    layers = hf.whole("num_hidden_layers", 32)
    settings["attention_layers"] = _attention_layers(hf, layers)
    mixture = hf.model_type == "lfm2_moe"
    settings["d_ff"] = hf.whole("intermediate_size", 7168) if mixture else _hidden(hf)
    for key, other in SAME.items():
        hf.refuse_unless(key, (hf.get(other),), f"it is {other} in transformers")
    for key in ("block_use_swiglu", "use_pos_enc"):
        hf.refuse_unless(key, (True,))
    for key in INERT:
        hf.given(key)
    if mixture:
        settings |= {ours: hf.get(theirs) for ours, theirs in EXPERTS.items()}
    hf.finish()
    return checked(Lfm2MoeConfig if mixture else Lfm2Config, settings, "config.json")


def _attention_layers(hf: HFConfig, layers: int) -> list[int]:
    """Numbers of the layers with attention, from ``layer_types`` or the older ``full_attn_idxs``.

    Raises:
        ModelError: another number of entries than layers, or a type that is not known.
    """
    older, types = hf.given("full_attn_idxs"), hf.given("layer_types")
    if types is None:
        if older is not None and not isinstance(older, list):
            expected = "a list of layers"
            raise ModelError("config.json: full_attn_idxs", found=repr(older), expected=expected)
        return [n for n in range(layers) if older is None or n in older]
    known = {"full_attention", "conv"}
    if not isinstance(types, list) or len(types) != layers or not known.issuperset(types):
        expected = f"{layers} of full_attention or conv"
        raise ModelError("config.json: layer_types", found=repr(types), expected=expected)
    return [n for n, kind in enumerate(types) if kind == "full_attention"]


def _hidden(hf: HFConfig) -> int:
    """Feed-forward width: by default two thirds of what is said, times a factor, rounded up."""
    older = hf.given("block_ff_dim")
    hidden = hf.whole("intermediate_size", 12288)
    hidden = hidden if older is None else hf.whole("block_ff_dim")
    adjust, factor = hf.get("block_auto_adjust_ff_dim"), hf.get("block_ffn_dim_multiplier")
    multiple = hf.whole("block_multiple_of", 256)
    if not adjust:
        return hidden
    if not isinstance(factor, (int, float)) or multiple < 1:
        expected = "numbers above zero"
        found = f"{factor!r}, rounded to a multiple of {multiple}"
        raise ModelError("config.json: block_ffn_dim_multiplier", found=found, expected=expected)
    return multiple * -(-int(factor * int(2 * hidden / 3)) // multiple)


def to_hf(config: Lfm2Config) -> dict[str, Any]:
    """Config to ``config.json``."""
    mixture = isinstance(config, Lfm2MoeConfig)
    attention = config.attention()
    values = {
        "architectures": ["Lfm2MoeForCausalLM" if mixture else "Lfm2ForCausalLM"],
        "model_type": config.kind,
        **{theirs: getattr(config, ours) for ours, theirs in KEYS.items()},
        **hf_rope(config.rope),
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        "intermediate_size": config.mlp().hidden,
        "tie_word_embeddings": config.tie_embeddings,
        "layer_types": [
            "full_attention" if n in config.attention_layers else "conv"
            for n in range(config.n_layers)
        ],
    }
    if mixture:
        return values | {theirs: getattr(config, ours) for ours, theirs in EXPERTS.items()}
    return values | {"block_auto_adjust_ff_dim": False}


def hf_names(config: Lfm2Config) -> list[WeightName]:
    """Weight names in safetensors files."""
    d = config.decoder()
    names = block_names.ends(d, norm="embedding_norm")
    for (stack, layers), block in zip(block_names.stacked_layers(d).items(), d.stacks):
        norms = NORMS | {f"{block.mixer.name}_norm": "operator_norm"}
        names += block_names.scales(stack, norms, layers)
        if isinstance(block.mixer, GroupedAttentionConfig):
            names += _attention(stack, layers)
        else:
            assert isinstance(block.mixer, ShortConvolutionConfig)
            names += _convolution(stack, block.mixer, layers)
        if isinstance(block.mlp, MixtureOfExpertsConfig):
            names += _experts(stack, block.mlp, layers)
        else:
            table = {f"mlp.{ours}": f"feed_forward.{theirs}" for ours, theirs in MLP.items()}
            names += block_names.projections(stack, table, layers)
    return names


def _attention(stack: str, layers: block_names.Layers) -> list[WeightName]:
    table = {f"attention.{n}": f"self_attn.{n[0]}_proj" for n in ("query", "key", "value")}
    table |= {"attention.out": "self_attn.out_proj"}
    norms = {f"attention.{n}_norm": f"self_attn.{n[0]}_layernorm" for n in ("query", "key")}
    return [
        *block_names.projections(stack, table, layers),
        *block_names.scales(stack, norms, layers),
    ]


def _convolution(
    stack: str, c: ShortConvolutionConfig, layers: block_names.Layers
) -> list[WeightName]:
    """One tensor there holds the three projections of the input."""
    here, there = f"{stack}.convolution.", f"{block_names.LAYER}conv."
    names: list[WeightName] = []
    more: dict[str, Any] = {"layers": layers}
    for place, ours in enumerate(("gate_in", "gate_out", "value")):
        part = AxisSlice(0, slice(place * c.channels, (place + 1) * c.channels))
        name = f"{there}in_proj."
        kernel = WeightName(
            f"{here}{ours}.kernel", f"{name}weight", transpose=True, part=part, layers=layers
        )
        names.append(kernel)
        if c.bias:
            names.append(WeightName(f"{here}{ours}.bias", f"{name}bias", part=part, layers=layers))
    biases = ["convolution.out"] if c.bias else []
    names += block_names.projections(stack, {"convolution.out": "conv.out_proj"}, layers, biases)
    taps = WeightName(
        f"{here}taps.weight",
        f"{there}conv.weight",
        transpose=True,
        stored_shape=(c.channels, 1, c.taps),
        **more,
    )
    bias = [WeightName(f"{here}taps.bias", f"{there}conv.bias", **more)] if c.bias else []
    return [*names, taps, *bias]


def _experts(stack: str, c: MixtureOfExpertsConfig, layers: block_names.Layers) -> list[WeightName]:
    names = block_names.projections(stack, {"mlp.router": "feed_forward.gate"}, layers)
    if c.router.correction:
        there = f"{block_names.LAYER}feed_forward.expert_bias"
        names.append(WeightName(f"{stack}.mlp.router.correction_bias", there, layers=layers))
    there = "feed_forward.experts"
    return names + block_names.experts(stack, layers, c.router.experts, there, MLP)
