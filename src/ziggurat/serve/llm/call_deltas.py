"""Pieces of an answer with tool calls, and the interface of what reads them."""

import abc
import dataclasses
from collections.abc import Callable


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


State = Callable[[list[Delta]], bool]
"""Uses up some of what is held; says whether the next state can continue."""


class StateCallStream(CallStream):
    """Base of readers that hold text back in a state, and go from one state to the next."""

    def __init__(self):
        self.calls, self._held = 0, ""
        self._state: State = self._text

    def push(self, text: str) -> list[Delta]:
        """Add text; returns the deltas that are decided."""
        self._held += text
        out: list[Delta] = []
        while self._state(out):
            pass
        return out

    def finish(self) -> list[Delta]:
        """Deltas of the text still held back when the answer ends."""
        out: list[Delta] = []
        self._rest(out)
        self._held = ""
        return out

    @abc.abstractmethod
    def _text(self, out: list[Delta]) -> bool:
        """State at the beginning of an answer."""

    @abc.abstractmethod
    def _rest(self, out: list[Delta]) -> None:
        """Let out what is held at the end."""
