"""AWQ's layout of weights (AutoAWQ, ``gemm``).

``qweight [d, f / 8]`` and ``qzeros [groups, f / 8]`` have eight 4-bit values of neighbouring
outputs in each 32-bit word, those of even numbers first (0, 2, 4, 6, 1, 3, 5, 7);
``scales [groups, f]``. A weight is ``(q - zero) * scale``. Layout: https://github.com/casper-hansen/AutoAWQ,
``awq/modules/linear/gemm.py``. Method: Lin et al. 2023, https://arxiv.org/abs/2306.00978.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

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

_ENDS = ("qweight", "qzeros", "scales")
_PLACES = np.array([0, 4, 1, 5, 2, 6, 3, 7])
"""Where in a word each of eight outputs is."""


class AwqReader(Apart):
    """Reader of AWQ's modules.

    Raises:
        ModelError: a switch that is not implemented.
    """

    PRINCIPAL: ClassVar = {".qweight": ".weight"}

    def __init__(self, settings: Mapping[str, Any]):
        layout = str(settings.get("version") or settings.get("format") or "gemm").lower()
        if layout != "gemm":
            refuse("version", layout, "gemm")
        bits = settings.get("bits", settings.get("w_bit", 4))
        if bits != 4:
            refuse("bits", bits, "4")
        self._size = settings.get("group_size", settings.get("q_group_size", 128))
        self._zeros = settings.get("zero_point", True)

    def module(self, weight: str, tensors: Present) -> QuantizedModule | None:
        home = weight.removesuffix(".weight")
        if f"{home}.qweight" not in tensors:
            return None
        inputs, words = tensors.shape_of(f"{home}.qweight")
        group = group_of(inputs, self._size, f"module {home}")
        groups = 1 if group is None else inputs // group
        format = WeightFormat("int4", None, group, symmetric=not self._zeros)

        def codes(part: str, rows: int) -> np.ndarray:
            stored = expect(
                f"{home}.{part}", tensors.read(f"{home}.{part}"), np.int32, (rows, words)
            )
            return from_words(stored, 4).reshape(rows, words, 8)[..., _PLACES].reshape(rows, -1)

        def scales() -> np.ndarray:
            name = f"{home}.scales"
            stored = tensors.read(name)
            return expect(name, stored, stored.dtype, (groups, words * 8)).T

        readers = {
            "qvalue": lambda: signed(np.ascontiguousarray(codes("qweight", inputs).T), 4),
            "scale": scales,
            "zero_point": lambda: codes("qzeros", groups).T.astype(np.int8) - 8,
        }
        return QuantizedModule(
            format,
            tensors.of_module(home, _ENDS),
            lambda part: readers[part](),
            (words * 8, inputs),
            tensors.dtype_of(f"{home}.scales"),
        )
