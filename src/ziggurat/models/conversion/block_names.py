"""Names of a block's weights as most families publish them, for decoders of several stacks.

Families that publish them under other names, or several in one tensor, pass the names on to
:func:`renamed` and :func:`joined`.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from ziggurat.models.conversion.weight_names import AxisSlice, TensorSource, WeightName
from ziggurat.nn.attention import GroupedAttentionConfig
from ziggurat.nn.decoder import DecoderConfig
from ziggurat.nn.encoder import EncoderConfig
from ziggurat.nn.mlp import GatedMlpConfig, PlainMlpConfig
from ziggurat.nn.norm import NormConfig
from ziggurat.nn.stacking import stack_name

LAYER = "model.layers.{layer}."
PRE_NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
"""Names of a block's norms, here and there."""
GATED_MLP = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
"""Names of a gated MLP's projections, here and there."""
PLAIN_MLP = {"up": "up_proj", "down": "down_proj"}
"""Names of the projections of an MLP without a gate, here and there."""

Layers = tuple[int, ...]


def stacked_layers(d: DecoderConfig | EncoderConfig) -> dict[str, Layers]:
    """The numbers of the layers in each stack, by the stack's name."""
    return {
        stack_name(number): tuple(i for i, place in enumerate(d.places) if place.stack == number)
        for number in range(len(d.stacks))
    }


def ends(
    d: DecoderConfig, *, embedding: str = "embed_tokens", norm: str = "norm"
) -> list[WeightName]:
    """Names of all weights outside the blocks: embeddings, the last norm, and the output matrix
    unless it is the embedding.

    Args:
        d: the decoder.
        embedding: the name of the embeddings there.
        norm: the name of the last norm there.
    """
    names = [
        WeightName("embedding.table", f"model.{embedding}.weight"),
    ]
    if d.final_norm:
        names.append(WeightName("final_norm.scale", f"model.{norm}.weight"))
    if d.final_norm and d.norm.has_bias:
        names.append(WeightName("final_norm.bias", "model.norm.bias"))
    if d.head_bias:
        names.append(WeightName("head_bias", "lm_head.bias"))
    return names + ([] if d.tie_embeddings else [WeightName("unembedding", "lm_head.weight")])


def scales(stack: str, norms: Mapping[str, str], layers: Layers) -> list[WeightName]:
    """Scales of norms."""
    return [
        WeightName(f"{stack}.{ours}.scale", f"{LAYER}{theirs}.weight", layers=layers)
        for ours, theirs in norms.items()
    ]


def norms(
    stack: str, table: Mapping[str, str], layers: Layers, norm: NormConfig
) -> list[WeightName]:
    """Scales of norms, and their biases where they have any."""
    biases = [
        WeightName(f"{stack}.{ours}.bias", f"{LAYER}{theirs}.bias", layers=layers)
        for ours, theirs in table.items()
        if norm.has_bias
    ]
    return scales(stack, table, layers) + biases


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
    """Grouped attention's projections, and norms of queries and keys."""
    parts = ("query", "key") if attention.value_is_key else ("query", "key", "value")
    parts = parts if attention.own_keys else ("query",)
    inputs = {f"attention.{n}": f"self_attn.{n[0]}_proj" for n in parts}
    biases = [*(inputs if attention.bias else ()), *(["attention.out"] * attention.out_bias)]
    table = inputs | {"attention.out": "self_attn.o_proj"}
    names = projections(stack, table, layers, biases)
    norm = attention.head_norm or attention.width_norm
    if norm is not None:
        heads = {f"attention.{n}_norm": f"self_attn.{n[0]}_norm" for n in parts if n != "value"}
        names += norms(stack, heads, layers, norm)
    return names


def feed_forward(
    stack: str, mlp: GatedMlpConfig | PlainMlpConfig, layers: Layers
) -> list[WeightName]:
    """The projections of an MLP with or without a gate."""
    parts = GATED_MLP if isinstance(mlp, GatedMlpConfig) else PLAIN_MLP
    table = {f"mlp.{ours}": f"mlp.{theirs}" for ours, theirs in parts.items()}
    return projections(stack, table, layers, biases=[*table] if mlp.bias else ())


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


