"""A reader of pickles that cannot run code: it follows the opcodes that describe data, and knows
only the names of :mod:`ziggurat.formats.pytorch.names`.

Python's own unpickler imports what a pickle names and calls it. Here a name becomes an inert token
or is refused, opcodes that make instances by other ways do not exist, and work and memory are
bounded by the length of the pickle.

>>> import pickle
>>> read_pickle(pickle.dumps({"a": [1, 2.5, None], "b": (b"x", True)}), "here")
{'a': [1, 2.5, None], 'b': (b'x', True)}
>>> read_pickle(pickle.dumps(len), "here")
Traceback (most recent call last):
ziggurat.core.errors.CheckpointError: pickle in here: found builtins.len; ...
"""

import io
import pickletools
from collections.abc import Callable
from typing import Any

import numpy as np

from ziggurat.core.errors import CheckpointError
from ziggurat.formats.pytorch.names import (
    BUILDERS,
    VALUES,
    Name,
    NumpyArray,
    PickledObject,
    TensorView,
    UnlistedGlobal,
    as_key,
    storage_of,
)
from ziggurat.formats.tensors import printable

_PUSHES = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "STRING", "BINSTRING", "SHORT_BINSTRING"),
    )
)
_PYTHON_2 = "__builtin__."
"""How protocol 2 calls ``builtins``."""
_NOTHING = frozenset({"PROTO", "FRAME"})


def read_pickle(data: bytes, where: str) -> Any:
    """The value that a pickle describes.

    Args:
        data: the pickle; what follows its end is ignored.
        where: what it is part of, for errors.

    Returns:
        Plain values, :class:`TensorView` for tensors, :class:`PickledObject` for known classes.

    Raises:
        CheckpointError: the pickle names something else, or is damaged.
    """
    machine, what = _Machine(), f"pickle in {printable(where)}"
    try:
        for opcode, argument, _ in pickletools.genops(io.BytesIO(data)):
            if opcode.name == "STOP":
                break
            machine.step(opcode.name, argument)
        (value,) = machine.stack
    except UnlistedGlobal as error:
        raise CheckpointError(
            what,
            found=printable(error),
            expected="tensors and plain values",
            fix="a pickle can run code, so only a few names are read; save it as safetensors",
        ) from None
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError,
            RecursionError, UnicodeError) as error:  # fmt: skip
        line = (str(error).partition("\n")[0] or type(error).__name__)[:200]
        raise CheckpointError(
            what, found=f"it is damaged ({printable(line)})", expected="a whole pickle"
        ) from None
    return value


