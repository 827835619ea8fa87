"""Weight names of Qwen-VL's towers in safetensors files."""

import dataclasses

from ziggurat.models.conversion.weight_names import AxisSlice, WeightName
from ziggurat.models.families.encoder_fields import linears, norms
from ziggurat.models.families.qwen_vl.vision import (
    Qwen3VisionConfig,
    Qwen25VisionConfig,
    QwenVisionConfig,
)


def tower_names(vision: QwenVisionConfig, theirs: str = "model.visual.") -> list[WeightName]:
    """Names of a tower's weights.

    Args:
        vision: the tower.
        theirs: how names begin in the files.
    """
    third = isinstance(vision, Qwen3VisionConfig)
    block = theirs + "blocks.{layer}."
    pairs = {"attention_norm": "norm1", "mlp_norm": "norm2"}
    mlp = {"up": "linear_fc1", "down": "linear_fc2"} if third else _GATED
    layers = norms({f"blocks.{n}": block + there for n, there in pairs.items()}, bias=third)
    layers += linears({f"blocks.mlp.{n}": f"{block}mlp.{there}" for n, there in mlp.items()})
    layers += linears({"blocks.attention.out": block + "attn.proj"})
    layers += _attention(vision.d_model, block + "attn.qkv")
    numbers = tuple(range(vision.n_layers))
    names = [dataclasses.replace(name, layers=numbers) for name in layers]
    names += _input(vision, theirs)
    if isinstance(vision, Qwen25VisionConfig):
        merger = {"up": "mlp.0", "down": "mlp.2"}
        names += norms({"merger.norm": theirs + "merger.ln_q"}, bias=False)
        return names + linears({f"merger.{n}": f"{theirs}merger.{t}" for n, t in merger.items()})
    names += _merger("merger", theirs + "merger.")
    taps = tuple(range(len(vision.tapped_layers)))
    each = _merger("tap_mergers", theirs + "deepstack_merger_list.{layer}.") if taps else []
    return names + [dataclasses.replace(name, layers=taps) for name in each]


_GATED = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}


def _attention(width: int, theirs: str) -> list[WeightName]:
    """Query, key and value, which are one matrix in the files."""
    names = []
    for number, part in enumerate(("query", "key", "value")):
        rows = AxisSlice(0, slice(number * width, (number + 1) * width))
        found = linears({f"blocks.attention.{part}": theirs})
        names += [dataclasses.replace(name, part=rows) for name in found]
    return names


def _input(vision: QwenVisionConfig, theirs: str) -> list[WeightName]:
    """The projection of patches, a convolution over time and space, and learned positions."""
    side, third = vision.patch_size, isinstance(vision, Qwen3VisionConfig)
    stored = (vision.d_model, vision.channels, vision.frames, side, side)
    names = linears({"projection": theirs + "patch_embed.proj"}, bias=third)
    names[0] = dataclasses.replace(names[0], stored_shape=stored)
    return names + ([WeightName("positions", theirs + "pos_embed.weight")] if third else [])


def _merger(ours: str, theirs: str) -> list[WeightName]:
    """A merger of Qwen3-VL."""
    parts = {"up": "linear_fc1", "down": "linear_fc2"}
    names = norms({f"{ours}.norm": theirs + "norm"})
    return names + linears({f"{ours}.{n}": theirs + there for n, there in parts.items()})
