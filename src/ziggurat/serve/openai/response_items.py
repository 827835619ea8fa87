"""Input items of ``/v1/responses`` as messages of a chat.

The parts of an assistant's turn (reasoning, text, calls) are items of their own; chat templates
want them in one message.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from ziggurat.core.json_types import Json, JsonMapping, JsonObject
from ziggurat.serve.errors import refused, short

KNOWN = ("message", "function_call", "function_call_output", "reasoning")
"""Types of items that are read."""


@dataclasses.dataclass
class ItemReader:
    """Messages of a conversation, with the place in the request that each comes from.

    >>> reader = ItemReader([], [])
    >>> reader.read([{"role": "user", "content": "hi"}])
    >>> reader.messages, reader.places
    ([{'role': 'user', 'content': 'hi'}], ['input[0]'])
    """

    messages: list[JsonObject]
    places: list[str]
    """Where the request tells of each message."""
    _turn: JsonObject | None = None
    """The assistant's message that the next items may belong to."""
    _calls: set[Json] = dataclasses.field(default_factory=set)
    """Ids of the calls so far."""

    def read(self, items: Sequence[Json], place: str = "input") -> None:
        """Append the messages of some items.

        Raises:
            RequestError: an item is of no use; ``param`` is its place.
        """
        earlier = (call for m in self.messages for call in m.get("tool_calls") or ())
        self._calls = {call.get("id") for call in earlier if isinstance(call, Mapping)}
        for number, item in enumerate(items):
            self._item(item, f"{place}[{number}]")

    def _item(self, given: Json, place: str) -> None:
        if not isinstance(given, Mapping):
            raise refused(place, short(given), "an object")
        kind = given.get("type") or ("message" if "role" in given else None)
        if kind == "message":
            self._message(given, place)
        elif kind == "function_call":
            self._call(given, place)
        elif kind == "function_call_output":
            self._output(given, place)
        elif kind == "reasoning":
            self._reasoning(given, place)
        else:
            raise refused(f"{place}.type", short(kind), f"one of {', '.join(KNOWN)}")

    def _message(self, item: JsonMapping, place: str) -> None:
        message = {k: v for k, v in item.items() if k not in ("type", "id", "status", "phase")}
        if item.get("role") != "assistant":
            self._add(message, place)
            return
        turn = self._turn
        if turn is None or turn["content"] or "tool_calls" in turn:
            self._add(message, place)
        else:  # reasoning came before
            turn |= message
        self._turn = self.messages[-1]

    def _call(self, item: JsonMapping, place: str) -> None:
        for field in ("call_id", "name", "arguments"):
            _text(item, field, place)
        if item.get("namespace") is not None:
            raise refused(f"{place}.namespace", short(item["namespace"]), "no such field")
        function = {"name": item["name"], "arguments": item["arguments"]}
        call = {"id": item["call_id"], "type": "function", "function": function}
        self._assistant(place).setdefault("tool_calls", []).append(call)
        self._calls.add(item["call_id"])

    def _output(self, item: JsonMapping, place: str) -> None:
        number, output = _text(item, "call_id", place), item.get("output")
        if number not in self._calls:
            raise refused(
                f"{place}.call_id", short(repr(number)), "the call_id of a function_call before"
            )
        if not isinstance(output, str | list):
            raise refused(f"{place}.output", type(output).__name__, "text, or a list of texts")
        self._add({"role": "tool", "tool_call_id": number, "content": output}, place)

    def _reasoning(self, item: JsonMapping, place: str) -> None:
        text = ""
        for field in ("content", "summary"):  # the text itself goes before its summary
            parts = item.get(field) or []
            if not isinstance(parts, list):
                raise refused(f"{place}.{field}", type(parts).__name__, "a list")
            for number, part in enumerate(parts):
                if not isinstance(part, Mapping):
                    raise refused(f"{place}.{field}[{number}]", short(part), "an object")
                text += _text(part, "text", f"{place}.{field}[{number}]")
            if text:
                break
        if not text and item.get("encrypted_content") is not None:
            expected = "content: this server encrypts nothing"
            raise refused(f"{place}.encrypted_content", "a text", expected)
        self._turn = None
        if text:
            self._assistant(place)["reasoning_content"] = text

    def _assistant(self, place: str) -> JsonObject:
        """The assistant's message that is being read, or a new one."""
        if self._turn is None:
            self._add({"role": "assistant", "content": ""}, place)
            self._turn = self.messages[-1]
        return self._turn

    def _add(self, message: JsonObject, place: str) -> None:
        self._turn = None
        self.messages.append(message)
        self.places.append(place)


def _text(item: JsonMapping, field: str, place: str) -> str:
    found = item.get(field)
    if not isinstance(found, str):
        kind = "nothing" if found is None else type(found).__name__
        raise refused(f"{place}.{field}", kind, "text")
    return found
