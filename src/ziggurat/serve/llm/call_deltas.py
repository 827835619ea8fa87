"""Pieces of an answer with tool calls, and the interface of what reads them."""

import abc
import dataclasses


@dataclasses.dataclass(frozen=True)
class TextDelta:
    """New text of the answer, outside tool calls."""

    text: str


@dataclasses.dataclass(frozen=True)
class CallDelta:
    """New part of a tool call: first its name, then its arguments as pieces of JSON text."""

    index: int
    name: str | None
    arguments: str


Delta = TextDelta | CallDelta


class CallStream(abc.ABC):
    """Reader of one answer, whose text comes in pieces of any size."""

    calls: int = 0
    """Calls so far."""

    @abc.abstractmethod
    def push(self, text: str) -> list[Delta]:
        """Add text; returns the deltas that are decided."""

    @abc.abstractmethod
    def finish(self) -> list[Delta]:
        """Deltas of the text still held back when the answer ends."""
