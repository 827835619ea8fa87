"""Functions and values on their way between processes.

A function goes by reference (its module and name) where the other side can import it; one of the
main script, a lambda or a closure goes by value, which needs ``cloudpickle``. A string
``"package.module:name"`` names a function that this side need not be able to import.

>>> call(pack("operator:add", (40, 2)))
42
"""

import importlib
import pickle
from collections.abc import Callable
from typing import Any

from ziggurat.core.errors import ClusterError

Function = Callable[..., Any] | str


def pack(function: Function, arguments: tuple[Any, ...]) -> bytes:
    """Serialise a function call.

    Raises:
        ClusterError: function or arguments cannot be sent.

    >>> call(pack(lambda x: x * 2, (21,)))
    42
    """
    if isinstance(function, str) and not _is_path(function):
        raise ClusterError(
            "function to call", found=repr(function), expected='a function or "module:name"'
        )
    return dump((function, arguments), f"a call of {_name(function)}")


def call(payload: bytes, *first: Any) -> Any:
    """Deserialise a call and run it, with ``first`` before its own arguments.

    Raises:
        ClusterError: the function cannot be imported here.
        Exception: what it raises.
    """
    try:
        function, arguments = pickle.loads(payload)
        if isinstance(function, str):
            module, _, name = function.partition(":")
            function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ClusterError(
            "a function that was sent to this host",
            found=f"{type(error).__name__}: {error}",
            expected="code that can be imported on every host",
            fix="install it there, or start the controller with PYTHONPATH set to where it is",
        ) from error
    return function(*first, *arguments)


def load(payload: bytes) -> Any:
    """Deserialise a value."""
    return pickle.loads(payload)


def dump(value: Any, what: str) -> bytes:
    """Serialise a value.

    Raises:
        ClusterError: it cannot be sent.
    """
    try:
        try:
            import cloudpickle
        except ImportError:
            return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
        return cloudpickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        raise ClusterError(
            f"sending {what}",
            found=f"{type(error).__name__}: {error}",
            expected="something that can be pickled",
            fix="define it at the top of a module; leave out open files, locks and arrays on "
            "devices of several hosts",
        ) from error


def _is_path(text: str) -> bool:
    module, colon, name = text.partition(":")
    return bool(colon) and name.isidentifier() and all(map(str.isidentifier, module.split(".")))


def _name(function: Function) -> str:
    return function if isinstance(function, str) else getattr(function, "__name__", repr(function))
