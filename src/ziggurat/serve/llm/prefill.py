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

    Lanes that have begun come first, in turns of their clients, then those that wait; a lane that
    does not fit keeps the ones behind it waiting, so that none is overtaken for ever.

    Args:
        longest: most tokens of one lane in one step.
        admit: lets the first waiting lane run, if there is room for it; returns that lane.
    """

    def __init__(self, longest: int, admit: Callable[[], L | None]):
        self._longest, self._admit = longest, admit
        self._turns: dict[str, int] = {}
        self._step = 0

    def plan(self, running: Sequence[L], budget: int) -> list[Chunk[L]]:
        """Chunks of at most ``budget`` tokens together."""
        chunks: list[Chunk[L]] = []
        if budget < 1:
            return chunks
        self._step += 1
        for lane in self._lanes(list(running)):
            count = min(lane.pending, self._longest, budget)
            chunks.append(Chunk(lane, count))
            self._turns[lane.client] = self._step
            budget -= count
            if budget == 0:
                break
        return chunks

    def _lanes(self, running: Sequence[L]) -> Iterator[L]:
        yield from self._in_turns([lane for lane in running if lane.pending > 1])
        while (lane := self._admit()) is not None:
            yield lane

    def _in_turns(self, lanes: Sequence[L]) -> list[L]:
        """Each client's first lane, then each one's second, and so on; among those of equal place
        the client comes first whose prompts were read the longest ago."""
        places: dict[str, int] = {}
        keys = []
        for number, lane in enumerate(lanes):
            place = places[lane.client] = places.get(lane.client, -1) + 1
            keys.append((place, self._turns.get(lane.client, 0), number))
        return [lanes[number] for _, _, number in sorted(keys)]
