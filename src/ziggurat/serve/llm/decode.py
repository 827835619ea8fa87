"""The decode manager: which lanes get their next token in a step."""

from collections.abc import Callable, Sequence
from typing import Generic

from ziggurat.serve.llm.lane import L
from ziggurat.serve.llm.pages import Pages


class DecodeManager(Generic[L]):
    """Picks the lanes that have one token to read, all of them: a step for many costs little more
    than a step for one.

    Args:
        pages: where a lane gets a block when it has filled its last.
        make_room: frees a block for a lane by taking those of a newer one; says no when there is no
            newer one than the lane itself, which has lost its own then.
    """

    def __init__(self, pages: Pages, make_room: Callable[[L], bool]):
        self._pages, self._make_room = pages, make_room

    def plan(self, running: Sequence[L]) -> list[L]:
        """Lanes to decode, oldest first; each has a block for its token."""
        chosen = []
        for lane in list(running):
            if lane.slot is None or lane.pending != 1:
                continue  # it lost its blocks to an older lane just now, or reads its prompt
            if self._room(lane):
                chosen.append(lane)
        return chosen

    def _room(self, lane: L) -> bool:
        while not self._pages.grow(lane):
            if not self._make_room(lane):
                return False
        return True
