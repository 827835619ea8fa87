"""Names of a block's weights as most families publish them, for decoders of several stacks."""

from collections.abc import Mapping, Sequence

from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.nn.attention import GroupedAttentionConfig
from ziggurat.nn.decoder import DecoderConfig, stack_name

LAYER = "model.layers.{layer}."
PRE_NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
"""Names of a block's norms, here and there."""
GATED_MLP = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
"""Names of a gated MLP's projections, here and there."""

Layers = tuple[int, ...]


def stacked_layers(d: DecoderConfig) -> dict[str, Layers]:
    """The numbers of the layers in each stack, by the stack's name."""
    return {
        stack_name(number): tuple(i for i, place in enumerate(d.places) if place.stack == number)
        for number in range(len(d.stacks))
    }


def ends(d: DecoderConfig) -> list[WeightName]:
    """All that is not a block: embeddings, the last norm, and the output matrix where there is one
    of its own."""
    names = [
        WeightName("embedding.table", "model.embed_tokens.weight"),
        WeightName("final_norm.scale", "model.norm.weight"),
    ]
    return names + ([] if d.tie_embeddings else [WeightName("unembedding", "lm_head.weight")])


def scales(stack: str, norms: Mapping[str, str], layers: Layers) -> list[WeightName]:
    """Scales of norms."""
    return [
        WeightName(f"{stack}.{ours}.scale", f"{LAYER}{theirs}.weight", layers=layers)
        for ours, theirs in norms.items()
    ]


def projections(
    stack: str, table: Mapping[str, str], layers: Layers, biases: Sequence[str] = ()
) -> list[WeightName]:
    """Linear layers; those in ``biases`` have one."""
    names = []
    for ours, theirs in table.items():
        there, here = f"{LAYER}{theirs}", f"{stack}.{ours}"
        names.append(WeightName(f"{here}.kernel", f"{there}.weight", transpose=True, layers=layers))
        if ours in biases:
            names.append(WeightName(f"{here}.bias", f"{there}.bias", layers=layers))
    return names


def grouped_attention(
    stack: str, attention: GroupedAttentionConfig, layers: Layers
) -> list[WeightName]:
    """Grouped attention's projections, and norms of heads."""
    inputs = {f"attention.{n}": f"self_attn.{n[0]}_proj" for n in ("query", "key", "value")}
    biases = [*(inputs if attention.bias else ()), *(["attention.out"] * attention.out_bias)]
    table = inputs | {"attention.out": "self_attn.o_proj"}
    names = projections(stack, table, layers, biases)
    if attention.head_norm is not None:
        heads = {f"attention.{n}_norm": f"self_attn.{n[0]}_norm" for n in ("query", "key")}
        names += scales(stack, heads, layers)
    return names


def gated_mlp(
    stack: str, layers: Layers, ours: str = "mlp", theirs: str = "mlp", *, bias: bool = False
) -> list[WeightName]:
    """A gated MLP's projections."""
    table = {f"{ours}.{part}": f"{theirs}.{name}" for part, name in GATED_MLP.items()}
    return projections(stack, table, layers, biases=[*table] if bias else ())


def experts(
    stack: str, layers: Layers, count: int, theirs: str, table: Mapping[str, str] = GATED_MLP
) -> list[WeightName]:
    """The projections of a mixture's experts, each a tensor of its own under ``theirs``."""
    return [
        WeightName(
            f"{stack}.mlp.experts.{part}.kernel",
            f"{LAYER}{theirs}.{{expert}}.{name}.weight",
            transpose=True,
            layers=layers,
            experts=count,
        )
        for part, name in table.items()
    ]
