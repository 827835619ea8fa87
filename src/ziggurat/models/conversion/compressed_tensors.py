"""Checkpoints in the compressed-tensors format (llm-compressor, vLLM): kept quantised in memory.

``quantization_config`` of ``config.json`` says how modules are quantised; a quantised module has
``weight_scale`` beside its ``weight`` (8-bit types) or ``weight_packed`` (integers in 32-bit words,
each value plus half the range, the first in the low bits). Format:
https://github.com/vllm-project/compressed-tensors.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn

import numpy as np

from ziggurat.core.errors import CheckpointError, ModelError
from ziggurat.kernels.linear import WeightFormat
from ziggurat.kernels.linear.quantized import FOUR_BIT
from ziggurat.models.conversion.weight_names import TensorSource, WeightName
from ziggurat.models.language_model import LanguageModel
from ziggurat.models.quantized import summed_axes

FORMATS = ("int-quantized", "pack-quantized", "float-quantized", "naive-quantized")
_WEIGHTS = {(8, "int"): "int8", (4, "int"): "int4", (8, "float"): "fp8_e4m3"}
_ACTIVATIONS = {(8, "int"): "int8", (8, "float"): "fp8_e4m3"}


@dataclasses.dataclass(frozen=True)
class ConfigGroup:
    """One of the config's groups: modules, and the format of their weights."""

    name: str
    targets: tuple[str, ...]
    format: WeightFormat

    def matches(self, module: str) -> bool:
        """Whether a module is meant by name or pattern."""
        return any(_is_named(module, target) for target in self.targets)


def groups(settings: Mapping[str, Any]) -> tuple[ConfigGroup, ...]:
    """The groups of a ``quantization_config``.

    Raises:
        ModelError: another method, or a switch that is not implemented; it is named.
    """
    method = settings.get("quant_method")
    if method != "compressed-tensors":
        raise ModelError(
            "config.json: quantization_config.quant_method",
            found=repr(method),
            expected="'compressed-tensors'",
            fix="convert the model, or load its float version and run ziggurat quantize",
        )
    if settings.get("format") not in (*FORMATS, "mixed-precision"):
        _refuse("format", settings.get("format"), " or ".join(FORMATS))
    for key in ("kv_cache_scheme", "transform_config", "sparsity_config", "moe_sparsity_config"):
        if settings.get(key) and settings[key] != {"format": "dense"}:
            _refuse(key, settings[key], "none")
    found = settings.get("config_groups")
    if not isinstance(found, dict) or not found:
        _refuse("config_groups", found, "a table of groups")
    return tuple(_group(name, scheme) for name, scheme in found.items())


def compressed(
    settings: Mapping[str, Any],
    names: Iterable[WeightName],
    tensors: TensorSource,
    model: LanguageModel,
) -> tuple[dict[str, WeightFormat], list[WeightName], TensorSource]:
    """How a compressed checkpoint is read.

    Args:
        settings: ``quantization_config`` of its ``config.json``.
        names: the family's table.
        tensors: its tensors.
        model: the float model.

    Returns:
        Formats of the quantised weights by our name, the table with a name for each of their
        parts, and tensors as that table wants them.

    Raises:
        ModelError: a switch that is not implemented.
        CheckpointError: a module's tensors contradict the config, or the layers of one weight are
            in different formats.
    """
    known, present, layers = groups(settings), set(tensors), model.decoder.n_layers
    axes = summed_axes(model)
    formats: dict[str, WeightFormat] = {}
    table: list[WeightName] = []
    modules: dict[str, WeightFormat] = {}
    for name in names:
        homes = [theirs.removesuffix(".weight") for theirs in name.all_theirs(layers)]
        found = [_format(home, known, present) for home in homes]
        if any(one != found[0] for one in found):
            odd, other = next(pair for pair in enumerate(found) if pair[1] != found[0])
            raise CheckpointError(
                f"module {homes[odd]}",
                found=f"{other.weight if other else 'float'} weights",
                expected=f"the format of {homes[0]}, as layers are stacked",
                fix="quantise every layer of a projection alike",
            )
        format = found[0]
        if format is None:
            table.append(name)
            continue
        if name.ours not in axes or name.part or name.transpose != (axes[name.ours] == -2):
            _refuse("config_groups", f"a quantised {homes[0]}", "linear layers of their own")
        formats[name.ours] = format
        modules |= dict.fromkeys(homes, format)
        table += _parts(name, format)
    return formats, table, _Decoded(tensors, modules)


