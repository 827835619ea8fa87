"""Whether a function ignores padding, tried on inputs made to catch one that does not.

Inputs are padded with zeros, and a function may use that zeros are there in ways no analysis of the
program can judge (a mask, a sum). So each size of a table is tried at its smallest and largest
amount of padding on inputs of every sign and magnitude: all negative for a maximum, far from zero
for a threshold, equal, tiny and huge for a scale. Equal results there are evidence, not proof.

Integers are drawn as what they usually are. Along the padded dimension they are ids; a tensor whose
name contains ``mask``, and a BOOL one, holds 0 and 1 with at least one 1; without that dimension
they are lengths, from 1 up to the size. Golden inputs narrow integers to the range seen in them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Shaped

from ziggurat.serve.predict.program import crop
from ziggurat.serve.predict.signature import BATCH, Signature, Tensor

Arrays = Mapping[str, Shaped[np.ndarray, "..."]]
Function = Callable[[Arrays], Sequence[Shaped[np.ndarray, "..."]]]
_OPEN_SIZE = 8
"""Size of a dimension without a table."""
_FLOATS: tuple[tuple[str, float, float], ...] = (
    ("of both signs", -1.0, 1.0),
    ("all negative", -3.0, -0.5),
    ("all positive", 0.5, 3.0),
    ("near zero", -1e-3, 1e-3),
    ("of size 100", -100.0, 100.0),
    ("all above 10000", 1e4, 2e4),
    ("all below -10000", -2e4, -1e4),
    ("of size 1e30", -1e30, 1e30),
    ("all equal", -2.0, -2.0),
)
_INTEGERS: tuple[tuple[str, int, int], ...] = (
    ("0 and 1", 0, 1),
    ("1 to 9", 1, 9),
    ("10 to 100", 10, 100),
    ("6 to 900", 6, 900),
    ("1000 to 30000", 1000, 30000),
    ("all negative", -900, -1),
    ("of the whole range", -(2**63), 2**63 - 1),
    ("of the upper half of the range", 2**62, 2**63 - 1),
    ("all equal", 7, 7),
)


def seen(
    function: Function,
    signature: Signature,
    tables: Mapping[str, Sequence[int]],
    golden: Sequence[Arrays],
    apart: bool,
    rtol: float,
) -> dict[str, str]:
    """How padding along each symbol of a table changes a result, for those where it does.

    Args:
        function: of inputs by name; gives the outputs in the signature's order.
        signature: its inputs and outputs.
        tables: for a symbol the sizes that inputs are padded to.
        golden: inputs that show the range of integers; empty: not known.
        apart: whether rows of a batch are independent, so that many inputs are tried as one batch.
        rtol: what a result may differ by, relative to its row's largest magnitude.
    """
    found = {}
    for symbol, table in tables.items():
        trial = _Trial(function, signature, tables, golden, apart, rtol, symbol)
        reasons = (trial.differs(size, padded) for size, padded in _steps(table))
        reason = next(filter(None, reasons), None)
        if reason is not None:
            found[symbol] = reason
    return found


def _steps(table: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Sizes with what they are padded to: the most padding, and in the first entry the least."""
    before = 0
    for entry in table:
        if before + 1 < entry:
            yield before + 1, entry
        if not before and entry > 2:
            yield entry - 1, entry
        before = entry


