"""The messages of a conversation as OpenAI's clients write them, made ready for chat templates.

Clients send back what they were given, with keys of their own beside it. Keys that say nothing to a
model are dropped (:data:`INERT`), any other key of a message is handed to the chat template, which
uses it or does not. What cannot be done, such as looking at an image, is refused by its place.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pydantic_core

from ziggurat.core.json_types import Json, JsonMapping, JsonObject
from ziggurat.serve.errors import RequestError, refused, short
from ziggurat.serve.json_values import ValueBudget
from ziggurat.serve.openai.image_parts import ImageParts

ROLES = {
    "developer": "system",
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
"""OpenAI's roles, and what chat templates call them."""
INERT = frozenset(
    {
        *("annotations", "cache_control", "created", "finish_reason", "id", "index", "logprobs"),
        *("object", "prompt_cache_breakpoint", "provider_specific_fields", "response_metadata"),
        *("status", "timestamp", "usage"),
    }
)
"""Keys of a message, besides OpenAI's own, that no model sees."""
UNAPPLIED = frozenset({"partial", "prefix"})
"""Keys by which other servers are asked to continue with a message; refused unless false."""
_OWN = frozenset(
    {"audio", "content", "function_call", "name", "refusal", "role", "tool_call_id", "tool_calls"}
)
_TEXTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""Types of content parts that hold text, and the key it stands under."""

Content = str | list[dict[str, str]]


def conversation(messages: Sequence[Json], images: ImageParts | None = None) -> list[JsonObject]:
    """The messages for a chat template: content as text or as a list of text parts, the arguments
    of calls as objects. ``developer`` is OpenAI's newer name of ``system``; templates know that.

    Args:
        messages: as clients write them.
        images: takes the pictures of users' messages; ``None``: pictures are refused.

    Raises:
        RequestError: there are none, or one is of no use; ``param`` is its place.
    """
    if not messages:
        raise RequestError("messages", found="none", expected="at least one", param="messages")
    budget = ValueBudget()
    return [
        _message(message, f"messages[{i}]", budget, images) for i, message in enumerate(messages)
    ]


def _message(given: Json, place: str, budget: ValueBudget, images: ImageParts | None) -> JsonObject:
    fields = {key: value for key, value in _object(given, place).items() if value is not None}
    given = fields.get("role")
    if not isinstance(given, str) or given not in ROLES:
        found = "nothing" if given is None else _quoted(given)
        raise refused(f"{place}.role", found, f"one of {', '.join(ROLES)}")
    role, function = ROLES[given], given == "function"
    calls = _calls(fields, place, budget) if role == "assistant" else []
    message: JsonObject = {"role": role, "content": _content(fields, role, place, images)}
    for field, owner in (("tool_calls", "assistant"), ("function_call", "assistant"),
                         ("tool_call_id", "tool"), ("audio", "nobody")):  # fmt: skip
        if fields.get(field) not in (None, []) and role != owner:
            expected = f"only in a message of role {owner}" if owner != "nobody" else "text only"
            raise refused(f"{place}.{field}", given, expected)
    for field in UNAPPLIED & fields.keys():
        if fields[field] is not False:
            raise refused(
                f"{place}.{field}", short(fields[field]), "no such key; it is not applied"
            )
    if calls:
        message["tool_calls"] = calls
    optional = ("name", "tool_call_id")
    message |= {key: _text(fields[key], f"{place}.{key}") for key in optional if key in fields}
    if function and "name" in message:  # the older form knows calls by their function's name
        message["tool_call_id"] = message["name"]
    others = fields.keys() - _OWN - INERT - UNAPPLIED
    message |= {key: fields[key] for key in fields if key in others}
    if "reasoning" in fields:  # vLLM's name; templates know the other
        message.setdefault("reasoning_content", fields["reasoning"])
    return message


def _content(fields: JsonMapping, role: str, place: str, images: ImageParts | None) -> Content:
    content, place = fields.get("content"), f"{place}.content"
    if content is None:
        if role in ("assistant", "tool"):
            refusal = fields.get("refusal")
            return "" if refusal is None else _text(refusal, place)
        raise refused(place, "null", "text")
    if not isinstance(content, list):
        return _text(content, place)
    images = images if role == "user" else None
    return [_part(part, f"{place}[{i}]", images) for i, part in enumerate(content)]


def _part(given: Json, place: str, images: ImageParts | None) -> dict[str, str]:
    part = _object(given, place)
    kind = part.get("type")
    if kind in ("image_url", "input_image") and images is not None:
        return images.add(part, place)
    if not isinstance(kind, str) or kind not in _TEXTS:
        expected = "text, since this model reads nothing else"
        if images is not None:
            expected = "text or image_url"
        raise refused(f"{place}.type", _quoted(kind), expected)
    key = _TEXTS[kind]
    return {"type": "text", "text": _text(part.get(key), f"{place}.{key}")}


def _calls(fields: JsonMapping, place: str, budget: ValueBudget) -> list[JsonObject]:
    """The calls of an assistant's message; the older ``function_call`` is one without an id."""
    given = fields.get("tool_calls") or []
    if not isinstance(given, list):
        raise refused(f"{place}.tool_calls", type(given).__name__, "a list")
    calls = [_call(call, f"{place}.tool_calls[{i}]", budget) for i, call in enumerate(given)]
    if "function_call" in fields:
        function = _function(fields["function_call"], f"{place}.function_call", budget)
        calls.append({"id": function["name"], "type": "function", "function": function})
    return calls


def _call(given: Json, place: str, budget: ValueBudget) -> JsonObject:
    call = _object(given, place)
    kind = call.get("type") or "function"
    if kind != "function":
        raise refused(f"{place}.type", _quoted(kind), "function")
    function = _function(call.get("function"), f"{place}.function", budget)
    number = call.get("id")
    named = {} if number is None else {"id": _text(number, f"{place}.id")}
    return {**named, "type": "function", "function": function}


def _function(given: Json, place: str, budget: ValueBudget) -> JsonObject:
    function = _object(given, place)
    name = _text(function.get("name"), f"{place}.name")
    arguments = function.get("arguments")
    if isinstance(arguments, dict):
        return {"name": name, "arguments": arguments}
    text = "" if arguments is None else _text(arguments, f"{place}.arguments")
    budget.take(text, f"{place}.arguments")
    return {"name": name, "arguments": read_arguments(text)}


def read_arguments(text: str) -> JsonObject:
    """Parse the arguments of a call, which a model wrote and ``max_tokens`` may have cut off.

    Templates need an object. Of a text that was cut off it holds what is there; a text that is no
    object at all stands under the key ``arguments``.

    >>> read_arguments('{"x": 1}'), read_arguments('{"x": 1, "y": "ab'), read_arguments("")
    ({'x': 1}, {'x': 1, 'y': 'ab'}, {})
    >>> read_arguments("{'x': 1}")
    {'arguments': "{'x': 1}"}
    """
    if not text.strip():
        return {}
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        pass
    try:
        found = pydantic_core.from_json(text, allow_partial="trailing-strings")
    except (ValueError, TypeError):  # TypeError: a lone surrogate
        found = None
    return found if isinstance(found, dict) else {"arguments": text}


def _object(given: Json, place: str) -> JsonMapping:
    if isinstance(given, Mapping):
        return given
    raise refused(place, "null" if given is None else type(given).__name__, "an object")


def _text(given: Json, place: str) -> str:
    if isinstance(given, str):
        return given
    raise refused(place, "null" if given is None else type(given).__name__, "text")


def _quoted(given: Json) -> str:
    return short(repr(given[:100]) if isinstance(given, str) else given)
