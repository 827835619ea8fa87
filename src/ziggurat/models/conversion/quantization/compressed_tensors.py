"""The compressed-tensors format (llm-compressor, vLLM).

``quantization_config`` of ``config.json`` says how modules are quantised; a quantised module has
``weight_scale`` beside its ``weight`` (8-bit types) or ``weight_packed`` (integers in 32-bit words,
each value plus half the range, the first in the low bits; 4-bit floats two in a byte). Format:
https://github.com/vllm-project/compressed-tensors.
"""

import dataclasses
import logging
import re
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from ziggurat.core.errors import CheckpointError
from ziggurat.kernels.linear import WeightFormat
from ziggurat.models.conversion.quantization.fp4 import MXFP4, nvfp4_module
from ziggurat.models.conversion.quantization.fp8 import INERT
from ziggurat.models.conversion.quantization.module import (
    Apart,
    Present,
    QuantizedModule,
    expect,
    from_words,
    refuse,
    signed,
    spread_blocks,
)

FORMATS = (
    "int-quantized",
    "pack-quantized",
    "float-quantized",
    "naive-quantized",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
)
_log = logging.getLogger(__name__)
_INTEGERS = {8: "int8", 4: "int4"}
_KINDS = "8-bit int, 4-bit int, 8-bit float or 4-bit float"
_UNREAD = (*INERT, "input_global_scale", "input_zero_point", "weight_shape")


@dataclasses.dataclass(frozen=True)
class ConfigGroup:
    """One of the config's groups: modules, and the format of their weights."""

    name: str
    targets: tuple[str, ...]
    format: WeightFormat
    nested: bool = False
    """Whether it is NVFP4."""
    block: tuple[int, int] | None = None
    """Rows and columns that share a scale."""
    ordered: bool = False
    """Whether inputs are grouped by ``weight_g_idx``."""

    def matches(self, module: str) -> bool:
        """Whether a module is meant by name or pattern."""
        return any(_is_named(module, target) for target in self.targets)


class CompressedTensorsReader(Apart):
    """Reader of compressed-tensors' modules.

    Raises:
        ModelError: a switch that is not implemented; it is named.
    """

    PRINCIPAL: ClassVar = {".weight_packed": ".weight"}

    def __init__(self, settings: Mapping[str, Any]):
        if settings.get("format") not in (*FORMATS, "mixed-precision"):
            refuse("format", settings.get("format"), " or ".join(FORMATS))
        for key in ("transform_config", "sparsity_config", "moe_sparsity_config"):
            if settings.get(key) and settings[key] != {"format": "dense"}:
                refuse(key, settings[key], "none")
        if settings.get("kv_cache_scheme"):
            _log.warning("the checkpoint's scales for a quantised cache are not used")
        found = settings.get("config_groups")
        if not isinstance(found, dict) or not found:
            refuse("config_groups", found, "a table of groups")
        self._groups = tuple(_group(name, scheme) for name, scheme in found.items())

    def module(self, weight: str, tensors: Present) -> QuantizedModule | None:
        home = weight.removesuffix(".weight")
        if f"{home}.weight_scale" not in tensors:
            return None
        group = self._group_of(home)
        if group.nested:
            return nvfp4_module(home, tensors, "weight_packed", _UNREAD)
        return _Module(home, group, tensors).described()

    def _group_of(self, module: str) -> ConfigGroup:
        """The group of a module that has scales; groups that name it come before classes."""
        ranked = [group for group in self._groups if group.matches(module)] or [
            group for group in self._groups if "Linear" in group.targets
        ]
        if not ranked:
            raise CheckpointError(
                f"module {module}",
                found="scales, but no group of config.json that means it",
                expected="a target that names it",
            )
        return ranked[0]