class _Trial:
    """One symbol's inputs, drawn and compared."""

    def __init__(
        self,
        function: Function,
        signature: Signature,
        tables: Mapping[str, Sequence[int]],
        golden: Sequence[Arrays],
        apart: bool,
        rtol: float,
        symbol: str,
    ):
        self._function, self._signature, self._golden = function, signature, golden
        self._tables, self._apart, self._rtol, self._symbol = tables, apart, rtol, symbol
        self._draw = np.random.default_rng(0)

    def differs(self, size: int, padded: int) -> str | None:
        """How padding from ``size`` to ``padded`` changes an output, or None."""
        sizes = {name: table[0] for name, table in self._tables.items()}
        sizes |= {self._symbol: size, BATCH: 1}
        kinds = list(self._kinds())
        rows = [self._inputs(kind, sizes) for kind in kinds]
        if self._apart:
            rows = [{n: np.concatenate([row[n] for row in rows]) for n in rows[0]}]
            sizes[BATCH] = len(kinds)
        for number, inputs in enumerate(rows):
            plain = self._function(inputs)
            wide = self._function({n: self._padded(n, a, padded) for n, a in inputs.items()})
            for tensor, whole, other in zip(self._signature.outputs, plain, wide, strict=True):
                part = crop(np.asarray(other), tensor.shape, sizes)
                row = _unequal_row(np.asarray(whole), part, self._rtol, self._apart)
                if row is not None:
                    kind = kinds[row if self._apart else number]
                    told = ", ".join(f"{name} {text}" for name, text in kind.items())
                    return (
                        f"padding it with zeros from {size} to {padded} changes output "
                        f"{tensor.name} ({told})"
                    )
        return None

    def _kinds(self) -> Iterator[dict[str, str]]:
        """For each input one kind of values, so that all kinds of all inputs occur and meet."""
        choices = {t.name: self._choices(t) for t in self._signature.inputs}
        count = max(map(len, choices.values()))
        for turn in range(count):
            yield {name: own[turn % len(own)] for name, own in choices.items()}
        for _ in range(count):
            yield {name: own[self._draw.integers(len(own))] for name, own in choices.items()}

    def _choices(self, tensor: Tensor) -> list[str]:
        if _is_mask(tensor):
            return ["all 1", "1 then 0", "0 and 1"]
        if tensor.dtype.kind not in "biu":
            return [kind for kind, *_ in _FLOATS]
        if self._symbol not in tensor.shape and tensor.dtype.itemsize > 1:
            return ["1 up to its size"]
        unsigned = tensor.dtype.kind == "u"
        return [kind for kind, _, high in _INTEGERS if not (unsigned and high < 0)]

    def _inputs(self, kinds: Mapping[str, str], sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
        return {t.name: self._array(t, kinds[t.name], sizes) for t in self._signature.inputs}

    def _array(self, tensor: Tensor, kind: str, sizes: Mapping[str, int]) -> np.ndarray:
        shape = [sizes.get(s, _OPEN_SIZE) if isinstance(s, str) else s for s in tensor.shape]
        if _is_mask(tensor):
            return self._mask(tensor, kind, shape)
        if tensor.dtype.kind not in "biu":
            low, high = next(bounds for name, *bounds in _FLOATS if name == kind)
            most = 3e4 if tensor.dtype.itemsize == 2 and tensor.datatype == "FP16" else 1e38
            drawn = self._draw.uniform(low, high, shape)
            return np.clip(drawn, -most, most).astype(tensor.dtype)
        limits = np.iinfo(tensor.dtype)
        if kind == "1 up to its size":
            low, high = 1, sizes[self._symbol]
        else:
            low, high = next(bounds for name, *bounds in _INTEGERS if name == kind)
        values = [int(a[tensor.name].min()) for a in self._golden if a[tensor.name].size]
        values += [int(a[tensor.name].max()) for a in self._golden if a[tensor.name].size]
        least, most = (min(values), max(values)) if values else (limits.min, limits.max)
        least, most = max(least, int(limits.min)), min(most, int(limits.max))
        if kind == "of the upper half of the range":
            low, high = most - (most - least) // 2, most
        low, high = (min(max(bound, least), most) for bound in (low, high))
        return self._draw.integers(low, high, shape, tensor.dtype, endpoint=True)

    def _mask(self, tensor: Tensor, kind: str, shape: Sequence[int]) -> np.ndarray:
        mask = np.ones(shape, tensor.dtype)
        if self._symbol not in tensor.shape or kind == "all 1":
            return mask
        axis = tensor.shape.index(self._symbol)
        along = np.moveaxis(mask, axis, 0)
        if kind == "1 then 0":
            along[(len(along) + 1) // 2 :] = 0
        else:
            along[1:] = self._draw.integers(0, 2, along[1:].shape)
        return mask

    def _padded(self, name: str, array: np.ndarray, padded: int) -> np.ndarray:
        tensor = next(t for t in self._signature.inputs if t.name == name)
        shape = [padded if s == self._symbol else n for s, n in zip(tensor.shape, array.shape)]
        whole = np.zeros(shape, array.dtype)
        whole[tuple(map(slice, array.shape))] = array
        return whole


def _is_mask(tensor: Tensor) -> bool:
    return tensor.datatype == "BOOL" or "mask" in tensor.name.lower()


def _unequal_row(a: np.ndarray, b: np.ndarray, rtol: float, rows: bool) -> int | None:
    """The first row that differs, each against its own magnitude; without rows 0 means the whole.

    Where ``a`` is not finite nothing is asked of ``b``: the inputs were too large for the function.
    """
    one, other = (x.reshape(len(x) if rows else 1, -1) for x in (a, b))
    if a.shape != b.shape:
        return 0
    if a.dtype.kind in "biu":
        different = (one != other).any(1)
    else:
        one, other = one.astype(np.float64), other.astype(np.float64)
        good = np.isfinite(one)
        scale = np.abs(np.where(good, one, 0)).max(1, initial=0.0, keepdims=True)
        gap = np.where(good, np.abs(np.where(good, one, 0) - other), 0)
        different = ~(gap <= rtol * scale + 1e-6).all(1)
    return int(np.flatnonzero(different)[0]) if different.any() else None
