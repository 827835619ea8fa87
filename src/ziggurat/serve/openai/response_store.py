"""Answers of ``/v1/responses`` that clients may ask for again, or continue, by their id."""

import collections
import threading
from typing import NamedTuple

from ziggurat.serve.http import MAX_BODY
from ziggurat.serve.json_values import LARGE, MAX_VALUES, count_values

COUNT = 1024
"""Most answers that are kept for one client."""
SIZE = 64 * 2**20
"""Most bytes of the answers that are kept for one client."""


class StoredResponse(NamedTuple):
    """An answer with the conversation up to its end, both as JSON."""

    body: bytes
    """The response object."""
    messages: bytes
    """Messages as ``/v1/chat/completions`` takes them, the answer last, without instructions."""

    @property
    def size(self) -> int:
        """Bytes of both."""
        return len(self.body) + len(self.messages)


class ResponseStore:
    """Store of answers in memory; safe from any thread.

    Each client (API key) has a part of its own and sees no other. When it is full, the answers that
    were used longest ago go. An answer that no request could hold (over 8 MiB, or over 131,072 JSON
    values) is not kept.

    Args:
        count: most answers of a client.
        size: most bytes of a client's answers.

    >>> store = ResponseStore(count=1)
    >>> store.keep("", "resp_1", StoredResponse(b"{}", b"[]"))
    True
    >>> store.keep("", "resp_2", StoredResponse(b"{}", b"[]"))
    True
    >>> store.find("", "resp_1"), store.find("", "resp_2")
    (None, StoredResponse(body=b'{}', messages=b'[]'))
    """

    def __init__(self, count: int = COUNT, size: int = SIZE):
        self._count, self._size = count, size
        self._lock = threading.Lock()
        self._clients: dict[str, collections.OrderedDict[str, StoredResponse]] = {}

    def keep(self, client: str, name: str, response: StoredResponse) -> bool:
        """Keep an answer, and let older ones go; false if it is too large."""
        messages = response.messages
        if len(messages) > MAX_BODY or response.size > self._size:
            return False
        if len(messages) > LARGE and count_values(messages).total > MAX_VALUES:
            return False
        with self._lock:
            kept = self._clients.setdefault(client, collections.OrderedDict())
            kept[name] = response
            while len(kept) > self._count or sum(r.size for r in kept.values()) > self._size:
                kept.popitem(last=False)
        return True

    def find(self, client: str, name: str) -> StoredResponse | None:
        """The answer of this id, if the client has one."""
        with self._lock:
            kept = self._clients.get(client)
            if kept is None or name not in kept:
                return None
            kept.move_to_end(name)
            return kept[name]

    def delete(self, client: str, name: str) -> bool:
        """Delete an answer; false if there is none."""
        with self._lock:
            kept = self._clients.get(client)
            return kept is not None and kept.pop(name, None) is not None