class _Machine:
    """The stack, marks and memo of one pickle."""

    def __init__(self):
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Follow one opcode."""
        if name in _PUSHES:
            self.stack.append(argument)
        elif name not in _NOTHING:
            action = _ACTIONS.get(name)
            if action is None:
                raise UnlistedGlobal(f"opcode {name}")
            action(self, argument)

    def to_mark(self) -> list[Any]:
        """Everything since the last mark, taken off."""
        values, self.stack = self.stack, self.marks.pop()
        return values

    def mark(self, _: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def top(self, kind: type | tuple[type, ...]) -> Any:
        value = self.stack[-1]
        if not isinstance(value, kind):
            raise UnlistedGlobal(f"an opcode for another type than {type(value).__name__}")
        return value

    def put(self, index: Any) -> None:
        self.memo[len(self.memo) if index is None else int(index)] = self.stack[-1]

    def get(self, index: Any) -> None:
        self.stack.append(self.memo[int(index)])

    def name(self, argument: str) -> None:
        dotted = argument.replace(" ", ".", 1)
        if dotted.startswith(_PYTHON_2):
            dotted = "builtins." + dotted.removeprefix(_PYTHON_2)
        if dotted in VALUES:
            self.stack.append(VALUES[dotted])
        elif dotted in BUILDERS:
            self.stack.append(Name(dotted))
        else:
            raise UnlistedGlobal(dotted[:200])

    def stack_name(self, _: Any) -> None:
        last = self.stack.pop()
        module = self.stack.pop()
        if not (isinstance(last, str) and isinstance(module, str)):
            raise UnlistedGlobal("a name that is not text")
        self.name(f"{module} {last}")

    def call(self, _: Any) -> None:
        arguments = self.stack.pop()
        function = self.stack.pop()
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise UnlistedGlobal(f"a call of {type(function).__name__}")
        try:
            self.stack.append(BUILDERS[function.text](*arguments))
        except (TypeError, ValueError) as error:
            raise UnlistedGlobal(f"{function.text} with other arguments ({error})") from None

    def build(self, _: Any) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, (PickledObject, NumpyArray)):
            target.build(state)
        elif isinstance(target, np.dtype):
            if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", "|", "="):
                raise UnlistedGlobal("a numpy type of another byte order")
        elif not isinstance(target, (dict, list, TensorView)):
            # of those, attributes beside the content (a module's versions) are left out
            raise UnlistedGlobal(f"state for {type(target).__name__}")

    def set_items(self, pairs: list[Any]) -> None:
        target = self.top(dict)
        if len(pairs) % 2:
            raise UnlistedGlobal("a key without a value")
        for key, value in zip(pairs[::2], pairs[1::2]):
            target[as_key(key)] = value

    def set_one(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def make_dict(self, _: Any) -> None:
        pairs = self.to_mark()
        self.stack.append({})
        self.set_items(pairs)

    def append(self, _: Any) -> None:
        value = self.stack.pop()
        self.top(list).append(value)

    def extend(self, _: Any) -> None:
        values = self.to_mark()
        self.top(list).extend(values)

    def collect(self, kind: type) -> None:
        values = self.to_mark()
        self.stack.append(kind(values))

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise UnlistedGlobal("a tuple of values that are not there")
        self.stack[-count:] = [tuple(self.stack[-count:])]


def _push(make: Callable[[_Machine, Any], Any]) -> Callable[[_Machine, Any], None]:
    return lambda machine, argument: machine.stack.append(make(machine, argument))


_ACTIONS: dict[str, Callable[[_Machine, Any], Any]] = {
    "MARK": _Machine.mark,
    "POP": lambda machine, _: machine.stack.pop(),
    "POP_MARK": lambda machine, _: machine.to_mark(),
    "DUP": _push(lambda machine, _: machine.stack[-1]),
    "NONE": _push(lambda *_: None),
    "NEWTRUE": _push(lambda *_: True),
    "NEWFALSE": _push(lambda *_: False),
    "BYTEARRAY8": _push(lambda _, data: bytes(data)),
    "EMPTY_LIST": _push(lambda *_: []),
    "EMPTY_SET": _push(lambda *_: []),
    "EMPTY_TUPLE": _push(lambda *_: ()),
    "EMPTY_DICT": _push(lambda *_: {}),
    "LIST": lambda machine, _: machine.collect(list),
    "FROZENSET": lambda machine, _: machine.collect(list),
    "TUPLE": lambda machine, _: machine.collect(tuple),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "DICT": _Machine.make_dict,
    "SETITEM": _Machine.set_one,
    "SETITEMS": lambda machine, _: machine.set_items(machine.to_mark()),
    "APPEND": _Machine.append,
    "APPENDS": _Machine.extend,
    "ADDITEMS": _Machine.extend,
    "PUT": _Machine.put,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.put,
    "GET": _Machine.get,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.stack_name,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BUILD": _Machine.build,
    "BINPERSID": lambda machine, _: machine.stack.append(storage_of(machine.stack.pop())),
}
"""Opcodes that describe data. The ways to make instances otherwise (INST, OBJ, NEWOBJ_EX, EXT) and
buffers outside the pickle are left out on purpose."""
