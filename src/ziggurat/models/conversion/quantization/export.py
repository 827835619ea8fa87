"""Quantised weights written as other programs read them: compressed-tensors, GPTQ's and AWQ's
layouts.

The codes, scales and zero points of a weight go through the family's table of names one by one, so
that fused, transposed and reordered tensors come out as float ones do. Then each is packed.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from ziggurat.core.errors import ConfigError
from ziggurat.core.pytrees import named_leaves, nested
from ziggurat.kernels.linear import QuantizedWeight, WeightFormat, dense, is_quantized
from ziggurat.kernels.linear.weight_types import unpack
from ziggurat.models.conversion.weight_names import WeightName, export_weights
from ziggurat.models.language_model import Params

_log = logging.getLogger(__name__)

Layout = Literal["compressed-tensors", "gptq", "awq"]
"""Layouts that are written, by transformers' ``quant_method``."""
BITS = {"int4": 4, "int8": 8}
_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in a word AWQ puts each of eight outputs."""
Tensors = Iterator[tuple[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class QuantizedExport:
    """Tensors of a quantised checkpoint and what its ``config.json`` says of them."""

    tensors: Tensors
    config: dict[str, Any]
    """``quantization_config``."""


def quantized_export(
    layout: Layout, names: Iterable[WeightName], params: Params, *, layers: int
) -> QuantizedExport:
    """Write the quantised matrices of a model in a layout; tables of the vocabulary become floats.

    Args:
        layout: the layout.
        names: the family's table.
        params: the parameters.
        layers: of the model.

    Raises:
        ConfigError: nothing is quantised, or a weight has a format that the layout lacks.
    """
    names = list(names)
    leaves = named_leaves(params, is_leaf=is_quantized)
    chosen = {
        name.ours: leaves[name.ours]
        for name in names
        if is_quantized(leaves[name.ours]) and leaves[name.ours].axis == -2
    }
    if not chosen:
        raise ConfigError(
            f"export as {layout}",
            found="no quantised matrices",
            expected="a model with some",
            fix="quantise it first: ziggurat quantize --recipe int4",
        )
    for name, weight in chosen.items():
        _check(layout, name, weight)
    tables = [n for n, leaf in leaves.items() if is_quantized(leaf) and n not in chosen]
    if tables:
        _log.warning("%s: written as floats, since %s has no tables", ", ".join(tables), layout)
    parts: dict[str, Any] = {n: leaf for n, leaf in leaves.items() if n not in chosen}
    parts |= {name: np.asarray(dense(leaves[name])) for name in tables}
    table: list[WeightName] = []
    homes: dict[str, WeightFormat] = {}
    for name in names:
        if name.ours not in chosen:
            table.append(name)
            continue
        for part, array in _parts(chosen[name.ours]).items():
            parts[f"{name.ours}_{part}"] = array
            end = {"ours": f"{name.ours}_{part}", "theirs": f"{name.theirs}.{part}"}
            table.append(dataclasses.replace(name, **end))
        for theirs in name.all_theirs(layers):
            homes[_home(theirs, layout)] = chosen[name.ours].format
    plain = _linear_floats(table, layers)
    write, settings = _LAYOUTS[layout](homes, chosen, plain)
    return QuantizedExport(
        _packed(export_weights(table, nested(parts), layers=layers), write), settings
    )


def _check(layout: Layout, name: str, weight: QuantizedWeight) -> None:
    format = weight.format
    kinds = ("int4",) if layout == "awq" else tuple(BITS)
    rounds = format.activation is not None
    allowed = layout == "compressed-tensors" and (format.activation, format.weight) == ("int8",) * 2
    if (
        format.weight in kinds
        and format.in_qwix
        and not format.ordered
        and (not rounds or (allowed and format.tile_size is None))
    ):
        return
    found = format.weight + (f" with {format.activation} activations" if rounds else "")
    raise ConfigError(
        f"export as {layout}: {name}",
        found=found if format.in_qwix else f"{found} with scales of another program's form",
        expected=" or ".join(kinds) + " weights with float activations",
        fix="quantise with another recipe, or export floats without --quantization",
    )


def _home(theirs: str, layout: Layout) -> str:
    if not theirs.endswith(".weight"):
        raise ConfigError(
            f"export as {layout}: {theirs}",
            found="experts in one tensor",
            expected="a weight of a linear module",
            fix="export floats without --quantization",
        )
    return theirs.removesuffix(".weight")


def _parts(weight: QuantizedWeight) -> dict[str, np.ndarray]:
    """Codes as int8 ``[..., d, f]``, scales ``[..., tiles, f]`` and zero points beside them."""
    codes = np.asarray(weight.qvalue)
    if weight.format.weight == "int4":
        codes = np.asarray(unpack(jnp.asarray(codes), -2, signed=True))
    found = {"codes": codes, "scale": np.asarray(weight.scale)}
    if weight.zero_point is not None:
        found["zero"] = np.asarray(weight.zero_point)
    return found


def _linear_floats(table: Iterable[WeightName], layers: int) -> list[str]:
    """Modules with matrices that stay floats, by the kernels that stand for linear modules here."""
    ends = (".kernel", "unembedding")
    return sorted(
        theirs.removesuffix(".weight")
        for name in table
        if name.ours.endswith(ends)
        for theirs in name.all_theirs(layers)
    )


def _packed(
    tensors: Iterable[tuple[str, np.ndarray]], write: Callable[[str, str, np.ndarray], Tensors]
) -> Tensors:
    for name, array in tensors:
        stem, _, part = name.rpartition(".")
        if part in ("codes", "scale", "zero"):
            yield from write(stem.removesuffix(".weight"), part, array)
        else:
            yield name, array


def to_words(codes: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned values ``[n, m]`` in 32-bit words along the rows, the first in the low bits; the
    last word is filled with zeros.

    >>> to_words(np.array([[1, 2, 3]], np.uint8), 4).tolist()
    [[801]]
    """
    each = 32 // bits
    padded = np.pad(codes.astype(np.uint32), ((0, 0), (0, -codes.shape[1] % each)))
    values = padded.reshape(len(codes), -1, each)
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    return (values << shifts).sum(axis=-1, dtype=np.uint32).view(np.int32)


