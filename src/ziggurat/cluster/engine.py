"""Engines place, start and watch the processes of hosts; all else goes over channels.

``subprocess`` starts them on this machine, ``ray`` as actors of a Ray cluster. A cluster behaves
the same on both.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable


@dataclasses.dataclass(frozen=True)
class Orders:
    """Address, secret and settings that a process needs to become a host."""

    name: str
    life: str
    address: tuple[str, int]
    secret: bytes
    preload: tuple[str, ...]
    """Modules it imports before it says that it is there."""
    env: Mapping[str, str]
    """Environment variables on top of the controller's own."""
    printed: Callable[[str], None]
    """Takes each line that the process prints."""
    ended: Callable[[str], None]
    """Takes how the process ended; called once."""


@runtime_checkable
class Handle(Protocol):
    """A process that was started."""

    def kill(self) -> None:
        """End it at once, by force; it may have ended already."""


@runtime_checkable
class ClusterEngine(Protocol):
    """Starts processes."""

    def start(self, orders: Orders) -> Handle:
        """Start one; it connects to the controller by itself."""
        ...

    def close(self) -> None:
        """Give back what belongs to the engine itself."""
