"""What the next step does: which lanes decode, which prompts are read, who has to wait.

>>> from ziggurat.serve.llm.lane import L, Lane
>>> from ziggurat.serve.llm.pages import Pages
>>> from ziggurat.serve.llm.prefix_cache import NoPrefixes
>>> limits = Limits(max_running=4, max_batched_tokens=8, max_prefill_chunk=8)
>>> scheduler = Scheduler(limits, Pages(8, 4, 8, NoPrefixes()))
>>> scheduler.add(Lane((0, 0), [1, 2, 3, 4, 5, 6])), scheduler.add(Lane((1, 0), [1, 2, 3]))
(None, None)
>>> [(chunk.lane.order, chunk.count) for chunk in scheduler.plan().prefill]
[((0, 0), 6), ((1, 0), 2)]
"""

import bisect
import collections
import dataclasses
import itertools
from collections.abc import Sequence
from typing import Generic

from ziggurat.serve.llm.decode import DecodeManager
from ziggurat.serve.llm.lane import L, Lane
from ziggurat.serve.llm.pages import Pages
from ziggurat.serve.llm.prefill import Chunk, PrefillManager


@dataclasses.dataclass(frozen=True)
class Limits:
    """How much may happen at once."""

    max_running: int
    """Lanes."""
    max_batched_tokens: int
    """Tokens in one step."""
    max_prefill_chunk: int
    """Tokens of one lane in one step."""

    def __post_init__(self):
        assert self.max_batched_tokens >= self.max_running, "decoding alone must fit into a step"


@dataclasses.dataclass(frozen=True)
class Plan(Generic[L]):
    """One step."""

    decode: list[L]
    """Lanes that read their one token."""
    prefill: list[Chunk[L]]


class Scheduler(Generic[L]):
    """Clients take turns; of each, first come, first served; the newest give way.

    A place that is free goes to the client with the fewest lanes running, among equals to the one
    that got a place the longest ago, so that a deep queue of one client keeps no other waiting for
    its end.

    Decoding comes first and always fits; what is left of the budget goes to prompts, chunk by
    chunk, so that a long prompt does not hold up those who decode. When one of those finds no free
    block, the lane of the highest rank, the last to have begun, loses all of its own and waits; it
    later reads its tokens again, output included (preemption by recomputation), and goes on as if
    nothing had happened. It keeps its rank, so every lane is the lowest one day and then ends.
    """

    def __init__(self, limits: Limits, pages: Pages):
        self.limits, self.pages = limits, pages
        self.waiting: list[L] = []
        self.running: list[L] = []
        self.preemptions = 0
        """Lanes that lost their blocks, so far."""
        self._clients: collections.Counter[str] = collections.Counter()
        """Lanes that wait, by client."""
        self._turns: dict[str, int] = {}
        """When a client last got a place."""
        self._admissions, self._ranks = itertools.count(1), itertools.count()
        self._slots = list(reversed(range(limits.max_running)))
        self._decode = DecodeManager(pages, self._make_room)
        self._prefill = PrefillManager(limits.max_prefill_chunk, self._admit)

    def add(self, lane: L) -> None:
        """Put a lane into the queue, by its order."""
        bisect.insort(self.waiting, lane, key=_order)
        self._clients[lane.client] += 1

    def fork(self, parent: L, lanes: Sequence[L], prompt: int) -> None:
        """Queue lanes with the same prompt as ``parent``, which has read it; they share its full
        blocks. ``prompt`` is its length."""
        assert parent.rank is not None
        for lane in lanes:
            lane.rank = (parent.rank[0], lane.order[1])
            self.pages.share(parent, lane, prompt)
            self.add(lane)

    def remove(self, lane: L) -> None:
        """Forget a lane; its blocks are free if nobody shares them."""
        if lane.slot is None:
            self._take_out(lane)
        else:
            self.running.remove(lane)
            self._leave(lane)
        self.pages.release(lane)

    def plan(self) -> Plan[L]:
        """The next step; empty lists where there is nothing to do."""
        decode = self._decode.plan(self.running)
        prefill = self._prefill.plan(self.running, self.limits.max_batched_tokens - len(decode))
        return Plan(decode, prefill)

    def _admit(self) -> L | None:
        if not self.waiting or not self._slots:
            return None
        lane, spare = self._next(), len(self.running)
        while not self.pages.admit(lane, spare):
            # Other forks may hold a prompt's blocks: they can read it again.
            others = (x for x in reversed(self.waiting) if x.blocks and x is not lane)
            holder = next(others, None)
            if holder is None:
                assert self.running, "a lane alone always fits"
                return None
            self.pages.release(holder)
        self._take_out(lane)
        self._turns[lane.client] = next(self._admissions)
        lane.slot, lane.stay = self._slots.pop(), object()
        lane.rank = lane.rank or (next(self._ranks), lane.order[1])
        bisect.insort(self.running, lane, key=_rank)
        return lane

    def _next(self) -> L:
        """The lane that is to begin."""
        if len(self._clients) == 1:
            return self.waiting[0]
        heads: dict[str, L] = {}
        for lane in self.waiting:
            heads.setdefault(lane.client, lane)
            if len(heads) == len(self._clients):
                break
        runs = collections.Counter(lane.client for lane in self.running)
        return min(heads.values(), key=lambda x: (runs[x.client], self._turns.get(x.client, 0)))

    def _take_out(self, lane: L) -> None:
        self.waiting.remove(lane)
        self._clients[lane.client] -= 1
        if not self._clients[lane.client]:
            del self._clients[lane.client]

    def _make_room(self, lane: L) -> bool:
        holders = [x for x in self.waiting if x.blocks]
        victim = max([*self.running, *holders], key=_rank)
        if victim.slot is not None:
            self.preemptions += 1
            self.running.remove(victim)
            self._leave(victim)
            self.add(victim)
        self.pages.release(victim)
        return victim is not lane

    def _leave(self, lane: L) -> None:
        assert lane.slot is not None
        self._slots.append(lane.slot)
        lane.slot, lane.stay = None, None


def _order(lane: Lane) -> tuple[int, int]:
    return lane.order


def _rank(lane: Lane) -> tuple[int, int]:
    assert lane.rank is not None, "it has never run"
    return lane.rank
