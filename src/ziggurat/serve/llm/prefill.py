"""Choice of the prompt chunks that a step prefills."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Generic

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
