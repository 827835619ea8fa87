"""GPTQ's layout of weights (AutoGPTQ, GPTQModel), which AutoRound writes too.

``qweight [d * bits / 32, f]`` has values in 32-bit words along the inputs, low bits first;
``qzeros [groups, f * bits / 32]`` zero points along the outputs, less by one but in version 2 of
the layout; ``scales [groups, f]``; ``g_idx [d]`` the group of each input. A weight is
``(q - zero) * scale``. Layout: https://github.com/AutoGPTQ/AutoGPTQ,
``auto_gptq/nn_modules/qlinear``; https://github.com/ModelCloud/GPTQModel. Method: Frantar et al.
2022, https://arxiv.org/abs/2210.17323.
"""

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from ziggurat.core.errors import CheckpointError
from ziggurat.kernels.linear import WeightFormat
from ziggurat.models.conversion.quantization.module import (
    Apart,
    Present,
    QuantizedModule,
    expect,
    from_words,
    group_of,
    refuse,
    signed,
)

_ENDS = ("qweight", "qzeros", "scales", "g_idx")


class GptqReader(Apart):
    """Reader of GPTQ's modules.

    Raises:
        ModelError: a switch that is not implemented.
    """

    PRINCIPAL: ClassVar = {".qweight": ".weight"}

    def __init__(self, settings: Mapping[str, Any]):
        self._settings = settings
        layout = settings.get("checkpoint_format") or settings.get("format") or "gptq"
        if layout not in ("gptq", "gptq_v2"):
            refuse("checkpoint_format", layout, "gptq or gptq_v2")
        self._added = 1 if layout == "gptq" else 0
        self._overrides = settings.get("dynamic") or {}
        self._of("")

    def module(self, weight: str, tensors: Present) -> QuantizedModule | None:
        home = weight.removesuffix(".weight")
        if f"{home}.qweight" not in tensors:
            return None
        bits, size = self._of(home)
        words, outputs = tensors.shape_of(f"{home}.qweight")
        inputs, per_word = words * 32 // bits, 32 // bits
        groups = tensors.shape_of(f"{home}.scales")[0]
        group = group_of(inputs, size, f"module {home}")
        count = 1 if group is None else inputs // group
        if groups != count:
            raise CheckpointError(
                f"tensor {home}.scales",
                found=f"{groups} groups",
                expected=f"{count}, of {size} inputs each",
                fix="check quantization_config against the weights",
            )
        order = self._order(home, tensors, inputs, group)
        kind = "int4" if bits == 4 else "int8"
        format = WeightFormat(kind, None, group, symmetric=False, ordered=order is not None)

        def values() -> np.ndarray:
            stored = tensors.read(f"{home}.qweight")
            stored = expect(f"{home}.qweight", stored, np.int32, (words, outputs))
            codes = from_words(stored.T, bits)
            return signed(codes if order is None else codes[:, order], bits)

        def zeros() -> np.ndarray:
            stored = tensors.read(f"{home}.qzeros")
            stored = expect(f"{home}.qzeros", stored, np.int32, (groups, -(-outputs // per_word)))
            codes = from_words(stored, bits)[:, :outputs].astype(np.int16)
            zero = (codes + self._added - (1 << (bits - 1))).T
            if zero.max(initial=0) > 127:
                raise CheckpointError(
                    f"tensor {home}.qzeros",
                    found="zero points of 256",
                    expected="at most 255",
                    fix="write the checkpoint in the layout gptq_v2",
                )
            return zero.astype(np.int8)

        readers = {
            "qvalue": values,
            "scale": lambda: tensors.read(f"{home}.scales").T,
            "zero_point": zeros,
            "order": lambda: order,
        }
        return QuantizedModule(
            format,
            tensors.of_module(home, _ENDS),
            lambda part: readers[part](),
            (outputs, inputs),
            tensors.dtype_of(f"{home}.scales"),
        )

    def _of(self, home: str) -> tuple[int, int | None]:
        """Bits and group size of a module."""
        found = dict(self._settings)
        for pattern, changes in self._overrides.items():  # GPTQModel: the first match decides
            if home and re.match(pattern.removeprefix("+:").removeprefix("-:"), home):
                found |= changes if isinstance(changes, dict) else {}
                break
        if found.get("bits") not in (4, 8):
            refuse("bits", found.get("bits"), "4 or 8")
        return found["bits"], found.get("group_size")

    def _order(
        self, home: str, tensors: Present, inputs: int, group: int | None
    ) -> np.ndarray | None:
        """Inputs sorted by their group; ``None`` where they lie so."""
        if group is None or f"{home}.g_idx" not in tensors:
            return None
        index = expect(f"{home}.g_idx", tensors.read(f"{home}.g_idx"), np.int32, (inputs,))
        order = np.argsort(index, kind="stable").astype(np.int32)
        if not np.array_equal(index[order], np.arange(inputs) // group):
            raise CheckpointError(
                f"tensor {home}.g_idx",
                found="groups of unequal size",
                expected=f"{group} inputs in each",
            )
        # every module has the part or none has: a stack of layers is one array
        return order if self._settings.get("desc_act") or (order[1:] < order[:-1]).any() else None
