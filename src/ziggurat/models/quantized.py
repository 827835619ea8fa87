"""Models some of whose weights are quantised: which may be, their shapes and shardings, and the
record beside a checkpoint from which they are read back.

The module is the same: in the place of a kernel stands a :class:`QuantizedWeight`, and what
multiplies it looks at its type.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from ziggurat.core import config
from ziggurat.core.errors import CheckpointError
from ziggurat.core.pytrees import map_named, named_leaves
from ziggurat.kernels.linear import QuantizedWeight, WeightFormat, dense, is_quantized
from ziggurat.kernels.linear.rounded import quantize_array
from ziggurat.models.language_model import LanguageModel, Params

FORMATS_FILE = "quantization.json"
"""Formats of the quantised weights inside a checkpoint step."""
RECIPE_FILE = "recipe.toml"
"""Rules by which a checkpoint step was quantised; ``ziggurat quantize --recipe`` takes it."""
TRAINED_FILE = "quantized_training.json"
"""Inside a step of a run that trained for a format: how its float weights are rounded."""
_STACKED = ("layers", "experts")
SCALE_PARTS = ("scale", "zero_point", "super_scale", "offset", "super_offset")
"""Parts of a quantised weight that tiles of inputs share."""


def summed_axes(model: LanguageModel) -> dict[str, int]:
    """Weights that may be quantised, with the axis over which their matmuls sum.

    These are the matrices: kernels ``[..., d, f]`` (-2), an expert's or a layer's each its own, and
    tables of the vocabulary ``[v, d]`` (-1). Norms, biases, routers, convolutions and
    learned positions are not.

    >>> from ziggurat.models import LlamaConfig
    >>> tiny = LlamaConfig(vocab_size=32, d_model=16, n_layers=2, n_heads=2)
    >>> found = summed_axes(LanguageModel.build(tiny))
    >>> found["embedding.table"], found["blocks.attention.out.kernel"], len(found)
    (-1, -2, 8)
    """
    found = {}
    for name, axes in named_leaves(model.axes, is_leaf=_is_axes).items():
        if isinstance(axes, QuantizedWeight):
            found[name] = axes.axis
        elif axes[0] == "vocab":
            found[name] = -1
        elif name.endswith(".kernel") and sum(axis not in _STACKED for axis in axes) >= 2:
            found[name] = -2
    return found


def _is_axes(node: Any) -> bool:
    return isinstance(node, (tuple, QuantizedWeight))


def quantized(model: LanguageModel, formats: Mapping[str, WeightFormat]) -> LanguageModel:
    """The model with the named weights in these formats: its shapes, types and axis names."""
    axis, names = summed_axes(model), named_leaves(model.abstract).keys()
    assert formats.keys() <= names

    def shapes(name: str, leaf: Any) -> Any:
        if name not in formats:
            return leaf
        return formats[name].abstract(leaf.shape, leaf.dtype, axis[name])

    def axes(name: str, leaf: Any, names: tuple[str | None, ...]) -> Any:
        if name not in formats:
            return names
        # scales lie on every device along the summed axis: tiles need not divide over a mesh
        scale: list[str | None] = [*names]
        scale[axis[name]] = None
        by_part = dict.fromkeys(SCALE_PARTS, tuple(scale))
        by_part |= {"qvalue": tuple(names), "high": tuple(names), "order": (*names[:-2], None)}
        whole = shapes(name, leaf)
        there = {part: a for part, a in by_part.items() if getattr(whole, part) is not None}
        return dataclasses.replace(whole, **there)

    return dataclasses.replace(
        model,
        abstract=map_named(shapes, model.abstract),
        axes=map_named(axes, model.abstract, model.axes),
    )


def formats_of(params: Params) -> dict[str, WeightFormat]:
    """Formats of the quantised weights among parameters (arrays or their shapes)."""
    leaves = named_leaves(params, is_leaf=is_quantized)
    return {n: leaf.format for n, leaf in leaves.items() if isinstance(leaf, QuantizedWeight)}


def dequantized(params: Params, dtype: Any = None) -> Params:
    """Parameters with every quantised weight as an array again.

    Args:
        params: the parameters.
        dtype: of those arrays; default each weight's own. A value times its scale need not be a
            number of the type of the scale; float32 holds it to its last bit.
    """

    def one(weight: Any) -> Any:
        if is_quantized(weight) and dtype is not None:
            return dense(weight.astype("float32")).astype(dtype)
        return dense(weight)

    return jax.tree.map(one, params, is_leaf=is_quantized)


@dataclasses.dataclass(frozen=True)
class TrainedFormat:
    """Format for which a weight was trained."""

    format: WeightFormat
    clip: float = 1.0
    """Share of the largest magnitude that is kept."""


def rounded_as_trained(
    model: LanguageModel, params: Params, trained: Mapping[str, TrainedFormat]
) -> tuple[LanguageModel, Params]:
    """The model that quantisation-aware training saw: float weights rounded to their formats."""
    axes = summed_axes(model)

    def one(name: str, leaf: Any) -> Any:
        if name not in trained:
            return leaf
        wide = leaf.astype("float32")
        return _rounded(wide, trained[name].format, axes[name], trained[name].clip)

    rounded = map_named(one, params)
    made = quantized(model, {name: one.format for name, one in trained.items()})
    return made.typed_as(rounded), rounded


_rounded = jax.jit(quantize_array, static_argnums=(1, 2, 3))


def trained_text(trained: Mapping[str, TrainedFormat]) -> str:
    """Formats of training as JSON for :func:`read_trained`."""
    plain = {
        name: {"format": config.to_plain(one.format), "clip": one.clip}
        for name, one in trained.items()
    }
    return json.dumps(plain, indent=1)


def read_trained(path: Path, model: LanguageModel) -> dict[str, TrainedFormat]:
    """Read the formats for which a run trained.

    Raises:
        CheckpointError: the file is damaged, or names what this model has not.
    """
    return _read(path, model, TrainedFormat)


def formats_text(formats: Mapping[str, WeightFormat]) -> str:
    """Formats as JSON for :func:`read_formats`."""
    return json.dumps({name: config.to_plain(format) for name, format in formats.items()}, indent=1)


def read_formats(path: Path, model: LanguageModel) -> dict[str, WeightFormat]:
    """Read the formats stored beside a checkpoint.

    Raises:
        CheckpointError: the file is damaged, or names what this model has not.
    """
    return _read(path, model, WeightFormat)


def _read(path: Path, model: LanguageModel, kind: type[Any]) -> dict[str, Any]:
    from pydantic import TypeAdapter, ValidationError

    try:
        plain = TypeAdapter(dict[str, Any]).validate_json(path.read_bytes())
        one = TypeAdapter(kind)
        formats = {name: one.validate_python(value) for name, value in plain.items()}
    except (OSError, ValidationError) as error:
        line = str(error).partition("\n")[0]
        raise CheckpointError(f"{path}", found=line, expected="formats of weights") from None
    unknown = sorted(formats.keys() - summed_axes(model).keys())
    if unknown:
        raise CheckpointError(f"{path}", found=unknown[0], expected="weights of this model")
    return formats
