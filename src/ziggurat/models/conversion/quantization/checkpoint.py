"""Quantised checkpoints: which weights are in which format, and their parts as tensors.

A family's table of names is for float weights. Here each quantised one is replaced by a name for
each of its parts (``....weight.qvalue``, ``....weight.scale``), and a source of tensors gives those
parts, decoded from a method's layout without ever making floats of them.
"""

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from ziggurat.core.errors import ModelError
from ziggurat.kernels.linear import WeightFormat
from ziggurat.models.conversion.quantization.module import MethodReader, Present, QuantizedModule
from ziggurat.models.conversion.weight_names import TensorSource, WeightName
from ziggurat.models.language_model import LanguageModel
from ziggurat.models.quantized import summed_axes

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class QuantizedTable:
    """How a quantised checkpoint is read into a model."""

    formats: Mapping[str, WeightFormat]
    """Formats of the weights that stay quantised, by our name."""
    names: list[WeightName]
    """The family's table with a name for each part of them."""
    tensors: TensorSource
    """Tensors as that table wants them."""
    expanded: int
    """How many quantised tensors become floats."""


def present_names(reader: MethodReader, tensors: TensorSource) -> list[str]:
    """Names of tensors, of quantised ones as a family's table has them."""
    return [reader.named(name) for name in tensors]


def quantized_table(
    reader: MethodReader,
    names: Iterable[WeightName],
    tensors: TensorSource,
    model: LanguageModel,
    *,
    expand: bool = False,
) -> QuantizedTable:
    """Find the quantised weights of a checkpoint.

    Layers of one weight are stacked, so they need one format: where a method stores some otherwise,
    one that holds the values of all is taken if there is one, else they become floats, with a
    warning.

    Args:
        reader: the method's.
        names: the family's table.
        tensors: the checkpoint's tensors.
        model: the float model.
        expand: make floats of all of them.

    Raises:
        ModelError: a quantised weight that has no quantised form here.
        CheckpointError: a part is missing, or of a wrong type or shape.
    """
    present, axes, layers = Present(tensors), summed_axes(model), model.decoder.n_layers
    formats: dict[str, WeightFormat] = {}
    table: list[WeightName] = []
    modules: dict[str, QuantizedModule] = {}
    expanded: dict[str, QuantizedModule] = {}
    for name in names:
        homes = name.all_theirs(layers)
        summed = -1 if name.transpose else axes.get(name.ours, -1)
        found = {home: _laid_out(reader.module(home, present), summed) for home in homes}
        there = {home: one for home, one in found.items() if one is not None}
        if not there:
            table.append(name)
            continue
        if name.ours not in axes:
            _refuse(homes[0], "no matrix of a model here")
        if not expand:
            _check_part(name, summed, next(iter(there.values())))
        one = None if expand or len(there) < len(homes) else _alike(reader, list(there.values()))
        if one is None:
            if not expand:
                _log.warning("%s: %s; its layers become floats", name.ours, _mixed(found))
            expanded |= there
            table.append(name)
            continue
        formats[name.ours] = one[0].format
        modules |= dict(zip(there, one))
        table += _parts(name, one[0])
    return QuantizedTable(formats, table, _Decoded(present, modules, expanded), len(expanded))


def _alike(
    reader: MethodReader, modules: Sequence[QuantizedModule]
) -> Sequence[QuantizedModule] | None:
    if len({module.format for module in modules}) == 1:
        return modules
    return reader.alike(modules)


def _mixed(found: Mapping[str, QuantizedModule | None]) -> str:
    """Which formats the layers of a weight have."""
    kinds = {"float" if one is None else one.format.weight: home for home, one in found.items()}
    if len(kinds) == 1:
        return "its layers have scales of several forms"
    return " and ".join(f"{kind} ({home})" for kind, home in list(kinds.items())[:2])


def _refuse(home: str, found: str) -> None:
    raise ModelError(
        f"quantised weight {home}",
        found=found,
        expected="a linear layer or a table of the vocabulary",
        fix="load the float version of the model",
    )


def _laid_out(module: QuantizedModule | None, summed: int) -> QuantizedModule | None:
    """A module as a table wants its float weight: with the summed axis in this place."""
    if module is None or module.axis == summed:
        return module

    def read(part: str) -> np.ndarray:
        array = module.read(part)
        return array if part == "order" else array.swapaxes(-1, -2)

    shape = (*module.shape[:-2], module.shape[-1], module.shape[-2])
    return dataclasses.replace(module, read=read, shape=shape, axis=summed)


def _check_part(name: WeightName, summed: int, module: QuantizedModule) -> None:
    """A slice of a fused tensor must be one of its outputs."""
    if name.part is None:
        return
    if name.part.axis in (summed, len(module.shape) + summed):
        _refuse(name.theirs, "several weights side by side along its inputs")


def _parts(name: WeightName, module: QuantizedModule) -> list[WeightName]:
    """A table entry for each array of a quantised weight."""
    made = []
    for part in module.parts:
        ours, theirs = f"{name.ours}.{part}", f"{name.theirs}.{part}"
        if part == "order":  # a vector of inputs: it has no outputs to slice or reorder
            flat = WeightName(ours, theirs, layers=name.layers, experts=name.experts)
            made.append(flat)
        else:
            made.append(dataclasses.replace(name, ours=ours, theirs=theirs))
    return made


class _Decoded:
    """Tensors of a quantised checkpoint: parts of what stays quantised, floats of what does not."""

    def __init__(
        self,
        tensors: Present,
        modules: Mapping[str, QuantizedModule],
        expanded: Mapping[str, QuantizedModule],
    ):
        self._tensors, self._expanded = tensors, expanded
        self._parts = {
            f"{home}.{part}": (module, part)
            for home, module in modules.items()
            for part in module.parts
        }
        used: set[str] = set()
        for module in (*modules.values(), *expanded.values()):
            used |= module.tensors
        self._names = (tensors.names() - used) | self._parts.keys() | expanded.keys()

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def release(self) -> None:
        """Let go of what was read, where the files can."""
        release = getattr(self._tensors.source, "release", None)
        if release is not None:
            release()

    def dtype_of(self, name: str) -> np.dtype:
        """Type of a tensor; of quantised values, which no parameter's type matches, float64."""
        if name in self._expanded:
            return np.dtype(np.float32)
        if name not in self._parts:
            return self._tensors.dtype_of(name)
        module, part = self._parts[name]
        final = part in ("scale", "offset") and module.format.scale is None
        return module.scale_type if final else np.dtype(np.float64)

    def read(self, name: str) -> np.ndarray:
        if name in self._parts:
            module, part = self._parts[name]
            return module.read(part)
        if name in self._expanded:
            return self._expanded[name].dequantized()
        return self._tensors.read(name)