def _unsigned(codes: np.ndarray, bits: int) -> np.ndarray:
    return (codes.astype(np.int16) + (1 << (bits - 1))).astype(np.uint8)


def _one_format(layout: Layout, homes: Mapping[str, WeightFormat]) -> WeightFormat:
    kinds = list(dict.fromkeys(homes.values()))
    if len(kinds) > 1:
        shown = " and ".join(f"{kind.weight}, tile {kind.tile_size}" for kind in kinds[:2])
        raise ConfigError(
            f"export as {layout}",
            found=f"several formats: {shown}",
            expected="one for all matrices",
            fix="export as compressed-tensors",
        )
    return kinds[0]


def _gptq(homes: Any, chosen: Any, plain: list[str]) -> tuple[Any, dict[str, Any]]:
    format = _one_format("gptq", homes)
    bits, half = BITS[format.weight], 1 << (BITS[format.weight] - 1)
    zeros = [weight.zero_point for weight in chosen.values() if weight.zero_point is not None]
    # the first version of the layout stores zero points less one, and has no place for the least
    least = min((int(np.asarray(zero).min()) for zero in zeros), default=0)
    version, less = ("gptq", 1) if least > -half else ("gptq_v2", 0)
    group = format.tile_size or -1

    def write(home: str, part: str, array: np.ndarray) -> Tensors:
        if part == "codes":
            yield f"{home}.qweight", to_words(_unsigned(array, bits), bits).T.copy()
            tile = format.tile_size or array.shape[1]
            yield f"{home}.g_idx", (np.arange(array.shape[1]) // tile).astype(np.int32)
        elif part == "scale":
            yield f"{home}.scales", array.T.copy()
            if format.symmetric:
                same = np.full(array.T.shape, half - less, np.uint8)
                yield f"{home}.qzeros", to_words(same, bits)
        else:
            yield f"{home}.qzeros", to_words(_unsigned(array.T, bits) - np.uint8(less), bits)

    settings = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": False}
    settings |= {"sym": format.symmetric, "checkpoint_format": version, "lm_head": False}
    return write, settings


def _awq(homes: Any, chosen: Any, plain: list[str]) -> tuple[Any, dict[str, Any]]:
    format = _one_format("awq", homes)
    for name, weight in chosen.items():
        if weight.shape[-1] % 8:
            raise ConfigError(
                f"export as awq: {name}",
                found=f"{weight.shape[-1]} outputs",
                expected="a multiple of 8",
                fix="export as gptq or compressed-tensors",
            )

    def words(codes: np.ndarray) -> np.ndarray:
        """Values ``[n, f]`` in words along the outputs, eight in AWQ's order."""
        eights = codes.reshape(len(codes), -1, 8)
        placed = np.empty_like(eights)
        placed[..., list(_AWQ_PLACES)] = eights
        return to_words(placed.reshape(codes.shape), 4)

    def write(home: str, part: str, array: np.ndarray) -> Tensors:
        if part == "codes":
            yield f"{home}.qweight", words(_unsigned(array.T, 4))
        elif part == "scale":
            yield f"{home}.scales", array.T.copy()
            if format.symmetric:
                yield f"{home}.qzeros", words(np.full(array.T.shape, 8, np.uint8))
        else:
            yield f"{home}.qzeros", words(_unsigned(array.T, 4))

    settings = {"quant_method": "awq", "bits": 4, "group_size": format.tile_size or -1}
    settings |= {"zero_point": True, "version": "gemm", "modules_to_not_convert": plain or None}
    return write, settings


def _compressed(homes: Any, chosen: Any, plain: list[str]) -> tuple[Any, dict[str, Any]]:
    kinds = list(dict.fromkeys(homes.values()))

    def write(home: str, part: str, array: np.ndarray) -> Tensors:
        format = homes[home]
        bits = BITS[format.weight]
        if part == "scale":
            yield f"{home}.weight_scale", array
        elif part == "zero":
            words = to_words(_unsigned(array.T, bits), bits)  # along the outputs
            yield f"{home}.weight_zero_point", words.T.copy()
        elif format.activation is not None:
            yield f"{home}.weight", array
        else:
            yield f"{home}.weight_packed", to_words(_unsigned(array, bits), bits)
            yield f"{home}.weight_shape", np.asarray(array.shape, np.int64)

    groups = {}
    for number, format in enumerate(kinds):
        targets = ["Linear"]
        if len(kinds) > 1:
            targets = [home for home, kind in homes.items() if kind == format]
        groups[f"group_{number}"] = _scheme(format, targets)
    forms = {group["format"] for group in groups.values()}
    settings = {
        "quant_method": "compressed-tensors",
        "format": forms.pop() if len(forms) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": plain,
        "config_groups": groups,
    }
    return write, settings


def _scheme(format: WeightFormat, targets: list[str]) -> dict[str, Any]:
    """One of the groups of ``quantization_config``."""
    weights = {
        "num_bits": BITS[format.weight],
        "type": "int",
        "symmetric": format.symmetric,
        "strategy": "channel" if format.tile_size is None else "group",
        "group_size": format.tile_size,
        "dynamic": False,
        "observer": "minmax",
    }
    inputs = None
    if format.activation is not None:
        inputs = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token"}
        inputs |= {"dynamic": True, "group_size": None, "observer": None}
    form = "pack-quantized" if inputs is None else "int-quantized"
    return {
        "targets": targets,
        "weights": weights,
        "input_activations": inputs,
        "output_activations": None,
        "format": form,
    }


_LAYOUTS: Mapping[str, Callable[..., tuple[Any, dict[str, Any]]]] = {
    "compressed-tensors": _compressed,
    "gptq": _gptq,
    "awq": _awq,
}
