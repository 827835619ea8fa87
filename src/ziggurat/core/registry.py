"""Registries: named objects of one kind, which other packages and plugins can add to.

A registry holds objects, and homes (``module:NAME``) of objects that are imported on first use. A
name that it does not hold is looked for in its extensions, modules of this package above the
registry, and then in installed plugins (:mod:`ziggurat.core.plugins`).
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

from ziggurat.core import plugins
from ziggurat.core.errors import ConfigError, ZigguratError, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """A table from names to objects.

    Args:
        kind: of the objects, for errors.
        error: raised for a name that is not known.
        homes: objects by name that are imported on first use, as ``module:NAME``.
        extensions: modules that add further objects when they are imported.

    >>> shapes = Registry("shape", homes={"pi": "math:pi"})
    >>> shapes.add("square", 4)
    >>> shapes["square"], shapes["pi"]
    (4, 3.141592653589793)
    >>> "triangle" in shapes
    False
    """

    def __init__(
        self,
        kind: str,
        error: type[ZigguratError] = ConfigError,
        *,
        homes: Mapping[str, str] | None = None,
        extensions: Sequence[str] = (),
    ):
        self._kind, self._error = kind, error
        self._entries: dict[str, T] = {}
        self._homes = dict(homes or {})
        self._extensions = list(extensions)

    def add(self, name: str, entry: T) -> None:
        """Add one entry; a name is given once."""
        self._check_free(name)
        self._entries[name] = entry

    def add_homes(self, homes: Mapping[str, str]) -> None:
        """Add entries that are imported on first use, as ``module:NAME``."""
        for name in homes:
            self._check_free(name)
        self._homes |= homes

    def register(self, name: str) -> Callable[[T], T]:
        """Decorate a class or function to add it under a name."""

        def decorate(entry: T) -> T:
            self.add(name, entry)
            return entry

        return decorate

    def __getitem__(self, name: str) -> T:
        if name not in self:
            known = list(self)
            raise self._error(
                self._kind,
                found=repr(name),
                expected="one of " + ", ".join(known),
                fix=did_you_mean(name, known) or plugins.failures(),
            )
        if name not in self._entries:
            module, _, attribute = self._homes[name].partition(":")
            self._entries[name] = getattr(importlib.import_module(module), attribute)
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        if not self._holds(name):
            self._extend()
        if not self._holds(name):
            plugins.load()
        return self._holds(name)

    def __iter__(self) -> Iterator[str]:
        self._extend()
        plugins.load()
        return iter(sorted({*self._entries, *self._homes}))

    def _holds(self, name: object) -> bool:
        return name in self._entries or name in self._homes

    def _extend(self) -> None:
        while self._extensions:
            importlib.import_module(self._extensions.pop())

    def _check_free(self, name: str) -> None:
        if self._holds(name):
            raise ValueError(f"{self._kind} {name!r} is registered already")
