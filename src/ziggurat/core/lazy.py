"""Names of a package that are imported on first use (PEP 562), listed by ``dir`` before that."""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def names(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A package's ``__getattr__`` and ``__dir__``.

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
        value = getattr(importlib.import_module(f"{package}.{homes[name]}"), name)
        # A submodule of the same name, such as ``export``, would otherwise shadow the value.
        setattr(sys.modules[package], name, value)
        return value

    def listed() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return get, listed
