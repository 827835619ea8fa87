"""How often a run is checkpointed, where to, and what is kept: the ``[checkpoint]`` table."""

from typing import Literal

from ziggurat.core import config


@config.node
class MemoryTier:
    """Snapshots in the memory of a second process, from which a killed trainer continues.

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


@config.node
class PersistentTier:
    """Copies of finished checkpoints in a store that outlives the machine."""

    url: str
    """Where to: any fsspec URL, such as ``s3://bucket/runs/NAME``, or a directory."""
    every: int = 1000
    """Steps between copies; a multiple of the interval of ``checkpoint.every``."""
    keep_last: int = 2
    """Newest copies that are kept."""
    keep_every: int | None = None
    """Also keep each step divisible by this number, for ever (steps)."""

    def __post_init__(self):
        config.require(bool(self.url), "url", self.url, "a URL or directory")
        for key in ("every", "keep_last"):
            value = getattr(self, key)
            config.require(value >= 1, key, value, "at least 1")
        every = self.keep_every
        config.require(every is None or every >= 1, "keep_every", every, "at least 1")


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

    def __post_init__(self):
        for key in ("every", "keep_last"):
            value = getattr(self, key)
            config.require(value >= 1, key, value, "at least 1")
        every = self.keep_every
        config.require(every is None or every >= 1, "keep_every", every, "at least 1")
        for key in ("keep_best", "retries", "retry_wait_s"):
            value = getattr(self, key)
            config.require(value >= 0, key, value, "0 or more")
        if self.persistent is not None:
            config.require(
                self.persistent.every % self.every == 0,
                "persistent.every",
                self.persistent.every,
                f"a multiple of every = {self.every}",
            )