def _group(name: str, scheme: Any) -> ConfigGroup:
    where = f"config_groups.{name}"
    weights, inputs = scheme.get("weights"), scheme.get("input_activations")
    if scheme.get("format") not in (None, *FORMATS):
        _refuse(f"{where}.format", scheme["format"], " or ".join(FORMATS))
    if scheme.get("output_activations"):
        _refuse(f"{where}.output_activations", "quantised", "none")
    if not weights:
        _refuse(f"{where}.weights", weights, "a type of weights")
    kind = (weights.get("num_bits", 8), weights.get("type", "int"))
    if kind not in _WEIGHTS:
        _refuse(
            f"{where}.weights", f"{kind[0]}-bit {kind[1]}", "8-bit int, 4-bit int or 8-bit float"
        )
    strategy = weights.get("strategy")
    if strategy not in ("channel", "group", "tensor"):
        _refuse(f"{where}.weights.strategy", strategy, "channel, group or tensor")
    if weights.get("actorder") not in (None, False, "weight", "static"):
        _refuse(f"{where}.weights.actorder", weights["actorder"], "none or weight")
    symmetric = weights.get("symmetric", True)
    activation = _activation(f"{where}.input_activations", inputs)
    if not symmetric and (activation or kind[1] == "float"):
        _refuse(f"{where}.weights.symmetric", False, "true with quantised activations or floats")
    tile = weights.get("group_size") if strategy == "group" else None
    format = WeightFormat(_WEIGHTS[kind], activation, tile, symmetric)  # pyright: ignore[reportArgumentType]
    return ConfigGroup(name, tuple(scheme.get("targets") or ()), format)


def _activation(where: str, inputs: Any) -> Any:
    if not inputs:
        return None
    kind = (inputs.get("num_bits", 8), inputs.get("type", "int"))
    if kind not in _ACTIVATIONS:
        _refuse(where, f"{kind[0]}-bit {kind[1]}", "8-bit int or 8-bit float")
    if inputs.get("dynamic") is not True:
        _refuse(f"{where}.dynamic", inputs.get("dynamic", False), "true: scales taken per token")
    if inputs.get("strategy") != "token":
        _refuse(f"{where}.strategy", inputs.get("strategy"), "token")
    if not inputs.get("symmetric", True):
        _refuse(f"{where}.symmetric", False, "true")
    return _ACTIVATIONS[kind]


def _format(module: str, known: tuple[ConfigGroup, ...], present: set[str]) -> WeightFormat | None:
    """The format of a module that has scales; groups that name it come before classes."""
    if f"{module}.weight_scale" not in present:
        return None
    ranked = [group for group in known if group.matches(module)] or [
        group for group in known if "Linear" in group.targets
    ]
    if not ranked:
        raise CheckpointError(
            f"module {module}",
            found="scales, but no group of config.json that means it",
            expected="a target that names it",
        )
    return ranked[0].format


def _is_named(module: str, target: str) -> bool:
    if target.startswith("re:"):
        return re.match(target[3:], module) is not None
    return module == target


def _parts(name: WeightName, format: WeightFormat) -> list[WeightName]:
    """A table entry for each array of a quantised weight."""
    parts = {"qvalue": "weight", "scale": "weight_scale"}
    parts |= {} if format.symmetric else {"zero_point": "weight_zero_point"}
    stem = name.theirs.removesuffix("weight")
    return [
        dataclasses.replace(name, ours=f"{name.ours}.{ours}", theirs=stem + theirs)
        for ours, theirs in parts.items()
    ]


