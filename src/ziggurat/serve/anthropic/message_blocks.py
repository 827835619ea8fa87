"""Messages of ``/v1/messages``, whose content is blocks, as messages of a chat.

Results of tools are blocks of a user's message there and messages of their own in a chat; turns of
one role that follow each other are one turn there.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from ziggurat.core.json_types import Json, JsonMapping, JsonObject
from ziggurat.serve.errors import refused, short

ROLES = ("user", "assistant", "system")
BLOCKS = {
    "user": ("text", "image", "tool_result"),
    "assistant": ("text", "thinking", "tool_use"),
    "system": ("text",),
}
"""Types of blocks that are read, by role."""
DIRECT: tuple[Json, ...] = (None, {"type": "direct"})
"""Values of a call's ``caller``: the model itself, since no other tool of a server's can be."""


@dataclasses.dataclass
class BlockReader:
    """Messages of a chat, with the places in the request that each comes from.

    >>> reader = BlockReader()
    >>> reader.read([{"role": "user", "content": [{"type": "text", "text": "hi"}]}])
    >>> reader.messages
    [{'role': 'user', 'content': 'hi'}]
    """

    messages: list[JsonObject] = dataclasses.field(default_factory=list)
    places: list[str] = dataclasses.field(default_factory=list)
    """Where the request tells of each message."""
    parts: list[list[str]] = dataclasses.field(default_factory=list)
    """Where it tells of each part of a message's content."""
    _calls: set[str] = dataclasses.field(default_factory=set)
    """Ids of the calls so far."""

    def read(self, messages: Sequence[Json], place: str = "messages") -> None:
        """Append some messages.

        Raises:
            RequestError: one is of no use; ``param`` is its place.
        """
        for number, given in enumerate(messages):
            self._message(given, f"{place}[{number}]")

    def system(self, given: str | Sequence[Json]) -> None:
        """Append the field ``system``."""
        self._content(given, "system", "system", "system")

    def _message(self, given: Json, place: str) -> None:
        message = _object(given, place)
        role = message.get("role")
        if role not in ROLES:
            raise refused(f"{place}.role", short(repr(role)), f"one of {', '.join(ROLES)}")
        others = message.keys() - {"role", "content"}
        for name in sorted(others):
            if message[name] is not None:
                raise refused(f"{place}.{name}", "an unknown field", "role and content")
        self._content(message.get("content"), role, place, f"{place}.content")

    def _content(self, content: Json, role: str, place: str, inside: str) -> None:
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if not isinstance(content, list):
            kind = "nothing" if content is None else type(content).__name__
            raise refused(inside, kind, "text, or a list of blocks")
        if not content:
            self._turn(role, place)
        for number, given in enumerate(content):
            self._block(_object(given, f"{inside}[{number}]"), role, place, f"{inside}[{number}]")

    def _block(self, block: JsonMapping, role: str, place: str, inside: str) -> None:
        kind = block.get("type")
        if kind not in BLOCKS[role]:
            expected = f"one of {', '.join(BLOCKS[role])} in a message of role {role}"
            raise refused(f"{inside}.type", short(repr(kind)), expected)
        if kind == "text":
            self._add(role, {"type": "text", "text": _text(block, "text", inside)}, place, inside)
        elif kind == "image":
            self._add(role, _image(block, inside), place, inside)
        elif kind == "thinking":
            turn = self._turn(role, place)
            before = turn.get("reasoning_content", "")
            turn["reasoning_content"] = before + _text(block, "thinking", inside)
        elif kind == "tool_use":
            self._call(block, place, inside)
        else:
            self._result(block, inside)

    def _call(self, block: JsonMapping, place: str, inside: str) -> None:
        name, number = _text(block, "name", inside), _text(block, "id", inside)
        given = block.get("input")
        if not isinstance(given, Mapping):
            raise refused(f"{inside}.input", short(given), "an object")
        _expect(block, "caller", DIRECT, inside)
        _expect(block, "toolset_name", (None,), inside)
        self._calls.add(number)
        function = {"name": name, "arguments": dict(given)}
        call = {"id": number, "type": "function", "function": function}
        self._turn("assistant", place).setdefault("tool_calls", []).append(call)

    def _result(self, block: JsonMapping, inside: str) -> None:
        number, content = _text(block, "tool_use_id", inside), block.get("content")
        if number not in self._calls:
            expected = "the id of a tool_use block before"
            raise refused(f"{inside}.tool_use_id", short(repr(number)), expected)
        _expect(block, "toolset_name", (None,), inside)
        parts: list[str] = []
        if isinstance(content, list):
            made = []
            for i, given in enumerate(content):
                at = f"{inside}.content[{i}]"
                part = _object(given, at)
                if part.get("type") != "text":
                    raise refused(f"{at}.type", short(repr(part.get("type"))), "text")
                made.append({"type": "text", "text": _text(part, "text", at)})
                parts.append(at)
            content = made
        elif content is not None and not isinstance(content, str):
            raise refused(f"{inside}.content", type(content).__name__, "text, or a list of texts")
        message: JsonObject = {"role": "tool", "tool_call_id": number, "content": content or ""}
        if block.get("is_error"):  # for templates that know it
            message["is_error"] = True
        self._append(message, inside, parts)

    def _add(self, role: str, part: JsonObject, place: str, inside: str) -> None:
        """Add a part to the turn; a text that is alone stays a text."""
        turn = self._turn(role, place)
        content = turn["content"]
        if content == "" and part["type"] == "text":
            turn["content"] = part["text"]
        else:
            if isinstance(content, str):
                turn["content"] = [{"type": "text", "text": content}] if content else []
            turn["content"].append(part)
        self.parts[-1].append(inside)

    def _turn(self, role: str, place: str) -> JsonObject:
        """The message of a role that is being read, or a new one."""
        if not self.messages or self.messages[-1]["role"] != role:
            self._append({"role": role, "content": ""}, place, [])
        return self.messages[-1]

    def _append(self, message: JsonObject, place: str, parts: list[str]) -> None:
        self.messages.append(message)
        self.places.append(place)
        self.parts.append(parts)


def _image(block: JsonMapping, place: str) -> JsonObject:
    """An image as chats have it."""
    _expect(block, "transformations", (None,), place)
    source = _object(block.get("source"), f"{place}.source")
    kind = source.get("type")
    if kind == "base64":
        media = _text(source, "media_type", f"{place}.source")
        url = f"data:{media};base64,{_text(source, 'data', f'{place}.source')}"
    elif kind == "url":
        url = _text(source, "url", f"{place}.source")
    else:
        raise refused(f"{place}.source.type", short(repr(kind)), "base64 or url")
    return {"type": "image_url", "image_url": {"url": url}}


def _expect(block: JsonMapping, field: str, accepted: tuple[Json, ...], place: str) -> None:
    if block.get(field) not in accepted:
        raise refused(f"{place}.{field}", short(block[field]), "no such field")


def _object(given: Json, place: str) -> JsonMapping:
    if isinstance(given, Mapping):
        return given
    raise refused(place, "null" if given is None else type(given).__name__, "an object")


def _text(block: JsonMapping, field: str, place: str) -> str:
    found = block.get(field)
    if not isinstance(found, str):
        kind = "nothing" if found is None else type(found).__name__
        raise refused(f"{place}.{field}", kind, "text")
    return found
