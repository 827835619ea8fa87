"""Scheduler: which sequences decode in the next step, and which prompts are prefilled.

>>> from ziggurat.serve.llm.sequence import S, Sequence
>>> from ziggurat.serve.llm.kv_cache_manager import KVCacheManager
>>> from ziggurat.serve.llm.prefix_cache import NoPrefixes
>>> limits = Limits(max_running=4, max_batched_tokens=8, max_prefill_chunk=8)
>>> scheduler = Scheduler(limits, KVCacheManager(8, 4, 8, NoPrefixes()))
>>> scheduler.add(Sequence((0, 0), [1, 2, 3, 4, 5, 6])), scheduler.add(Sequence((1, 0), [1, 2, 3]))
(None, None)
>>> [(chunk.seq.order, chunk.count) for chunk in scheduler.plan().prefill]
[((0, 0), 6), ((1, 0), 2)]
"""

import bisect
import collections
import dataclasses
import itertools
from typing import Generic

from ziggurat.serve.llm.kv_cache_manager import KVCacheManager
from ziggurat.serve.llm.phases import Chunk, DecodeManager, PrefillManager
from ziggurat.serve.llm.sequence import S, Sequence


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of a step: sequences and tokens."""

    max_running: int
    """Most sequences that run at once."""
    max_batched_tokens: int
    """Most tokens of one step."""
    max_prefill_chunk: int
    """Most tokens of one sequence in one step."""

    def __post_init__(self):
        assert self.max_batched_tokens >= self.max_running, "decoding alone must fit into a step"


@dataclasses.dataclass(frozen=True)
class SchedulerOutput(Generic[S]):
    """Sequences that one step computes."""

    decode: list[S]
    """Sequences that decode one token."""
    prefill: list[Chunk[S]]


class Scheduler(Generic[S]):
    """Fair scheduler: clients take turns, each is served in order, and the newest are preempted.

    A free slot goes to the client with the fewest running sequences, among equals to the one that
    got a slot the longest ago, so that a deep queue of one client does not block the others.

    Decoding comes first and always fits. The rest of the token budget goes to prompts, in chunks,
    so that a long prompt does not hold up decoding. When a decoding sequence finds no free block,
    the sequence of the highest rank, the last to have started, is preempted: it loses its blocks,
    waits, later computes its tokens again, output included, and resumes. It keeps its rank, so
    every sequence has the lowest rank some day, and ends.
    """

    def __init__(self, limits: Limits, kv_cache: KVCacheManager):
        self.limits, self.kv_cache = limits, kv_cache
        self.waiting: list[S] = []
        self.running: list[S] = []
        self.preemptions = 0
        """Sequences that lost their blocks, so far."""
        self._clients: collections.Counter[str] = collections.Counter()
        """Sequences that wait, by client."""
        self._turns: dict[str, int] = {}
        """When a client last got a place."""
        self._admissions, self._ranks = itertools.count(1), itertools.count()
        self._slots = list(reversed(range(limits.max_running)))
        self._decode = DecodeManager(kv_cache, self._make_room)
        self._prefill = PrefillManager(limits.max_prefill_chunk, self._admit)

    def add(self, seq: S) -> None:
        """Put a sequence into the queue, by its order."""
        bisect.insort(self.waiting, seq, key=_order)
        self._clients[seq.client] += 1

    def fork(self, parent: S, seqs: list[S], prompt: int) -> None:
        """Queue sequences that share the computed prompt of ``parent``, of length ``prompt``."""
        assert parent.rank is not None
        for seq in seqs:
            seq.rank = (parent.rank[0], seq.order[1])
            self.kv_cache.share(parent, seq, prompt)
            self.add(seq)

    def remove(self, seq: S) -> None:
        """Remove a sequence and drop its references to blocks."""
        if seq.slot is None:
            self._take_out(seq)
        else:
            self.running.remove(seq)
            self._leave(seq)
        self.kv_cache.release(seq)

    def plan(self) -> SchedulerOutput[S]:
        """The next step; empty lists where there is nothing to do."""
        decode = self._decode.plan(self.running)
        prefill = self._prefill.plan(self.running, self.limits.max_batched_tokens - len(decode))
        return SchedulerOutput(decode, prefill)

    def _admit(self) -> S | None:
        if not self.waiting or not self._slots:
            return None
        seq, spare = self._next(), len(self.running)
        while not self.kv_cache.admit(seq, spare):
            # Other forks may hold a prompt's blocks: they can read it again.
            others = (x for x in reversed(self.waiting) if x.blocks and x is not seq)
            holder = next(others, None)
            if holder is None:
                assert self.running, "a sequence alone always fits"
                return None
            self.kv_cache.release(holder)
        self._take_out(seq)
        seq.slot, seq.admission = self._slots.pop(), next(self._admissions)
        self._turns[seq.client] = seq.admission
        seq.rank = seq.rank or (next(self._ranks), seq.order[1])
        bisect.insort(self.running, seq, key=_rank)
        return seq

    def _next(self) -> S:
        """The sequence that is to begin."""
        if len(self._clients) == 1:
            return self.waiting[0]
        heads: dict[str, S] = {}
        for seq in self.waiting:
            heads.setdefault(seq.client, seq)
            if len(heads) == len(self._clients):
                break
        runs = collections.Counter(seq.client for seq in self.running)
        return min(heads.values(), key=lambda x: (runs[x.client], self._turns.get(x.client, 0)))

    def _take_out(self, seq: S) -> None:
        self.waiting.remove(seq)
        self._clients[seq.client] -= 1
        if not self._clients[seq.client]:
            del self._clients[seq.client]

    def _make_room(self, seq: S) -> bool:
        holders = [x for x in self.waiting if x.blocks]
        victim = max([*self.running, *holders], key=_rank)
        if victim.slot is not None:
            self.preemptions += 1
            self.running.remove(victim)
            self._leave(victim)
            self.add(victim)
        self.kv_cache.release(victim)
        return victim is not seq

    def _leave(self, seq: S) -> None:
        assert seq.slot is not None
        self._slots.append(seq.slot)
        seq.slot, seq.admission = None, None


def _order(seq: Sequence) -> tuple[int, int]:
    return seq.order


def _rank(seq: Sequence) -> tuple[int, int]:
    assert seq.rank is not None, "it has never run"
    return seq.rank
