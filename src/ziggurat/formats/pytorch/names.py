"""The names that a checkpoint's pickle may contain, and the inert objects they stand for here.

Nothing of PyTorch or NumPy is called: a name gives a value, or a function of this file that checks
its arguments. Whatever is not in :data:`VALUES` or :data:`BUILDERS` is refused.
"""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

DTYPES: dict[str, np.dtype] = {
    name: np.dtype(kind)
    for name, kind in {
        "float64": np.float64,
        "float32": np.float32,
        "float16": np.float16,
        "bfloat16": ml_dtypes.bfloat16,
        "complex64": np.complex64,
        "complex128": np.complex128,
        "int64": np.int64,
        "int32": np.int32,
        "int16": np.int16,
        "int8": np.int8,
        "uint8": np.uint8,
        "bool": np.bool_,
        "uint64": np.uint64,
        "uint32": np.uint32,
        "uint16": np.uint16,
        "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
        "float8_e5m2": ml_dtypes.float8_e5m2,
        "float8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
        "float8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
        "float8_e8m0fnu": ml_dtypes.float8_e8m0fnu,
    }.items()
}
"""PyTorch's types that NumPy (with ml_dtypes) can hold, by PyTorch's names."""

STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
"""Types of storages that have a class of their own; the others are bytes with a type beside."""

_MOST_DIMENSIONS = 32
_MOST_EXPANDED = 1 << 28


class UnlistedGlobal(Exception):
    """A pickle asks for something that is not on the lists; the text names it."""


@dataclasses.dataclass(frozen=True)
class Name:
    """A name on the list that something may be built with, not yet called."""

    text: str


@dataclasses.dataclass(frozen=True)
class StorageType:
    """A class of storages; no type means plain bytes."""

    dtype: np.dtype | None


@dataclasses.dataclass(frozen=True)
class Storage:
    """A run of values in the container."""

    key: str
    dtype: np.dtype | None
    count: int
    """Elements, or bytes where there is no type."""

    @property
    def nbytes(self) -> int:
        return self.count * (self.dtype.itemsize if self.dtype is not None else 1)


@dataclasses.dataclass(frozen=True)
class TensorView:
    """A strided view of a storage, known to lie within it."""

    storage: Storage
    dtype: np.dtype
    offset: int
    """Elements."""
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """Elements."""


class PickledObject:
    """An object of a class on the list, as its fields."""

    def __init__(self, name: str, fields: dict[str, Any] | None = None):
        self.name = name
        self.fields = fields or {}
        self.state: tuple = ()

    def build(self, state: Any) -> None:
        """Take a pickled state: fields by name, or a tuple that the class would unpack."""
        if isinstance(state, dict) and all(isinstance(key, str) for key in state):
            self.fields.update(state)
        elif isinstance(state, tuple):
            self.state = state
        else:
            raise UnlistedGlobal(f"{self.name} with state {type(state).__name__}")


class NumpyArray:
    """An array of NumPy's own pickles, filled by its state."""

    value: np.ndarray | None = None

    def build(self, state: Any) -> None:
        _version, shape, dtype, fortran, data = state
        count = math.prod(sizes_of(shape))
        if not isinstance(dtype, np.dtype) or not isinstance(data, bytes):
            raise UnlistedGlobal("a numpy array that is not plain numbers")
        if len(data) != count * dtype.itemsize:
            raise UnlistedGlobal("a numpy array whose data has another size")
        array = np.frombuffer(data, dtype)
        self.value = array.reshape(shape, order="F" if fortran else "C")


def storage_of(identifier: Any) -> Storage:
    """Storage behind a persistent identifier of ``torch.save``."""
    if not (isinstance(identifier, tuple) and len(identifier) == 5 and identifier[0] == "storage"):
        raise UnlistedGlobal("a persistent identifier that is no storage")
    _, kind, key, _location, count = identifier
    if not isinstance(kind, StorageType) or not isinstance(key, str) or not re.fullmatch(
        r"\w{1,64}", key
    ):  # fmt: skip
        raise UnlistedGlobal(f"a storage of key {_shown(key)}")
    return Storage(key, kind.dtype, _size(count))


