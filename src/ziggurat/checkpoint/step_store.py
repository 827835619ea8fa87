"""The interface of a store of step directories, and how its errors are told."""

import abc
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from ziggurat.checkpoint.config import StoreTier
from ziggurat.core.errors import CheckpointError

T = TypeVar("T")


class StoreError(CheckpointError):
    """A store of checkpoints does not answer, or refuses."""


class StepStore(abc.ABC):
    """A place that whole step directories are copied to and fetched from.

    Methods may raise whatever they like: the caller makes a :class:`StoreError` of it, logs it, and
    tries again later. One process of a run uses a store, one call at a time.

    Args:
        config: the settings, an instance of :attr:`node`.

    Raises:
        CheckpointError: they name no such place; the place itself need not exist yet.
        EnvironmentError: a package that it needs is not installed.
    """

    node: ClassVar[type[StoreTier]]
    """Class of the settings."""
    place: str
    """Where it is, for messages."""

    @abc.abstractmethod
    def __init__(self, config: Any): ...

    @abc.abstractmethod
    def steps(self) -> dict[int, bool]:
        """Steps of which the store has anything; whether it has all of it."""

    @abc.abstractmethod
    def upload(self, step: int, directory: Path) -> None:
        """Copy a step directory, whose digests have just been compared.

        A copy that is cut off at any point must not be called whole by :meth:`steps`.
        """

    @abc.abstractmethod
    def download(self, step: int, target: Path) -> None:
        """Fetch a step into an empty directory; the caller compares its digests."""

    @abc.abstractmethod
    def remove(self, step: int) -> None:
        """Remove a step; cut off midway, it must not be called whole."""


def whole_steps(store: StepStore) -> list[int]:
    """Steps that a store has whole, oldest first.

    Raises:
        StoreError: it does not answer.
    """
    found = guarded(store, "list of steps", store.steps)
    return sorted(step for step, whole in found.items() if whole)


def guarded(store: StepStore, what: str, call: Callable[[], T]) -> T:
    """``call()``, with one line for whatever a store raises.

    Raises:
        StoreError: the store failed.
        CheckpointError: what ``call`` raised of this kind.
    """
    try:
        return call()
    except CheckpointError:
        raise
    except Exception as error:
        line = str(error).strip().partition("\n")[0][:200]
        raise StoreError(
            f"checkpoint store {store.place}: {what}",
            found=f"{type(error).__name__}: {line}",
            expected="an answer",
            fix="check the URL, the credentials and the network",
        ) from error
