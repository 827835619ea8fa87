"""Mixtures: which component each row of the endless list of rows comes from, in closed form.

A component is all sources of one name. Weights become whole numbers m_k that sum to a period M; in
each period component k owns m_k rows, spread evenly. So the rows that a component has given before
row g follow from a division and one look into a table, and the state of a mixture is g alone.
A phase ends where the schedule says so, or where a component has given all of its epochs; the
weights of that component then go to the others.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int64

from ziggurat.core import config
from ziggurat.core.errors import ConfigError

PERIOD = 1 << 16
"""M: weights are rounded to multiples of 1/M."""


@config.node
class Stage:
    """Weights of a mixture from a step on."""

    step: int
    """First step with these weights."""
    weights: dict[str, float]
    """By name of the source, as in the mixture; a name left out has weight 0."""

    def __post_init__(self) -> None:
        config.require(self.step > 0, "step", self.step, "at least 1")
        config.require(bool(self.weights), "weights", self.weights, "a weight for some source")
        _require_weights(self.weights)


@config.node
class Mixture:
    """Shares of the batch's rows by source name, in stages."""

    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    """Weight of each name; a name left out has weight 0. Without any, the tokens of each."""
    temperature: float = 1.0
    """Shares are proportional to weight ** (1 / temperature); above 1 makes them more equal."""
    epochs: dict[str, float] = dataclasses.field(default_factory=dict)
    """Most passes over the documents of a name, such as 2 or 0.5; ``data.epochs`` for the rest."""
    schedule: tuple[Stage, ...] = ()
    """Stages that change the weights from later steps on."""
    stop: Literal["first", "all"] = "all"
    """The data ends where the first component has given all its epochs; or its weight goes to the
    others and the data ends with the last."""

    def __post_init__(self) -> None:
        _require_weights(self.weights)
        positive = 0.0 < self.temperature < math.inf
        config.require(positive, "temperature", self.temperature, "a positive number")
        for name, passes in self.epochs.items():
            finite = 0.0 < passes < math.inf
            config.require(finite, f"epochs.{name}", passes, "a positive number")
        steps = [stage.step for stage in self.schedule]
        rising = all(one < other for one, other in itertools.pairwise(steps))
        config.require(rising, "schedule", steps, "steps that rise")

    def shares(self, weights: Mapping[str, float], names: Sequence[str]) -> list[float]:
        """The share of each name, not yet rounded.

        >>> Mixture(temperature=2.0).shares({"web": 16.0, "code": 9.0}, ["web", "code", "books"])
        [0.571..., 0.428..., 0.0]
        """
        largest = max(weights.values())
        raised = [(weights.get(name, 0.0) / largest) ** (1.0 / self.temperature) for name in names]
        return [value / sum(raised) for value in raised]


def _require_weights(weights: Mapping[str, float]) -> None:
    for name, weight in weights.items():
        good = 0.0 <= weight < math.inf
        config.require(good, f"weights.{name}", weight, "0 or a positive number")
    some = not weights or any(weights.values())
    config.require(some, "weights", weights, "at least one above 0")


