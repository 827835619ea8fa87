"""Names of a package that are imported on first use (PEP 562), listed by ``dir`` before that."""

import importlib
import inspect
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any


def names(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Build a package's ``__getattr__`` and ``__dir__`` for names that are imported on first use.

    >>> __getattr__, __dir__ = names("ziggurat.core", {"ConfigError": "errors"})
    >>> __getattr__("ConfigError").__name__
    'ConfigError'

    Args:
        package: its ``__name__``.
        homes: each name's module, relative to the package.

    Raises:
        AttributeError: the package has no such name.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(f"{package}.{homes[name]}")
        # A name that is its own home is the module itself, unless the module has such a name.
        value = getattr(module, name, module) if homes[name] == name else getattr(module, name)
        # A submodule of the same name, such as ``export``, would otherwise shadow the value.
        setattr(sys.modules[package], name, value)
        return value

    def listed() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return get, listed


class _CallablePackage(types.ModuleType):
    """A package that is called like the function of its name in :mod:`ziggurat.api`."""

    @property
    def _function(self) -> Any:
        return getattr(importlib.import_module("ziggurat.api"), self.__name__.rpartition(".")[2])

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)


def make_callable(package: str) -> None:
    """Make a package callable: ``ziggurat.train(...)`` works beside ``ziggurat.train.loop``.

    Args:
        package: its ``__name__``; the function is that of the same last name in ``ziggurat.api``.
    """
    sys.modules[package].__class__ = _CallablePackage