def _tensor_v2(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> TensorView:
    if not isinstance(storage, Storage) or storage.dtype is None:
        raise UnlistedGlobal("a tensor without a typed storage")
    return _view(storage, storage.dtype, offset, size, stride)


def _tensor_v3(
    storage: Any, offset: Any, size: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any
) -> TensorView:
    if not isinstance(storage, Storage) or not isinstance(dtype, np.dtype):
        raise UnlistedGlobal("a tensor without storage and type")
    return _view(storage, dtype, offset, size, stride)


def _view(storage: Storage, dtype: np.dtype, offset: Any, size: Any, stride: Any) -> TensorView:
    shape, strides, offset = sizes_of(size), sizes_of(stride), _size(offset)
    if len(shape) != len(strides):
        raise UnlistedGlobal(f"a tensor of {len(shape)} dimensions with {len(strides)} strides")
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides))
    if 0 not in shape and (last + 1) * dtype.itemsize > storage.nbytes:
        raise UnlistedGlobal(
            f"a tensor that ends at element {last + 1} of a storage of "
            f"{storage.nbytes // dtype.itemsize}"
        )
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes > max(storage.nbytes, _MOST_EXPANDED):
        raise UnlistedGlobal(f"a tensor of {nbytes} bytes over a storage of {storage.nbytes}")
    return TensorView(storage, dtype, offset, shape, strides)


def _parameter(tensor: Any, *_: Any) -> Any:
    if not isinstance(tensor, TensorView):
        raise UnlistedGlobal(f"a parameter of {type(tensor).__name__}")
    return tensor


def _numpy_dtype(code: Any, *_: Any) -> np.dtype:
    if not isinstance(code, str) or not re.fullmatch(r"[<|=]?[?biufc]\d{0,2}", code):
        raise UnlistedGlobal(f"numpy type {_shown(code)}")
    return np.dtype(code)


def _numpy_scalar(dtype: Any, data: Any) -> Any:
    if not isinstance(dtype, np.dtype) or not isinstance(data, bytes):
        raise UnlistedGlobal("a numpy scalar that is no number")
    if len(data) != dtype.itemsize:
        raise UnlistedGlobal("a numpy scalar of another size")
    return np.frombuffer(data, dtype)[0].item()


def _encode(text: Any, encoding: Any = "utf-8") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "utf-8", "ascii"):
        raise UnlistedGlobal("_codecs.encode of anything but text")
    return text.encode(encoding)


def _mapping(*pairs: Any) -> dict:
    return dict(_pairs(pairs[0])) if pairs else {}


def _default_mapping(_factory: Any = None, *pairs: Any) -> dict:
    return _mapping(*pairs)


def _pairs(value: Any) -> list:
    pairs = list(value.items()) if isinstance(value, dict) else value
    if not isinstance(pairs, (list, tuple)):
        raise UnlistedGlobal("a dictionary of " + type(value).__name__)
    return [(as_key(key), entry) for key, entry in pairs]


def as_key(value: Any) -> Any:
    """A dictionary's key that costs little to hash: text, a number, or a place in a tensor."""
    if isinstance(value, (str, int, float, bytes, bool, type(None))):
        return value
    if isinstance(value, PickledObject) and value.name.endswith("MetadataIndex"):
        offset = value.fields.get("offset")
        return (str(value.fields.get("fqn")), None if offset is None else sizes_of(offset))
    raise UnlistedGlobal(f"a dictionary's key of type {type(value).__name__}")


def _sequence(value: Any = ()) -> list:
    if not isinstance(value, (list, tuple)):
        raise UnlistedGlobal("a collection of " + type(value).__name__)
    return list(value)


def _path(*parts: Any) -> str:
    return "/".join(map(_first_text, parts))


def _device(*parts: Any) -> str:
    return ":".join(map(_first_text, parts))


def _number(value: Any = 0, *_: Any) -> Any:
    if not isinstance(value, (int, float, str)):
        raise UnlistedGlobal(f"a number of {type(value).__name__}")
    return value