class _Decoded:
    """Tensors of a compressed checkpoint in the form of a ``QuantizedWeight``'s parts, still
    ``[out, in]``."""

    def __init__(self, tensors: TensorSource, modules: Mapping[str, WeightFormat]):
        self._tensors, self._modules = tensors, modules
        self._present = set(tensors)

    def __iter__(self) -> Iterator[str]:
        for name in self._present:
            module, _, last = name.rpartition(".")
            format = self._modules.get(module)
            if format is None:
                yield name
            elif last == "weight_packed":
                yield f"{module}.weight"
            elif last == "weight_zero_point" and format.symmetric:
                continue  # zeros, written by older versions
            elif last != "weight_shape":
                yield name

    def dtype_of(self, name: str) -> np.dtype:
        """Type of a tensor; quantised values have one of their own."""
        module, _, last = name.rpartition(".")
        if module in self._modules and last != "weight_scale":
            return np.dtype(np.int8)
        return self._tensors.dtype_of(name)

    def read(self, name: str) -> np.ndarray:
        module, _, last = name.rpartition(".")
        format = self._modules.get(module)
        if format is None:
            return self._tensors.read(name)
        if last == "weight":
            return self._weight(module, format)
        if last == "weight_scale":
            return self._by_channel(module, self._tensors.read(name))
        return self._zero_point(module, name, format)

    def _weight(self, module: str, format: WeightFormat) -> np.ndarray:
        four = format.weight in FOUR_BIT
        if f"{module}.weight_packed" not in self._present:
            plain = self._tensors.read(f"{module}.weight")
            return _pack(plain) if four else plain
        rows, columns = self._shape(module)
        words = self._tensors.read(f"{module}.weight_packed")
        if words.dtype != np.int32 or words.shape != (rows, -(-columns * (4 if four else 8) // 32)):
            raise CheckpointError(
                f"tensor {module}.weight_packed",
                found=f"{words.dtype} {list(words.shape)}",
                expected=f"int32 words of {rows} x {columns} values",
            )
        values = np.ascontiguousarray(words).astype("<i4", copy=False).view(np.uint8)
        if four:
            return values[:, : columns // 2] ^ 0x88  # both halves from plus 8 to two's complement
        return (values[:, :columns] ^ 0x80).view(np.int8)

    def _by_channel(self, module: str, array: np.ndarray) -> np.ndarray:
        """``[out, groups]``, whatever the strategy left out."""
        if array.size == 1:
            return np.broadcast_to(array.reshape(1, 1), (self._shape(module)[0], 1))
        return array.reshape(array.shape[0], -1)

    def _zero_point(self, module: str, name: str, format: WeightFormat) -> np.ndarray:
        array = self._tensors.read(name)
        if array.dtype != np.int32:
            return self._by_channel(module, array.astype(np.int8))
        bits = 4 if format.weight in FOUR_BIT else 8  # words along the rows
        bytes_ = np.ascontiguousarray(array.T).astype("<i4", copy=False).view(np.uint8)
        if bits == 8:
            values = (bytes_ ^ 0x80).view(np.int8)
        else:
            nibbles = np.stack([bytes_ & 0xF, bytes_ >> 4], axis=-1)
            values = nibbles.reshape(len(bytes_), -1).astype(np.int8) - 8
        return values[:, : self._shape(module)[0]].T

    def _shape(self, module: str) -> tuple[int, int]:
        """``(out, in)`` of a module's weight."""
        if f"{module}.weight_shape" in self._present:
            rows, columns = self._tensors.read(f"{module}.weight_shape").tolist()
            return int(rows), int(columns)
        rows, columns = self._tensors.read(f"{module}.weight").shape
        return rows, columns


def _pack(values: np.ndarray) -> np.ndarray:
    halves = values.view(np.uint8) & 0xF
    return halves[:, 0::2] | (halves[:, 1::2] << 4)


def _refuse(key: str, found: object, expected: str) -> NoReturn:
    raise ModelError(
        f"config.json: quantization_config.{key}",
        found=found if isinstance(found, str) else repr(found),
        expected=expected,
        fix="this part of compressed-tensors is not implemented",
    )
