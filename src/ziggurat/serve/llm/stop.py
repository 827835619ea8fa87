"""Stop texts across token borders: found as soon as complete, never let out, not even in part."""

from collections.abc import Sequence


class StopMatcher:
    """Filter that passes on a growing text up to the first stop text.

    The end of the text is held back while it could be the beginning of a stop text.

    >>> matcher = StopMatcher(["END"])
    >>> matcher.push("one E"), matcher.push("ND two"), matcher.stopped
    ('one ', '', True)

    Args:
        stops: texts to stop at; of those complete, the one that begins first.
        include: let that text out too.
    """

    def __init__(self, stops: Sequence[str], *, include: bool = False):
        self._stops, self._include = tuple(stops), include
        self._held = ""
        self.found: str | None = None
        """The stop text at which the text ended."""

    @property
    def stopped(self) -> bool:
        """Whether a stop text has come."""
        return self.found is not None

    def push(self, text: str) -> str:
        """Add text; returns the part that cannot belong to a stop text."""
        if self.stopped:
            return ""
        text = self._held + text
        found = [(at, len(stop), stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            at, size, self.found = min(found)
            self._held = ""
            return text[: at + size if self._include else at]
        keep = max((overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """Text that was held back; call once, at the end."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of ``text`` with which ``stop`` begins."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
