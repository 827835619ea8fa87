"""The prefill manager: which prompts are read in a step, and how much of each."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Generic

from ziggurat.serve.llm.lane import L


@dataclasses.dataclass(frozen=True)
class Chunk(Generic[L]):
    """The next tokens of a lane to read."""

    lane: L
    count: int


class PrefillManager(Generic[L]):
    """Spends what is left of a step's tokens on lanes that have more than one to read.

    Lanes that have begun come first, then those that wait, in order of arrival; a lane that does
    not fit keeps the ones behind it waiting, so that none is overtaken for ever.

    Args:
        longest: most tokens of one lane in one step.
        admit: lets the first waiting lane run, if there is room for it; returns that lane.
    """

    def __init__(self, longest: int, admit: Callable[[], L | None]):
        self._longest, self._admit = longest, admit

    def plan(self, running: Sequence[L], budget: int) -> list[Chunk[L]]:
        """Chunks of at most ``budget`` tokens together."""
        chunks: list[Chunk[L]] = []
        if budget < 1:
            return chunks
        for lane in self._lanes(list(running)):
            count = min(lane.pending, self._longest, budget)
            chunks.append(Chunk(lane, count))
            budget -= count
            if budget == 0:
                break
        return chunks

    def _lanes(self, running: Sequence[L]) -> Iterator[L]:
        yield from (lane for lane in running if lane.pending > 1)
        while (lane := self._admit()) is not None:
            yield lane