def quantise(
    shares: Sequence[float], names: Sequence[str], *, refuse: bool = True
) -> tuple[int, ...]:
    """Round ``shares`` to whole numbers in their proportion, by largest remainder, without common
    divisor.

    Args:
        shares: at least one of them positive.
        names: for the error.
        refuse: a positive share that rounds to 0 is an error; else it gets the least there is.

    Raises:
        ConfigError: a positive share is below what the period can tell from 0.

    >>> quantise([0.5, 0.25, 0.25], ["a", "b", "c"])
    (2, 1, 1)
    """
    total = sum(shares)
    exact = [share / total * PERIOD for share in shares]
    counts = [int(value) for value in exact]
    by_rest = sorted(range(len(exact)), key=lambda k: counts[k] - exact[k])
    for k in by_rest[: PERIOD - sum(counts)]:
        counts[k] += 1
    for k, count in enumerate(counts):
        if shares[k] > 0 and count == 0:
            if refuse:
                raise ConfigError(
                    f"data.mixture: weight of {names[k]}",
                    found=f"a share of {shares[k] / total:.2g} of the rows",
                    expected=f"0, or at least 1/{PERIOD}",
                    fix="raise the weight or take the source out",
                )
            counts[k] += 1
            counts[counts.index(max(counts))] -= 1
    divisor = math.gcd(*counts)
    return tuple(count // divisor for count in counts)


class Phase:
    """Range of rows, from ``first`` on, that is dealt in one proportion.

    Args:
        first: global number of the first row.
        counts: rows of each component in a period.
        taken: rows that each component gave before.
    """

    def __init__(self, first: int, counts: Sequence[int], taken: Sequence[int]):
        self.first, self.counts, self.taken = first, tuple(counts), tuple(taken)
        self._period = sum(counts)
        owner = np.repeat(np.arange(len(counts), dtype=np.int16), counts)
        # what gives nothing has no turn, so that a component for later steps moves no row before
        place = np.cumsum([m > 0 for m in counts]) - 0.5
        shifts = place / (place[-1] + 0.5)
        turns = [(np.arange(m) + by) / max(m, 1) for m, by in zip(counts, shifts)]
        self._owner = owner[np.argsort(np.concatenate(turns), kind="stable")]
        self._slots = [np.flatnonzero(self._owner == k) for k in range(len(counts))]

    def owners(self, row: int, stop: int) -> Int64[np.ndarray, "n"]:
        """The component of each of rows ``row`` to ``stop``."""
        slots = np.arange(row - self.first, stop - self.first, dtype=np.int64) % self._period
        return self._owner[slots].astype(np.int64)

    def counters(self, row: int) -> tuple[int, ...]:
        """Rows that each component gave before row ``row``."""
        periods, slot = divmod(row - self.first, self._period)
        return tuple(
            taken + periods * count + int(slots.searchsorted(slot))
            for taken, count, slots in zip(self.taken, self.counts, self._slots, strict=True)
        )

    def exhausted(self, component: int, cap: int) -> int | None:
        """The row after the one with which a component has given ``cap`` rows; None if never."""
        if not self.counts[component]:
            return None
        periods, number = divmod(cap - self.taken[component] - 1, self.counts[component])
        return self.first + periods * self._period + int(self._slots[component][number]) + 1


class Schedule:
    """Assignment of every row of an endless list to a component and its own row.

    Args:
        names: of the components.
        stages: (first row, share of each component), by rising rows; the first row is 0.
        caps: most rows of each component; None for no end.
        stop: see :class:`Mixture`.
        refuse: see :func:`quantise`.

    Raises:
        ConfigError: as :func:`quantise`.

    >>> schedule = Schedule(["a", "b"], [(0, (3.0, 1.0))], [None, 2])
    >>> schedule.owners(0, 12).tolist(), schedule.counters(12), schedule.end
    ([0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0], (10, 2), None)
    """

    def __init__(
        self,
        names: Sequence[str],
        stages: Sequence[tuple[int, Sequence[float]]],
        caps: Sequence[int | None],
        stop: Literal["first", "all"] = "all",
        *,
        refuse: bool = True,
    ):
        self._phases: list[Phase] = []
        for _, shares in stages:
            quantise(shares, names, refuse=refuse)
        self.end: int | None = None
        """Rows in all; None without end."""
        row, taken = 0, (0,) * len(names)
        while True:
            spent = [cap is not None and taken[k] >= cap for k, cap in enumerate(caps)]
            shares = [stage for first, stage in stages if first <= row][-1]
            left = [0.0 if spent[k] else share for k, share in enumerate(shares)]
            if not any(left) or (stop == "first" and any(spent)):
                self.end = row
                return
            phase = Phase(row, quantise(left, names, refuse=refuse), taken)
            self._phases.append(phase)
            ends = [first for first, _ in stages if first > row]
            ends += [
                end
                for k, cap in enumerate(caps)
                if cap is not None and (end := phase.exhausted(k, cap)) is not None
            ]
            if not ends:
                return
            row = min(ends)
            taken = phase.counters(row)

    def owners(self, row: int, stop: int) -> Int64[np.ndarray, "n"]:
        """The component of each of rows ``row`` to ``stop``, none of them after the end."""
        firsts = [phase.first for phase in self._phases] + [stop]
        parts = [
            phase.owners(max(row, phase.first), min(stop, until))
            for phase, until in zip(self._phases, firsts[1:], strict=True)
            if max(row, phase.first) < min(stop, until)
        ]
        return np.concatenate([np.zeros(0, np.int64), *parts])

    def counters(self, row: int) -> tuple[int, ...]:
        """Rows that each component gave before row ``row``."""
        if self.end is not None:
            row = min(row, self.end)
        return [phase for phase in self._phases if phase.first <= row][-1].counters(row)
