"""Findings about a run's figures in plain words, the costliest first."""

import dataclasses
import itertools
import statistics
from collections.abc import Sequence

from ziggurat.core.json_types import JsonMapping
from ziggurat.profile.goodput import DOWN, REPLAY, Goodput
from ziggurat.profile.quantities import duration, size

WARM_UP_STEPS = 3
"""Steps at the start of a session that are left out: caches fill, threads start."""
LEAK_STEPS = 200
"""Fewest steps after the first quarter by which growth of memory is judged."""
LEAK_BLOCKS = 12
LEAK_T = 4.14
"""Student's t of eleven rises, one-sided: one clean run in a thousand would seem to leak."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """A problem that costs a run time, or will, with its remedy."""

    title: str
    advice: str
    cost_s: float
    """Wall time it took, seconds; 0 where it is not a matter of time."""


@dataclasses.dataclass(frozen=True)
class _Loss:
    phase: str
    share: float
    """Least share of the wall time from which on the finding is shown."""
    title: str
    advice: str


_LOSSES = (
    _Loss(
        "data",
        0.05,
        "steps wait for data",
        "raise data.workers, or run `ziggurat data prepare` once",
    ),
    _Loss(
        "checkpoint",
        0.05,
        "saving holds training up",
        "raise checkpoint.every, or save to a faster disk",
    ),
    _Loss("evaluation", 0.15, "evaluation", "raise evaluation.every, or lower evaluation.batches"),
    _Loss("compile", 0.15, "compiling", "keep compiled programs: set train.compile_cache"),
    _Loss(
        REPLAY,
        0.02,
        "steps done again after kills",
        "lower checkpoint.every, or keep snapshots in memory: [checkpoint.memory]",
    ),
    _Loss(DOWN, 0.05, "no process ran", "restart at once after a failure"),
)


def findings(account: Goodput, rows: Sequence[JsonMapping]) -> list[Finding]:
    """Recommendations for a run, the costliest first.

    Args:
        account: where its wall time went.
        rows: its metrics, a row a step (``step_time_s``, ``data_time_s``, ``host_rss_bytes``,
            ``skipped_steps``); others are passed over.
    """
    found = [
        Finding(
            f"{loss.title}: {_share(account, loss.phase):.0%} of the wall time",
            loss.advice,
            account.seconds[loss.phase],
        )
        for loss in _LOSSES
        if _share(account, loss.phase) >= loss.share
    ]
    steps = [row for row in rows if "step_time_s" in row]
    found += [*_uneven(steps), *_slower(steps), *_growing(steps), *_skipped(steps)]
    return sorted(found, key=lambda finding: -finding.cost_s)


def _share(account: Goodput, phase: str) -> float:
    return account.seconds.get(phase, 0.0) / account.wall_s if account.wall_s > 0 else 0.0


def _uneven(steps: Sequence[JsonMapping]) -> list[Finding]:
    """A tail of slow steps."""
    times = [row["step_time_s"] for row in steps[WARM_UP_STEPS:]]
    if len(times) < 50:
        return []
    median = statistics.median(times)
    slow = [row for row in steps[WARM_UP_STEPS:] if row["step_time_s"] > 2 * median]
    lost = sum(row["step_time_s"] - median for row in slow)
    if lost < 0.05 * sum(times):
        return []
    worst = max(slow, key=lambda row: row["step_time_s"])
    title = f"{len(slow)} of {len(times)} steps took more than twice the median {median:.3g} s"
    advice = f"the slowest was step {worst['step']} with {worst['step_time_s']:.3g} s; "
    waited = sum(row.get("data_time_s", 0.0) for row in slow) > 0.5 * lost
    advice += "they waited for data" if waited else "look at what else the machine did then"
    return [Finding(title, advice, lost)]


def _slower(steps: Sequence[JsonMapping]) -> list[Finding]:
    """Steps that take longer and longer."""
    times = [row["step_time_s"] for row in steps[WARM_UP_STEPS:]]
    if len(times) < 100:
        return []
    quarter = len(times) // 4
    early, late = statistics.median(times[:quarter]), statistics.median(times[-quarter:])
    if late < 1.2 * early:
        return []
    title = f"steps grew slower: {early:.3g} s at first, {late:.3g} s at the end"
    return [Finding(title, "look for throttling or other load", (late - early) * len(times) / 2)]


def _growing(steps: Sequence[JsonMapping]) -> list[Finding]:
    """Host memory that rises all the time, not only while caches fill.

    The first quarter is warm-up. The rest is cut into :data:`LEAK_BLOCKS` blocks, of which the
    lowest value counts: work comes and goes above it, and what leaks raises it. The rises from
    block to block must be more than chance (one-sided t-test; they are independent even where
    memory wanders), no smaller in the second half than in the first (or it is a cache that fills),
    and add up to something.
    """
    points = [(row["step"], row["host_rss_bytes"]) for row in steps if "host_rss_bytes" in row]
    points = points[len(points) // 4 :]
    if len(points) < LEAK_STEPS:
        return []
    edges = [i * len(points) // LEAK_BLOCKS for i in range(LEAK_BLOCKS + 1)]
    floors = [min(value for _, value in points[a:b]) for a, b in itertools.pairwise(edges)]
    rises = [after - before for before, after in itertools.pairwise(floors)]
    mean, spread = statistics.fmean(rises), statistics.stdev(rises)
    half = len(rises) // 2
    early, late = statistics.fmean(rises[:half]), statistics.fmean(rises[-half:])
    sure = mean > 0 and mean >= LEAK_T * spread / len(rises) ** 0.5
    lasting = late >= 0.7 * early
    if not sure or not lasting or floors[-1] - floors[0] < 0.02 * floors[0]:
        return []
    span = points[edges[-2]][0] - points[0][0]
    if span <= 0:
        return []
    title = f"host memory grows by {size((floors[-1] - floors[0]) / span)} a step"
    return [Finding(title, "something keeps references: a leak, or metrics held as arrays", 0.0)]


def _skipped(steps: Sequence[JsonMapping]) -> list[Finding]:
    skipped = max((row.get("skipped_steps", 0.0) for row in steps), default=0.0)
    if not skipped:
        return []
    times = [row["step_time_s"] for row in steps]
    title = f"{skipped:.0f} steps were skipped: loss or gradient not finite"
    cost = skipped * statistics.median(times)
    return [Finding(title, "lower the learning rate, or look at the data", cost)]


def headline(account: Goodput) -> str:
    """Summarise the findings in one sentence.

    >>> headline(Goodput(10.0, {"step": 9.0, "data": 1.0}, 1, 5, 0))
    'goodput 90.0 % of 0:00:10 in 1 session'
    """
    plural = "" if account.sessions == 1 else "s"
    wall = duration(account.wall_s)
    return f"goodput {100 * account.share:.1f} % of {wall} in {account.sessions} session{plural}"
