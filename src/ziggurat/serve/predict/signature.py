"""Signature of a bundle: named tensors with a KServe data type and symbolic dimensions.

>>> signature = Signature.parse("tokens:INT32[b,t] mask:INT32[b,t] -> embedding:FP32[b,384]")
>>> signature.inputs[0]
Tensor(name='tokens', datatype='INT32', shape=('b', 't'))
>>> signature.symbols, signature.batched, str(signature.outputs[0])
(('b', 't'), True, 'embedding:FP32[b,384]')
"""

import re
from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np

from ziggurat.core import config
from ziggurat.core.errors import ServeError, ZigguratError

BATCH = "b"
"""The symbol of the batch dimension, as in the glossary: rows that do not depend on one another."""

DATATYPES: dict[str, np.dtype] = {
    name: np.dtype(kind)
    for name, kind in {
        "BOOL": np.bool_,
        "UINT8": np.uint8,
        "UINT16": np.uint16,
        "UINT32": np.uint32,
        "UINT64": np.uint64,
        "INT8": np.int8,
        "INT16": np.int16,
        "INT32": np.int32,
        "INT64": np.int64,
        "FP16": np.float16,
        "FP32": np.float32,
        "FP64": np.float64,
        "BF16": ml_dtypes.bfloat16,
    }.items()
}
"""KServe's data types but for BYTES: XLA has no strings, so text is tokenised by the client."""

_NAMES = {dtype: name for name, dtype in DATATYPES.items()}
_NAME = r"[A-Za-z_][\w.\-]{0,127}"
_TENSOR = re.compile(rf"(?P<name>{_NAME})(?::(?P<type>\w+)\[(?P<shape>[^\[\]]*)\])?")
_SYMBOL = re.compile(r"[a-z][a-z0-9_]{0,31}")
_EXAMPLE = 'e.g. "tokens:INT32[b,t] mask:INT32[b,t] -> embedding"'


def datatype_of(dtype: np.dtype, what: str) -> str:
    """KServe's name of a numpy type.

    >>> datatype_of(np.dtype("float32"), "x")
    'FP32'

    Raises:
        ServeError: the protocol has no such type.
    """
    if np.dtype(dtype) not in _NAMES:
        raise ServeError(
            what, found=f"type {dtype}", expected="one of " + ", ".join(_NAMES.values())
        )
    return _NAMES[np.dtype(dtype)]


@config.node
class Tensor:
    """One named input or output."""

    name: str
    datatype: str
    """KServe's name, such as ``FP32``."""
    shape: tuple[int | str, ...]
    """Sizes; a name stands for any size of one or more, the same wherever it stands. An output's
    may be an expression of names, such as ``2*t``."""

    def __post_init__(self):
        config.require(bool(re.fullmatch(_NAME, self.name)), "name", self.name, "a plain name")
        known = ", ".join(DATATYPES)
        config.require(self.datatype in DATATYPES, "datatype", self.datatype, f"one of {known}")
        for size in self.shape:
            good = bool(size) if isinstance(size, str) else 0 <= size < 2**31
            config.require(good, "shape", size, "a size or a symbol")

    @property
    def dtype(self) -> np.dtype:
        """Numpy type of the tensor."""
        return DATATYPES[self.datatype]

    @property
    def wire_shape(self) -> list[int]:
        """Shape in the model's metadata: -1 for any size."""
        return [-1 if isinstance(size, str) else size for size in self.shape]

    def __str__(self) -> str:
        return f"{self.name}:{self.datatype}[{','.join(map(str, self.shape))}]"


