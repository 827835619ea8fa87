"""How often a run is checkpointed, where to, and what is kept: the ``[checkpoint]`` table."""

import itertools
from typing import TYPE_CHECKING, Annotated, Literal, Protocol, runtime_checkable

from ziggurat.core import config
from ziggurat.core.kinds import Kinds
from ziggurat.core.registry import Registry

if TYPE_CHECKING:
    from ziggurat.checkpoint.step_store import StepStore
    from ziggurat.checkpoint.tier import ConfiguredTier


@runtime_checkable
class TierConfig(Protocol):
    """Settings of a tier; :data:`TIERS` has the tier of each kind."""

    @property
    def kind(self) -> str: ...

    @property
    def every(self) -> int:
        """Steps between saves."""
        ...


@config.node
class MemoryTier:
    """Settings of snapshots in the memory of a second process, from which a killed trainer
    continues.

    Each host keeps its own part of the state and a copy of its neighbour's, so that one lost host
    loses nothing.
    """

    every: int = 1
    """Steps between snapshots."""
    linger_s: float = 600.0
    """How long snapshots outlive a trainer that ended without finishing (seconds)."""

    def __post_init__(self):
        config.require(self.every >= 1, "every", self.every, "at least 1")
        config.require(self.linger_s > 0, "linger_s", self.linger_s, "more than 0")

    @property
    def kind(self) -> str:
        return "memory"


@config.node
class StoreTier:
    """Copies of finished checkpoints in a place that outlives the machine; base of such nodes.

    Copies are made in the background, retried, removed by retention, and verified when they come
    back; a class of your own adds what its store needs to know.
    """

    kind: str
    every: int = 1000
    """Steps between copies; a multiple of the interval of ``checkpoint.every``."""
    keep_last: int = 2
    """Newest copies that are kept."""
    keep_every: int | None = None
    """Also keep each step divisible by this number, for ever (steps)."""

    def __post_init__(self):
        for key in ("every", "keep_last"):
            value = getattr(self, key)
            config.require(value >= 1, key, value, "at least 1")
        every = self.keep_every
        config.require(every is None or every >= 1, "keep_every", every, "at least 1")


@config.node
class PersistentTier(StoreTier):
    """Settings of copies of finished checkpoints in a store that outlives the machine."""

    kind: Literal["store"] = "store"
    url: str
    """Where to: any fsspec URL, such as ``s3://bucket/runs/NAME``, or a directory."""

    def __post_init__(self):
        super().__post_init__()
        config.require(bool(self.url), "url", self.url, "a URL or directory")


TIERS: Registry["type[ConfiguredTier] | type[StepStore]"] = Registry(
    "checkpoint.tiers",
    homes={
        "memory": "ziggurat.checkpoint.memory.tier:MemorySnapshots",
        "store": "ziggurat.checkpoint.object_store:ObjectStore",
    },
)
"""Tiers by kind, and stores that tiers copy to; ``node`` of each is the class of its settings, None
for one that ``[[checkpoint.tiers]]`` cannot name."""


@config.node
class CheckpointConfig:
    """Interval, retention and safety of a run's checkpoints.

    >>> CheckpointConfig(every=100, keep_last=2).keep_every is None
    True
    """

    every: int = 500
    """Steps between checkpoints on disk."""
    keep_last: int = 2
    """Newest intact checkpoints that are kept."""
    keep_every: int | None = None
    """Also keep each step divisible by this number, for ever (steps)."""
    keep_best: int = 0
    """Also keep this many checkpoints with the best ``metric``."""
    metric: str = "eval_loss"
    """Metric that ``keep_best`` compares: the newest value known when the checkpoint was made."""
    best: Literal["lowest", "highest"] = "lowest"
    """Which value of ``metric`` is best."""
    asynchronous: bool = True
    """Write in the background; false makes each save wait until it is on disk."""
    verify: bool = True
    """Compare every file with its digest before restoring from it."""
    retries: int = 3
    """How often a save that failed (disk full, store unreachable) is tried again at once."""
    retry_wait_s: float = 1.0
    """Pause before the first retry, doubled before each further one (seconds)."""
    memory: MemoryTier | None = None
    """Snapshots in memory between the checkpoints on disk."""
    persistent: PersistentTier | None = None
    """Copies of checkpoints in an object store or another directory."""
    tiers: tuple[Annotated[TierConfig, Kinds(TIERS, node=lambda tier: tier.node)], ...] = ()
    """Further tiers, nearest first."""

    def __post_init__(self):
        for key in ("every", "keep_last"):
            value = getattr(self, key)
            config.require(value >= 1, key, value, "at least 1")
        every = self.keep_every
        config.require(every is None or every >= 1, "keep_every", every, "at least 1")
        for key in ("keep_best", "retries", "retry_wait_s"):
            value = getattr(self, key)
            config.require(value >= 0, key, value, "0 or more")
        further = {f"tiers.{number}": tier for number, tier in enumerate(self.tiers)}
        for key, tier in {"persistent": self.persistent, **further}.items():
            if isinstance(tier, StoreTier):
                config.require(
                    tier.every % self.every == 0,
                    f"{key}.every",
                    tier.every,
                    f"a multiple of every = {self.every}",
                )

    def named_tiers(self) -> dict[str, TierConfig]:
        """Configured tiers by name, nearest first; the disk, which every run has, is not among
        them.

        >>> backup = PersistentTier(url="backup")
        >>> list(CheckpointConfig(persistent=backup, tiers=(backup, backup)).named_tiers())
        ['persistent', 'store', 'store-2']
        """
        named: dict[str, TierConfig] = {}
        for name in ("memory", "persistent"):
            tier = getattr(self, name)
            if tier is not None:
                named[name] = tier
        for tier in self.tiers:
            taken = {"disk", *named}
            numbers = itertools.count(2)
            name = tier.kind
            while name in taken:
                name = f"{tier.kind}-{next(numbers)}"
            named[name] = tier
        return named
