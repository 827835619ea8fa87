"""Choice of the sequences that decode one token in a step."""

from collections.abc import Callable, Sequence
from typing import Generic

from ziggurat.serve.llm.kv_cache_manager import KVCacheManager
from ziggurat.serve.llm.sequence import S


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
