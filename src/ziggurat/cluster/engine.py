"""Engines place, start and watch the processes of hosts; all else goes over channels.

``subprocess`` starts them on this machine, ``ray`` as actors of a Ray cluster. A cluster behaves
the same on both.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable


@dataclasses.dataclass(frozen=True)
class Orders:
    """Address, secret and settings with which a new process connects to the controller as a
    host."""

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
    """Interface of a started host process, as its engine sees it."""

    def kill(self) -> None:
        """Kill the process by force; does nothing if it has ended already."""


@runtime_checkable
class ClusterEngine(Protocol):
    """Interface of an engine: starts host processes on this machine, on Ray or elsewhere."""

    def start(self, orders: Orders) -> Handle:
        """Start one host process; it connects to the controller by itself."""
        ...

    def close(self) -> None:
        """Release the engine's own resources; hosts have ended before."""