def _first_text(value: Any = "", *_: Any) -> str:
    if not isinstance(value, (str, int)):
        raise UnlistedGlobal(f"text of {type(value).__name__}")
    return str(value)


def _shown(value: Any) -> str:
    """A value for an error's text: never a nested one, whose text could be of any length."""
    return repr(value)[:80] if isinstance(value, (str, int, float)) else type(value).__name__


def _size(value: Any) -> int:
    if not isinstance(value, int) or not 0 <= value < 1 << 62:
        raise UnlistedGlobal(f"size {_shown(value)}")
    return value


def sizes_of(values: Any) -> tuple[int, ...]:
    """Sizes, offsets or strides, which are never negative."""
    if not isinstance(values, (tuple, list)) or len(values) > _MOST_DIMENSIONS:
        raise UnlistedGlobal(f"sizes of type {type(values).__name__}")
    return tuple(map(_size, values))


_DCP = "torch.distributed.checkpoint"
_SHARD = "torch.distributed._shard.sharded_tensor.metadata"
"""Where the properties of a tensor were until PyTorch 2.1."""
RECORDS = frozenset(
    {
        f"{_DCP}.metadata.Metadata",
        f"{_DCP}.metadata.TensorStorageMetadata",
        f"{_DCP}.metadata.BytesStorageMetadata",
        f"{_DCP}.metadata.ChunkStorageMetadata",
        f"{_DCP}.metadata.TensorProperties",
        f"{_SHARD}.TensorProperties",
        f"{_DCP}.metadata.MetadataIndex",
        f"{_DCP}.metadata.StorageMeta",
        f"{_DCP}.filesystem._StorageInfo",
        f"{_DCP}.filesystem._StoragePrefix",
        "argparse.Namespace",
        "types.SimpleNamespace",
    }
)
"""Classes whose objects become a :class:`PickledObject`."""

VALUES: dict[str, Any] = {f"torch.{name}": dtype for name, dtype in DTYPES.items()}
VALUES |= {f"torch.{name}": StorageType(DTYPES[dtype]) for name, dtype in STORAGES.items()}
VALUES |= {
    f"torch.{name}": StorageType(None) for name in ("storage.UntypedStorage", "UntypedStorage")
}
VALUES |= {f"torch.{name}": name for name in ("strided", "contiguous_format", "preserve_format")}
"""Names that stand for a value."""

_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
BUILDERS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.nn.parameter.Parameter": _parameter,
    "torch.Size": lambda sizes=(): sizes_of(sizes),
    "torch.device": _device,
    "torch.serialization._get_layout": _first_text,
    f"{_DCP}.metadata._MEM_FORMAT_ENCODING": _number,
    f"{_SHARD}.MEM_FORMAT_ENCODING": _number,
    "collections.OrderedDict": _mapping,
    "collections.defaultdict": _default_mapping,
    "collections.Counter": _mapping,
    "builtins.dict": _mapping,
    "builtins.list": _sequence,
    "builtins.int": _number,
    "builtins.float": _number,
    "builtins.str": _first_text,
    "builtins.set": _sequence,
    "builtins.frozenset": _sequence,
    "builtins.tuple": lambda values=(): tuple(_sequence(values)),
    "builtins.bytearray": lambda data=b"", *_: data if isinstance(data, bytes) else b"",
    "lightning.fabric.utilities.data.AttributeDict": _mapping,
    "lightning_fabric.utilities.data.AttributeDict": _mapping,
    "pytorch_lightning.utilities.parsing.AttributeDict": _mapping,
    "pathlib.PosixPath": _path,
    "pathlib.PurePosixPath": _path,
    "pathlib._local.PosixPath": _path,
    "_codecs.encode": _encode,
    "numpy.dtype": _numpy_dtype,
    "numpy.ndarray": lambda *_: NumpyArray(),
    **{f"{module}._reconstruct": lambda *_: NumpyArray() for module in _NUMPY},
    **{f"{module}.scalar": _numpy_scalar for module in _NUMPY},
}
BUILDERS |= {name: (lambda *_, name=name: PickledObject(name)) for name in RECORDS}
"""Names that something is built with, and what it becomes."""
