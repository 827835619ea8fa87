"""Statistics of an engine."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class WarmUp:
    """Result of :meth:`~ziggurat.serve.llm.engine.Engine.warm_up`."""

    programs: int
    seconds: float
    loaded: int = 0
    """Programs that came from the compile cache."""


@dataclasses.dataclass(frozen=True)
class EngineStatistics:
    """Result of :meth:`~ziggurat.serve.llm.engine.Engine.statistics`."""

    running: int
    """Requests being served."""
    waiting: int
    """Requests in the queue."""
    cache_usage: float
    """Part of the cache's blocks that requests hold, 0 to 1."""
    blocks_total: int
    blocks_free: int
    """Blocks that no request holds; they may still keep a prefix for later."""
    prefix_queries: int
    """Prompt tokens looked up in the prefix cache since the start."""
    prefix_hits: int
    """Number of those tokens that were found."""
    preemptions: int
    """Generations that lost their blocks to older ones, since the start."""
