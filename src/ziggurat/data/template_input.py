"""Input of chat templates: messages in the form that a template reads, with nothing dropped.

A template that does not read tools, calls or reasoning renders a conversation without them, as
transformers does, and a fine-tune learns an answer to a question that was never asked. Such a
record is refused by the name of the field.
"""

import functools
import json
import re
from collections.abc import Sequence

from ziggurat.core.errors import DataError
from ziggurat.core.json_types import JsonMapping
from ziggurat.data import chat

RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt"})
"""Variables of a template that a record says otherwise, or not at all."""
_OBJECTS = re.compile(r"(arguments|function)['\"\]]*\s*\|\s*(tojson|items|dictsort)")
_STRINGS = re.compile(r"arguments['\"\]]*\s+is\s+(not\s+)?(string|mapping)")


def prepared(
    messages: Sequence[JsonMapping],
    tools: Sequence[JsonMapping] | None,
    variables: JsonMapping | None,
    template: str,
) -> tuple[JsonMapping, ...]:
    """Convert messages to the form the template reads: text parts joined for a template that takes
    texts, and arguments of calls as objects for one that writes them as JSON itself.

    Args:
        messages: as the record has them.
        tools: what the assistant may call.
        variables: further variables of the template.
        template: jinja source.

    Raises:
        DataError: the template reads no tools, no calls, no reasoning, or not one of the variables.
    """
    read = chat.variables(template)
    if tools and not {"tools", "custom_tools"} & read:
        raise _unread("tools", "no tools")
    for name in variables or {}:
        if name in RESERVED or name not in read:
            raise _unread(f"chat_template_kwargs.{name}", "no such variable")
    made = []
    for number, message in enumerate(messages):
        if message.get("tool_calls") and "tool_calls" not in template:
            raise _unread(f"message {number}: tool_calls", "no calls")
        thought = next((key for key in chat.REASONING_KEYS if message.get(key)), None)
        if thought is not None and not any(key in template for key in chat.REASONING_KEYS):
            raise _unread(f"message {number}: {thought}", "no reasoning")
        made.append(_with_objects(_with_text(message, template), number, template))
    return tuple(made)


def with_parts(messages: Sequence[JsonMapping], template: str) -> tuple[JsonMapping, ...]:
    """Messages whose texts are parts too, for a template that takes nothing else."""
    if not _reads_parts(template):
        return tuple(messages)
    return tuple(
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        if isinstance(message.get("content"), str)
        else message
        for message in messages
    )


def _unread(what: str, found: str) -> DataError:
    return DataError(
        what,
        found=f"a chat template that reads {found}",
        expected="one that does",
        fix="train with another template (objective.chat_template), or leave the field out",
    )


def _with_text(message: JsonMapping, template: str) -> JsonMapping:
    content = message.get("content")
    if not isinstance(content, Sequence) or isinstance(content, str) or _reads_parts(template):
        return message
    if any(part.get("type") == "image" for part in content):
        return message  # a template for images takes parts beside texts
    return {**message, "content": "".join(part["text"] for part in content)}


@functools.lru_cache(maxsize=64)
def _reads_parts(template: str) -> bool:
    """Whether the content must be a list of parts, since a text is not rendered."""
    asked = [{"role": "user", "content": "content?"}]
    try:
        return "content?" not in chat.render(
            template, asked, None, False, bos_token="", eos_token=""
        )
    except DataError:
        return False


def _with_objects(message: JsonMapping, number: int, template: str) -> JsonMapping:
    """OpenAI's format has the arguments of a call as a string of JSON; a template that itself
    writes them as JSON would put that string into quotes."""
    calls = message.get("tool_calls")
    if not calls or not _OBJECTS.search(template) or _STRINGS.search(template):
        return message
    made = []
    for call in calls:
        function = call.get("function", call)
        if isinstance(function.get("arguments"), str):
            try:
                arguments = json.loads(function["arguments"] or "{}")
            except ValueError as error:
                where = f"message {number}: arguments of {function.get('name')!r}"
                raise DataError(where, found=error, expected="JSON") from None
            function = {**function, "arguments": arguments}
        made.append({**call, "function": function} if "function" in call else function)
    return {**message, "tool_calls": made}
