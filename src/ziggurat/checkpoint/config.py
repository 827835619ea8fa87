"""How often a run is checkpointed and what is kept; read from the ``[checkpoint]`` table."""

from ziggurat.core import config


@config.node
class CheckpointConfig:
    """Interval, retention and safety of a run's checkpoints.

    >>> CheckpointConfig(every=100, keep_last=2).keep_every is None
    True
    """

    every: int = 500
    """Steps between checkpoints."""
    keep_last: int = 2
    """Newest intact checkpoints that are kept."""
    keep_every: int | None = None
    """Also keep each step divisible by this number, for ever (steps)."""
    asynchronous: bool = True
    """Write in the background; false makes each save wait until it is on disk."""
    verify: bool = True
    """Compare every file with its digest before restoring from it."""

    def __post_init__(self):
        config.require(self.every >= 1, "every", self.every, "at least 1")
        config.require(self.keep_last >= 1, "keep_last", self.keep_last, "at least 1")
        config.require(
            self.keep_every is None or self.keep_every >= 1,
            "keep_every",
            self.keep_every,
            "at least 1",
        )
