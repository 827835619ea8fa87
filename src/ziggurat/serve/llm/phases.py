"""Prefill and decode: which prompt chunks a step computes, and which sequences get a token."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Generic

from ziggurat.serve.llm.kv_cache_manager import KVCacheManager
from ziggurat.serve.llm.sequence import S


@dataclasses.dataclass(frozen=True)
class Chunk(Generic[S]):
    """Next tokens of a sequence to prefill."""

    seq: S
    count: int


class PrefillManager(Generic[S]):
    """Selects chunks of waiting prompts for the rest of a step's token budget.

    Running sequences come first, in turns of their clients, then waiting ones. A sequence that does
    not fit keeps those behind it waiting, so that none is overtaken for ever.

    Args:
        longest: most tokens of one sequence in one step.
        admit: lets the first waiting sequence run, if there is room for it; returns that sequence.
    """

    def __init__(self, longest: int, admit: Callable[[], S | None]):
        self._longest, self._admit = longest, admit
        self._turns: dict[str, int] = {}
        self._step = 0

    def plan(self, running: Sequence[S], budget: int) -> list[Chunk[S]]:
        """Chunks of at most ``budget`` tokens together."""
        chunks: list[Chunk[S]] = []
        if budget < 1:
            return chunks
        self._step += 1
        for seq in self._sequences(list(running)):
            count = min(seq.pending, self._longest, budget)
            if seq.images is not None:
                count = seq.images.cut(seq.computed, count)
                if count == 0:  # an image that is taken whole, in a step with more room
                    break
            chunks.append(Chunk(seq, count))
            self._turns[seq.client] = self._step
            budget -= count
            if budget == 0:
                break
        return chunks

    def _sequences(self, running: Sequence[S]) -> Iterator[S]:
        yield from self._in_turns([seq for seq in running if seq.pending > 1])
        while (seq := self._admit()) is not None:
            yield seq

    def _in_turns(self, seqs: Sequence[S]) -> list[S]:
        """Each client's first sequence, then each client's second, and so on.

        Among equals, the client whose prompts were prefilled the longest ago comes first.
        """
        places: dict[str, int] = {}
        keys = []
        for number, seq in enumerate(seqs):
            place = places[seq.client] = places.get(seq.client, -1) + 1
            keys.append((place, self._turns.get(seq.client, 0), number))
        return [seqs[number] for _, _, number in sorted(keys)]


class DecodeManager(Generic[S]):
    """Selects the sequences to decode in a step: all of them, since a step for many costs little
    more than for one.

    Args:
        kv_cache: gives a sequence a block when its last one is full.
        make_room: frees blocks for a sequence by preempting a newer one; false when there is no
            newer one than the sequence itself, which is then preempted.
    """

    def __init__(self, kv_cache: KVCacheManager, make_room: Callable[[S], bool]):
        self._kv_cache, self._make_room = kv_cache, make_room

    def plan(self, running: Sequence[S]) -> list[S]:
        """Sequences to decode, oldest first; each has a block for its token."""
        chosen = []
        for seq in list(running):
            if seq.slot is None or seq.pending != 1:
                continue  # it lost its blocks to an older sequence just now, or reads its prompt
            if self._room(seq):
                chosen.append(seq)
        return chosen

    def _room(self, seq: S) -> bool:
        while not self._kv_cache.grow(seq):
            if not self._make_room(seq):
                return False
        return True
