"""Reader of calls that are JSON objects with a name and arguments, whatever stands around them."""

import abc
import re
from collections.abc import Sequence

from ziggurat.serve.llm.call_deltas import CallDelta, Delta, State, StateCallStream, TextDelta
from ziggurat.serve.llm.call_text import SPACE, ObjectEnd, decode, whole_call


class JsonCallStream(StateCallStream):
    """Base of readers that let a call's arguments out as they come.

    Args:
        keys: names that the arguments may have in an object.
    """

    def __init__(self, keys: Sequence[str]):
        super().__init__()
        self._keys = keys
        self._object = ObjectEnd()
        self._whole, self._read = ObjectEnd(), 0
        """End of an object whose parts come in another order, and characters it was sought in."""
        names = "|".join(keys)
        self._head_form = re.compile(
            r'\s*\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*'
            rf'"(?:{names})"\s*:\s*(?=\{{)'
        )

    @abc.abstractmethod
    def _after_object(self) -> State:
        """State behind an object of a call."""

    @abc.abstractmethod
    def _not_a_call(self, text: str, out: list[Delta]) -> State:
        """State behind an object that is no call; ``text`` is the object."""

    def _object_of_call(self, out: list[Delta]) -> bool:
        """Read an object from its opening brace on."""
        found = self._head_form.match(self._held)
        if found and isinstance(name := decode(found[1]), str):
            self._call(name, out)
            self._held, self._object = self._held[found.end() :], ObjectEnd()
            self._whole, self._read = ObjectEnd(), 0
            self._state = self._arguments
            return True
        start, self._read = self._read, len(self._held)
        found = self._whole.find(self._held[start:])
        if found is None:
            return False
        end, self._whole, self._read = start + found, ObjectEnd(), 0
        text, self._held = self._held[:end], self._held[end:]
        call = whole_call(decode(text), self._keys)
        if call is None:
            self._state = self._not_a_call(text, out)
        else:
            self._call(call[0], out)
            out.append(CallDelta(self.calls - 1, None, call[1]))
            self._state = self._after_object()
        return True

    def _arguments(self, out: list[Delta]) -> bool:
        """Read arguments, then the rest of their object."""
        if not self._arguments_end(out):
            return False
        self._object, self._state = ObjectEnd(depth=1), self._object_tail
        return True

    def _arguments_end(self, out: list[Delta]) -> bool:
        """Let out arguments as far as they are there; true at their end."""
        end = self._object.find(self._held)
        size = len(self._held) if end is None else end
        if size:
            out.append(CallDelta(self.calls - 1, None, self._held[:size]))
        self._held = self._held[size:]
        return end is not None

    def _object_tail(self, out: list[Delta]) -> bool:
        end = self._object.find(self._held)
        self._held = "" if end is None else self._held[end:]
        if end is None:
            return False
        self._state = self._after_object()
        return True

    def _call(self, name: str, out: list[Delta]) -> None:
        out.append(CallDelta(self.calls, name, ""))
        self.calls += 1

    def _say(self, text: str, out: list[Delta]) -> None:
        if text:
            out.append(TextDelta(text))

    def _skip_space(self) -> str:
        """Drop white space; returns what is held behind it."""
        self._held = self._held.lstrip(SPACE)
        return self._held
