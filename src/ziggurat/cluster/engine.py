"""Engines place, start and watch the processes of hosts; all else goes over channels.

``subprocess`` starts them on this machine, ``ray`` as actors of a Ray cluster. A cluster behaves
the same on both.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

from ziggurat.core.errors import ClusterError, did_you_mean

ENGINES = ("subprocess", "ray")


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


def engine_for(name: str, address: str | None) -> ClusterEngine:
    """The engine of this name.

    Args:
        name: ``subprocess`` or ``ray``.
        address: of a Ray cluster that runs already.

    Raises:
        ClusterError: unknown name, or an address without Ray.
        EnvironmentError: Ray is not installed.
    """
    if name not in ENGINES:
        raise ClusterError(
            "engine",
            found=repr(name),
            expected=f"one of {', '.join(ENGINES)}",
            fix=did_you_mean(name, ENGINES),
        )
    if name == "ray":
        from ziggurat.cluster.ray_engine import RayEngine

        return RayEngine(address)
    if address is not None:
        raise ClusterError("address of a cluster", found=address, expected="engine ray with it")
    from ziggurat.cluster.local_engine import LocalEngine

    return LocalEngine()
