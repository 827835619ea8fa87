r"""Goodput: the share of wall time that advanced training, and where the rest went.

.. math:: \mathrm{goodput} = t_\mathrm{steps\ that\ counted} / t_\mathrm{wall}

Wall time runs from the start of the first session to the last entry of the last one. Each second is
in exactly one category: the phases of the sessions' ledgers; ``replay``, steps done again because a
kill came before their checkpoint; and ``down``, between sessions. After the notion of Google's ML
productivity goodput,
https://cloud.google.com/blog/products/ai-machine-learning/goodput-metric-as-measure-of-ml-productivity.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from ziggurat.profile.journal import LedgerEntry

STEP, REPLAY, DOWN = "step", "replay", "down"


@dataclasses.dataclass(frozen=True)
class Goodput:
    """Account of a run's wall time by category."""

    wall_s: float
    seconds: Mapping[str, float]
    """By category; they sum to ``wall_s``."""
    sessions: int
    steps: int
    """Steps done at the last entry."""
    replayed_steps: int

    @property
    def share(self) -> float:
        """Share of the wall time spent on useful steps."""
        return self.seconds.get(STEP, 0.0) / self.wall_s if self.wall_s > 0 else 0.0


def goodput(sessions: Sequence[Sequence[LedgerEntry]]) -> Goodput:
    """Account for the whole wall time of a run.

    Args:
        sessions: what :func:`ziggurat.profile.journal.read_journal` gives.

    >>> first = [LedgerEntry("a", 0.0, 4.0, 2, {"compile": 2.0, "step": 2.0}),
    ...          LedgerEntry("a", 0.0, 6.0, 4, {"compile": 2.0, "step": 4.0})]
    >>> second = [LedgerEntry("b", 7.0, 8.0, 2, {"compile": 1.0}),  # resumes from step 2
    ...           LedgerEntry("b", 7.0, 12.0, 6, {"compile": 1.0, "step": 4.0})]
    >>> found = goodput([first, second])
    >>> found.wall_s, dict(found.seconds)
    (12.0, {'compile': 3.0, 'step': 6.0, 'replay': 2.0, 'down': 1.0})
    """
    ordered = sorted((list(s) for s in sessions if s), key=lambda s: s[0].began_unix_s)
    if not ordered:
        return Goodput(0.0, {}, 0, 0, 0)
    seconds: dict[str, float] = {}
    replayed_s, replayed, down_s = 0.0, 0, 0.0
    for session, following in zip(ordered, [*ordered[1:], None]):
        last = session[-1]
        for name, value in last.ledger_s.items():
            seconds[name] = seconds.get(name, 0.0) + value
        if following is not None:
            down_s += max(following[0].began_unix_s - last.time_unix_s, 0.0)
            resumed = following[0].step
            replayed += max(last.step - resumed, 0)
            replayed_s += last.ledger_s.get(STEP, 0.0) - _step_seconds(session, resumed)
    seconds[STEP] = seconds.get(STEP, 0.0) - replayed_s
    seconds |= {REPLAY: replayed_s, DOWN: down_s}
    wall_s = sum(seconds.values())
    return Goodput(wall_s, seconds, len(ordered), ordered[-1][-1].step, replayed)


def _step_seconds(session: Sequence[LedgerEntry], step: int) -> float:
    """Seconds the session had spent on steps when ``step`` were done, interpolated."""
    before = session[0]
    for entry in session:
        if entry.step >= step:
            low, high = before.ledger_s.get(STEP, 0.0), entry.ledger_s.get(STEP, 0.0)
            if entry.step == before.step:
                return low
            share = (step - before.step) / (entry.step - before.step)
            return low + max(share, 0.0) * (high - low)
        before = entry
    return session[-1].ledger_s.get(STEP, 0.0)