@config.node
class Signature:
    """The inputs and outputs of a bundle, in the order of the function's arguments and results.

    With the symbol ``b`` the bundle is batched: ``b`` leads every tensor and requests are joined
    along it.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def __post_init__(self):
        for kind, tensors in (("inputs", self.inputs), ("outputs", self.outputs)):
            names = [tensor.name for tensor in tensors]
            config.require(bool(names), kind, "none", "at least one")
            config.require(len(set(names)) == len(names), kind, names, "each name once")
        if any(BATCH in tensor.shape for tensor in self.inputs):
            for tensor in (*self.inputs, *self.outputs):
                good = tensor.shape[:1] == (BATCH,) and BATCH not in tensor.shape[1:]
                expected = f"the batch {BATCH} as first dimension of every tensor, and only there"
                config.require(good, tensor.name, list(tensor.shape), expected)

    @classmethod
    def parse(cls, text: str) -> "Signature":
        """Read ``"name:TYPE[dims] ... -> name:TYPE[dims] ..."``.

        Raises:
            ServeError: the text is not of this form.
        """
        inputs, outputs = parse_sides(text)
        bare = [entry for entry in outputs if isinstance(entry, str)]
        if bare:
            raise ServeError(
                f"signature output {bare[0]}", found="no type and shape", expected="NAME:TYPE[DIMS]"
            )
        given = tuple(entry for entry in outputs if isinstance(entry, Tensor))
        return build(cls, inputs=inputs, outputs=given)

    @property
    def batched(self) -> bool:
        """Whether requests can be joined along a batch dimension."""
        return self.inputs[0].shape[:1] == (BATCH,)

    @property
    def symbols(self) -> tuple[str, ...]:
        """Names of the inputs' sizes, in order of appearance."""
        sizes = [s for tensor in self.inputs for s in tensor.shape if isinstance(s, str)]
        return tuple(dict.fromkeys(sizes))

    def sizes(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
        """The size of each symbol for given input shapes.

        >>> signature = Signature.parse("a:FP32[b,t] c:FP32[b,t] -> y:FP32[b]")
        >>> signature.sizes({"a": (2, 5), "c": (2, 5)})
        {'b': 2, 't': 5}
        >>> signature.sizes({"a": (2, 5), "c": (2, 6)})
        Traceback (most recent call last):
        ziggurat.core.errors.ServeError: input c: found shape [2, 6]; expected [b, t] with b=2, t=5

        Raises:
            ServeError: a shape does not fit.
        """
        known: dict[str, int] = {}
        for tensor in self.inputs:
            shape = shapes[tensor.name]
            good = len(shape) == len(tensor.shape)
            for want, size in zip(tensor.shape, shape, strict=False):
                fixed = known.setdefault(want, size) if isinstance(want, str) else want
                good = good and size == fixed and (size >= 1 or want == 0)
            if not good:
                raise ServeError(
                    f"input {tensor.name}",
                    found=f"shape {list(shape)}",
                    expected=self._wanted(tensor, shapes),
                )
        return known

    def _wanted(self, tensor: Tensor, shapes: Mapping[str, Sequence[int]]) -> str:
        """Expected shape of an input, given the inputs before it."""
        known: dict[str, int] = {}
        for earlier in self.inputs:
            if earlier is tensor:
                break
            for name, size in zip(earlier.shape, shapes[earlier.name], strict=False):
                if isinstance(name, str):
                    known.setdefault(name, size)
        fixed = [f"{s}={known[s]}" for s in tensor.shape if isinstance(s, str) and s in known]
        text = f"[{', '.join(map(str, tensor.shape))}]"
        return f"{text} with {', '.join(fixed)}" if fixed else text


def parse_sides(text: str) -> tuple[tuple[Tensor, ...], tuple[Tensor | str, ...]]:
    """Inputs, and outputs of which the type and shape may be left to the tracer.

    >>> parse_sides("x:FP32[b,4] -> y")[1]
    ('y',)
    """
    left, arrow, right = text.partition("->")
    if not arrow:
        raise ServeError("signature", found=repr(text), expected="INPUTS -> OUTPUTS", fix=_EXAMPLE)
    inputs = [_tensor(word) for word in _words(left)]
    for entry in inputs:
        if isinstance(entry, str):
            raise ServeError(
                f"signature input {entry}",
                found="no type and shape",
                expected="NAME:TYPE[DIMS]",
                fix=_EXAMPLE,
            )
        for size in entry.shape:
            if isinstance(size, str) and not _SYMBOL.fullmatch(size):
                raise ServeError(
                    f"signature input {entry.name}",
                    found=f"size {size!r}",
                    expected="a number or a lower-case name",
                )
    given = tuple(entry for entry in inputs if isinstance(entry, Tensor))
    return given, tuple(_tensor(word) for word in _words(right))


def build(cls: type, **fields: object) -> "Signature":
    """``Signature(**fields)`` whose broken rules come as an error of ours."""
    try:
        return cls(**fields)
    except ZigguratError:
        raise
    except ValueError as error:
        raise ServeError(f"signature: {error}") from None


def _words(text: str) -> list[str]:
    """Split at blanks and at commas outside brackets."""
    return [word for word in re.split(r"[\s,]+(?![^\[]*\])", text.strip()) if word]


def _tensor(word: str) -> Tensor | str:
    match = _TENSOR.fullmatch(word)
    if match is None:
        raise ServeError("signature", found=repr(word), expected="NAME:TYPE[DIMS]", fix=_EXAMPLE)
    if match["type"] is None:
        return match["name"]
    parts = [part.strip() for part in match["shape"].split(",")] if match["shape"].strip() else []
    shape = tuple(int(part) if part.isdecimal() else part for part in parts)
    try:
        return Tensor(name=match["name"], datatype=match["type"], shape=shape)
    except ValueError as error:
        raise ServeError(f"signature {word}: {error}") from None