@dataclasses.dataclass(frozen=True)
class _Module:
    """One module's parts, still ``[out, in]``."""

    home: str
    group: ConfigGroup
    tensors: Present

    def described(self) -> QuantizedModule:
        """The module as a reader gives it."""
        format, home = self.group.format, self.home
        if self.group.block is not None:
            shape = self._shape()
            scales = self.tensors.shape_of(f"{home}.weight_scale")
            tile = spread_blocks(np.zeros(scales), self.group.block, shape)[1]
            format = dataclasses.replace(format, tile_size=tile)
        ends = ("weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_g_idx")
        readers = {
            "qvalue": self._values,
            "scale": self._scales,
            "zero_point": self._zero_points,
            "order": self._order,
        }
        return QuantizedModule(
            format,
            self.tensors.of_module(home, (*ends, *_UNREAD)),
            lambda part: readers[part](),
            self._shape(),
            self.tensors.dtype_of(f"{home}.weight_scale"),
        )

    @property
    def _bits(self) -> int:
        return 8 if self.group.format.weight in ("int8", "fp8_e4m3") else 4

    def _read(self, end: str) -> np.ndarray:
        return self.tensors.read(f"{self.home}.{end}")

    def _values(self) -> np.ndarray:
        if f"{self.home}.weight_packed" not in self.tensors:
            plain = self._read("weight")
            return plain if self._bits == 8 else signed(plain.view(np.uint8) & 0xF ^ 8, 4)
        rows, columns = self._shape()
        packed, name = self._read("weight_packed"), f"{self.home}.weight_packed"
        if self.group.format == MXFP4:
            return expect(name, packed, np.uint8, (rows, columns // 2))
        if packed.dtype != np.int32 or packed.shape != (rows, -(-columns * self._bits // 32)):
            raise CheckpointError(
                f"tensor {name}",
                found=f"{packed.dtype} {list(packed.shape)}",
                expected=f"int32 words of {rows} x {columns} values",
            )
        codes = from_words(packed, self._bits)[:, :columns]
        order = self._order() if self.group.ordered else slice(None)
        return signed(codes[:, order], self._bits)

    def _scales(self) -> np.ndarray:
        array, shape = self._read("weight_scale"), self._shape()
        if self.group.block is not None:
            return spread_blocks(array.astype(np.float32), self.group.block, shape)[0]
        return self._by_channel(array)

    def _by_channel(self, array: np.ndarray) -> np.ndarray:
        """``[out, groups]``, whatever the strategy left out."""
        if array.size == 1:
            return np.broadcast_to(array.reshape(1, 1), (self._shape()[0], 1))
        return array.reshape(array.shape[0], -1)

    def _zero_points(self) -> np.ndarray:
        array = self._read("weight_zero_point")
        if array.dtype != np.int32:
            return self._by_channel(array.astype(np.int8))
        codes = from_words(array.T, self._bits)[:, : self._shape()[0]]  # words along the rows
        return (codes.T.astype(np.int16) - (1 << (self._bits - 1))).astype(np.int8)

    def _order(self) -> np.ndarray:
        index = self._read("weight_g_idx").reshape(-1)
        order = np.argsort(index, kind="stable").astype(np.int32)
        tile = self.group.format.tile_size or index.size
        if not np.array_equal(index[order], np.arange(index.size) // tile):
            raise CheckpointError(
                f"tensor {self.home}.weight_g_idx",
                found="groups of unequal size",
                expected=f"{tile} inputs in each",
            )
        return order

    def _shape(self) -> tuple[int, int]:
        """``(out, in)`` of the weight."""
        if f"{self.home}.weight_shape" in self.tensors:
            rows, columns = self._read("weight_shape").tolist()
            return int(rows), int(columns)
        if self.group.format == MXFP4:
            rows, half = self.tensors.shape_of(f"{self.home}.weight_packed")
            return rows, half * 2
        rows, columns = self.tensors.shape_of(f"{self.home}.weight")
        return rows, columns


def _group(name: str, scheme: Any) -> ConfigGroup:
    where = f"config_groups.{name}"
    weights, inputs = scheme.get("weights"), scheme.get("input_activations")
    if scheme.get("format") not in (None, *FORMATS):
        refuse(f"{where}.format", scheme["format"], " or ".join(FORMATS))
    if scheme.get("output_activations"):
        refuse(f"{where}.output_activations", "quantised", "none")
    if not weights:
        refuse(f"{where}.weights", weights, "a type of weights")
    targets = tuple(scheme.get("targets") or ())
    kind = (weights.get("num_bits", 8), weights.get("type", "int"))
    if kind == (4, "float"):
        return _four_bit_floats(name, where, targets, weights)
    if kind not in ((8, "int"), (4, "int"), (8, "float")):
        refuse(f"{where}.weights", f"{kind[0]}-bit {kind[1]}", _KINDS)
    strategy, size = weights.get("strategy"), weights.get("group_size")
    known = ("channel", "group", "tensor", *(("block",) if kind == (8, "float") else ()))
    if strategy not in known:
        refuse(f"{where}.weights.strategy", strategy, " or ".join(known))
    actorder = weights.get("actorder") or None
    if actorder not in (None, "weight", "static", "group", "dynamic"):
        refuse(f"{where}.weights.actorder", actorder, "none, weight or group")
    symmetric = weights.get("symmetric", True)
    activation = _activation(f"{where}.input_activations", inputs)
    if not symmetric and (activation or kind[1] == "float"):
        refuse(f"{where}.weights.symmetric", False, "true with quantised activations or floats")
    ordered = actorder in ("group", "dynamic") and strategy == "group"
    format = WeightFormat(
        "fp8_e4m3" if kind[1] == "float" else _INTEGERS[kind[0]],  # pyright: ignore[reportArgumentType]
        None if strategy == "block" else activation,
        size if strategy == "group" else None,
        symmetric,
        ordered=ordered,
    )
    block = None
    if strategy == "block":
        rows, columns = weights.get("block_structure") or (128, 128)
        block = (int(rows), int(columns))
    return ConfigGroup(name, targets, format, block=block, ordered=ordered)


def _four_bit_floats(name: str, where: str, targets: tuple[str, ...], weights: Any) -> ConfigGroup:
    """NVFP4 or MXFP4. Activations stay floats, as where a device has no 4-bit matmuls."""
    size = weights.get("group_size")
    if size not in (16, 32):
        refuse(f"{where}.weights.group_size", size, "16 (NVFP4) or 32 (MXFP4)")
    if not weights.get("symmetric", True):
        refuse(f"{where}.weights.symmetric", False, "true for floats")
    format = WeightFormat("fp4_e2m1") if size == 16 else MXFP4
    return ConfigGroup(name, targets, format, nested=size == 16)


def _activation(where: str, inputs: Any) -> Any:
    """Type of activations that is applied. Float8 with other scales than a token's own is left out,
    which rounds less; integers are refused then."""
    if not inputs:
        return None
    kind = (inputs.get("num_bits", 8), inputs.get("type", "int"))
    if kind not in ((8, "int"), (8, "float")):
        refuse(where, f"{kind[0]}-bit {kind[1]}", "8-bit int or 8-bit float")
    for key, expected, fix in (
        ("dynamic", True, "true: scales taken per token"),
        ("strategy", "token", "token"),
        ("symmetric", True, "true"),
    ):
        found = inputs.get(key, {"dynamic": False, "strategy": None, "symmetric": True}[key])
        if found != expected and kind[1] == "float" and key != "symmetric":
            _log.warning("%s.%s: activations stay floats, for %r is not applied", where, key, found)
            return None
        if found != expected:
            refuse(f"{where}.{key}", found, fix)
    return "int8" if kind[1] == "int" else "fp8_e4m3"


def _is_named(module: str, target: str) -> bool:
    if target.startswith("re:"):
        return re.match(target[3:], module) is not None
    return module == target