JOINED_EXPERTS = {"gate_proj": ("gate_up_proj", 0), "up_proj": ("gate_up_proj", 1),
                  "down_proj": ("down_proj", None)}  # fmt: skip
"""Tensors of all experts by an expert's projection, and which half of it is that projection."""


def joined_experts(
    names: Iterable[WeightName], hidden: int, *, inputs_first: bool = False
) -> list[WeightName]:
    """The weights with all experts of a layer in two tensors, ``gate_up_proj`` and ``down_proj``.

    Args:
        names: the weights, others among them.
        hidden: width of an expert.
        inputs_first: whether a matrix is ``[in, out]`` there, rather than ``[out, in]``.
    """

    def placed(name: WeightName) -> WeightName:
        module, found, projection = name.theirs.partition("{expert}.")
        if not found:
            return name
        joined, half = JOINED_EXPERTS[projection.removesuffix(".weight")]
        part = None
        if half is not None:
            rows = slice(half * hidden, (half + 1) * hidden)
            part = AxisSlice(-1 if inputs_first else -2, rows)
        return dataclasses.replace(
            name, theirs=module + joined, transpose=not inputs_first, experts=1, part=part
        )

    return [placed(name) for name in names]


def experts_as_found(names: Iterable[WeightName], tensors: TensorSource) -> list[WeightName]:
    """The weights with experts joined as the tensors have them: newer files of an architecture join
    them (Qwen 3.5), older ones and transformers do not, and matrices lie either way (Qwen3-VL).

    Args:
        names: the weights, with a tensor for each expert.
        tensors: the checkpoint's tensors.
    """
    names, present = list(names), set(tensors)
    for name in names:
        module, _, projection = name.theirs.partition("{expert}.")
        layer = name.layers[0] if name.layers else 0
        homes = [f"{module}{end}".format(layer=layer) for end in ("gate_up_proj", "down_proj")]
        known = projection.removesuffix(".weight") in JOINED_EXPERTS
        if not known or not present.issuperset(homes):
            continue
        (_, *first), (_, *last) = (tensors.read(home).shape for home in homes)
        # [2 i, d] and [d, i], or [d, 2 i] and [i, d]: never both
        inputs_first = first == [last[1], 2 * last[0]]
        return joined_experts(names, last[0 if inputs_first else 1], inputs_first=inputs_first)
    return names


def renamed(names: Iterable[WeightName], table: Mapping[str, str]) -> list[WeightName]:
    """The weights under other published names.

    Args:
        names: the weights.
        table: replacements of parts of published names, made in order.

    >>> [found] = renamed([WeightName("final_norm.scale", "model.norm.weight")], {"norm": "ln_f"})
    >>> found.theirs
    'model.ln_f.weight'
    """

    def other(theirs: str) -> str:
        for old, new in table.items():
            theirs = theirs.replace(old, new)
        return theirs

    return [dataclasses.replace(name, theirs=other(name.theirs)) for name in names]


def joined(
    names: Iterable[WeightName], into: str, parts: Mapping[str, slice | tuple[int, ...]]
) -> list[WeightName]:
    """The weights of several projections as parts of one published module.

    Args:
        names: the weights, others among them.
        into: the published module, such as ``self_attn.qkv_proj``.
        parts: the rows of it, by the name that the projection would have by itself.
    """

    def placed(name: WeightName) -> WeightName:
        for module, rows in parts.items():
            if f".{module}." in name.theirs:
                theirs = name.theirs.replace(f".{module}.", f".{into}.")
                return dataclasses.replace(name, theirs=theirs, part=AxisSlice(0, rows))
        return name

    return [placed(name) for name in names]


def in_order(sizes: Mapping[str, int]) -> dict[str, slice]:
    """Rows of projections that follow one another in a tensor.

    >>> in_order({"gate": 2, "up": 3})
    {'gate': slice(0, 2, None), 'up': slice(2, 5, None)}
    """
    rows, start = {}, 0
    for module, size in sizes.items():
        rows[module] = slice(start, start + size)
        start += size
    return rows


def joined_gate(names: Iterable[WeightName], hidden: int) -> list[WeightName]:
    """The weights with gate and up projections of width ``hidden`` as one published module."""
    parts = in_order({"mlp.gate_proj": hidden, "mlp.up_proj": hidden})
    return joined(names, "mlp.gate_up_proj", parts)
