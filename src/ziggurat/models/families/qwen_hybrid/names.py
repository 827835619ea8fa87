"""Names of Qwen3-Next's and Qwen 3.5's weights in safetensors files.

Qwen3-Next keeps a gated delta net's inputs in two matrices whose rows lie by key head: of each key
head its query, its key, and the values and gates of its value heads. Qwen 3.5 keeps them apart. In
both, attention's queries and output gates lie by head in one matrix, and one convolution covers
queries, keys and values.
"""

from ziggurat.models.conversion import block_names
from ziggurat.models.conversion.weight_names import AxisSlice, WeightName
from ziggurat.models.families.mixture_fields import feed_forward_names
from ziggurat.models.families.qwen_hybrid.config import HybridFields, Qwen3NextConfig
from ziggurat.nn.attention import GroupedAttentionConfig
from ziggurat.nn.gated_delta_net import GatedDeltaNetConfig

Layers = block_names.Layers
THEIRS = block_names.LAYER + "linear_attn."


def hf_names(config: HybridFields) -> list[WeightName]:
    """Weight names in safetensors files."""
    d = config.decoder()
    names = block_names.ends(d)
    for (stack, layers), block in zip(block_names.stacked_layers(d).items(), d.stacks):
        mixer = block.mixer
        norms = {f"{mixer.name}_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
        names += block_names.scales(stack, norms, layers)
        if isinstance(mixer, GatedDeltaNetConfig):
            names += _delta_net(stack, mixer, layers, fused=isinstance(config, Qwen3NextConfig))
        else:
            assert isinstance(mixer, GroupedAttentionConfig)
            names += _gated_attention(stack, mixer, layers)
        names += feed_forward_names(stack, block.mlp, layers)
    return names


def _gated_attention(
    stack: str, attention: GroupedAttentionConfig, layers: Layers
) -> list[WeightName]:
    """Grouped attention, with the output gate beside the query of each head."""
    names = block_names.grouped_attention(stack, attention, layers)
    heads, c = attention.heads, attention.head_dim
    query, gate = f"{stack}.attention.query.", f"{stack}.attention.gate."
    found = []
    for name in names:
        if not name.ours.startswith(query):
            found.append(name)
            continue
        for ours, first in ((query, 0), (gate, c)):
            part = AxisSlice(0, slice(first, first + c), groups=heads)
            ours += name.ours.removeprefix(query)
            found.append(
                WeightName(ours, name.theirs, transpose=name.transpose, layers=layers, part=part)
            )
    return found


def _delta_net(
    stack: str, c: GatedDeltaNetConfig, layers: Layers, *, fused: bool
) -> list[WeightName]:
    inputs = _fused_inputs(c) if fused else _separate_inputs(c)
    names = [
        WeightName(
            f"{stack}.delta_net.{ours}.kernel",
            f"{THEIRS}{theirs}.weight",
            transpose=True,
            layers=layers,
            part=part,
        )
        for ours, theirs, part in inputs
    ]
    names += block_names.projections(stack, {"delta_net.out": "linear_attn.out_proj"}, layers)
    names += block_names.scales(stack, {"delta_net.out_norm": "linear_attn.norm"}, layers)
    for ours, theirs in (("log_decay", "A_log"), ("decay_bias", "dt_bias")):
        names.append(WeightName(f"{stack}.delta_net.{ours}", f"{THEIRS}{theirs}", layers=layers))
    keys, values = c.key_heads * c.key_dim, c.value_heads * c.value_dim
    widths = {"query": keys, "key": keys, "value": values}
    for ours, _, part in _separate_inputs(c)[:3]:
        names.append(
            WeightName(
                f"{stack}.delta_net.{ours}_convolution.weight",
                f"{THEIRS}conv1d.weight",
                transpose=True,
                layers=layers,
                part=part,
                stored_shape=(widths[ours], 1, c.taps),
            )
        )
    return names


def _separate_inputs(c: GatedDeltaNetConfig) -> list[tuple[str, str, AxisSlice | None]]:
    """Our projections, theirs, and the rows: queries, keys and values one after another."""
    keys, values = c.key_heads * c.key_dim, c.value_heads * c.value_dim
    found: list[tuple[str, str, AxisSlice | None]] = []
    start = 0
    for ours, size in (("query", keys), ("key", keys), ("value", values)):
        found.append((ours, "in_proj_qkv", AxisSlice(0, slice(start, start + size))))
        start += size
    alone = {"gate": "in_proj_z", "decay": "in_proj_a", "rate": "in_proj_b"}
    return found + [(ours, theirs, None) for ours, theirs in alone.items()]


def _fused_inputs(c: GatedDeltaNetConfig) -> list[tuple[str, str, AxisSlice | None]]:
    """Our projections, theirs, and the rows of each key head."""
    served = c.value_heads // c.key_heads
    values = served * c.value_dim
    tables = {
        "in_proj_qkvz": {"query": c.key_dim, "key": c.key_dim, "value": values, "gate": values},
        "in_proj_ba": {"rate": served, "decay": served},
    }
    found: list[tuple[str, str, AxisSlice | None]] = []
    for theirs, sizes in tables.items():
        start = 0
        for ours, size in sizes.items():
            part = AxisSlice(0, slice(start, start + size), groups=c.key_heads)
            found.append((ours, theirs, part))
            start += size
    return found
