"""The interface of a tier: one place that the steps of a run are saved to and restored from."""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from jaxtyping import PyTree

from ziggurat.checkpoint.config import CheckpointConfig, TierConfig
from ziggurat.core.errors import CheckpointError
from ziggurat.core.json_types import JsonMapping, JsonObject
from ziggurat.mesh import Processes

if TYPE_CHECKING:
    from ziggurat.checkpoint.disk_tier import DiskTier


class UnsuitableError(CheckpointError):
    """A tier has the step, but not in the form that is asked for; another tier may."""


class Tier(abc.ABC):
    """One place that a run's steps are saved to. All processes make the same calls.

    A method may raise :class:`CheckpointError` for what the caller gave. Trouble of the place
    itself (a dead process, a full disk, a silent store) is logged once and stays in :attr:`error`,
    so that training continues.
    """

    name: str
    """In logs, metrics and :class:`~ziggurat.checkpoint.tiers.Recovered`."""
    lasting: bool
    """Whether steps survive the loss of the run's processes for as long as anybody wants them."""

    @property
    @abc.abstractmethod
    def error(self) -> CheckpointError | None:
        """Last failure, if the tier is still in trouble, as far as this process knows."""

    @abc.abstractmethod
    def due(self, step: int) -> bool:
        """Whether the tier asks for a save after ``step`` steps."""

    @abc.abstractmethod
    def save(
        self,
        step: int,
        arrays: Mapping[str, PyTree],
        records: JsonMapping,
        files: Mapping[str, bytes | Path],
        *,
        metrics: Mapping[str, float],
        final: bool,
    ) -> bool:
        """Begin to save a step; on return the arrays may be donated or changed.

        Called for steps that are :meth:`due`, and for the last one of the run.

        Args:
            final: the run ends with this step.

        Returns:
            Whether the step was taken: not if it is there, or need not be at the end of a run.
        """

    @abc.abstractmethod
    def wait(self, *, strict: bool = True) -> None:
        """Wait for the save under way, unless it may take long and holds nobody.

        Args:
            strict: raise if the newest save failed and nobody has been told.
        """

    @abc.abstractmethod
    def refresh(self) -> list[int]:
        """Steps that the tier has whole, looked up anew; what the first process says counts.

        Raises:
            CheckpointError: the tier does not answer.
        """

    @abc.abstractmethod
    def restore(
        self, step: int, like: Mapping[str, PyTree], *, cast: bool = False, partial: bool = False
    ) -> tuple[dict[str, PyTree], JsonObject]:
        """Arrays as ``like`` asks for, and records; on all processes or none.

        Raises:
            DamagedError: the step does not match its digests, or cannot be reached.
            UnsuitableError: the tier cannot give it in this form.
            CheckpointError: no tier can, because it does not suit ``like``.
        """

    @abc.abstractmethod
    def discard_after(self, step: int) -> list[int]:
        """Remove newer steps; returns those that are gone, as far as all processes know them."""

    def holds_newer(self, step: int) -> bool:
        """Whether the tier has something newer than ``step`` that ends with it.

        Asked of tiers that are not :attr:`lasting`, when a run has finished.
        """
        return False

    @abc.abstractmethod
    def close(self, finished: bool) -> None:
        """Finish or leave what is under way.

        Args:
            finished: the run has ended and its steps are safe elsewhere.
        """


class ConfiguredTier(Tier):
    """A tier that settings open: what :data:`ziggurat.checkpoint.config.TIERS` registers."""

    node: ClassVar[type | None] = None
    """Class of the settings, for a tier that ``[[checkpoint.tiers]]`` can name."""

    @classmethod
    @abc.abstractmethod
    def open(cls, config: TierConfig, context: "TierContext") -> Tier:
        """The tier of a run; all processes call this.

        Args:
            config: its settings, an instance of :attr:`node` where there is one.
            context: the run.
        """


@dataclasses.dataclass(frozen=True)
class TierContext:
    """The run that a tier is made for."""

    name: str
    """Name of the tier, unique in the run."""
    directory: Path
    """Where the step directories live on disk."""
    config: CheckpointConfig
    processes: Processes
    """Processes that train together."""
    disk: "DiskTier"
    """The tier that every run has."""
    identity: Callable[[], str]
    """Tells this run from any other in the same directory; all processes call it alike."""
    accept: Callable[[Path], None] | None = None
    """Raises if a step directory that came from elsewhere is another run's."""
