"""Named things of one kind, looked up with an error that lists what exists."""

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from ziggurat.core.errors import ConfigError, ZigguratError, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """A table from names to objects.

    >>> shapes = Registry("shape")
    >>> shapes.add("square", 4)
    >>> shapes["square"]
    4
    >>> "triangle" in shapes
    False
    """

    def __init__(self, kind: str, error: type[ZigguratError] = ConfigError):
        self._kind, self._error = kind, error
        self._entries: dict[str, T] = {}

    def add(self, name: str, entry: T) -> None:
        """Add one entry; a name is given once."""
        if name in self._entries:
            raise ValueError(f"{self._kind} {name!r} is registered already")
        self._entries[name] = entry

    def register(self, name: str) -> Callable[[T], T]:
        """Register an entry, as a decorator."""

        def decorate(entry: T) -> T:
            self.add(name, entry)
            return entry

        return decorate

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            known = sorted(self._entries)
            raise self._error(
                self._kind,
                found=repr(name),
                expected="one of " + ", ".join(known),
                fix=did_you_mean(name, known),
            )
        return self._entries[name]

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))
