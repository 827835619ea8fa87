"""What a record's fields say: a text, a conversation, a prompt with its completion, or one of the
answers that a record compares or judges.

An answer is a text after a prompt that is a text; or one or more messages after a prompt of
messages, where a text counts as the assistant's message. Without a prompt, the answers of a
preference are whole conversations, and their common beginning is the prompt.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

from ziggurat.core.errors import DataError
from ziggurat.data.sources.files import SourceFile
from ziggurat.data.sources.nodes import (
    ANSWERS,
    LABEL,
    PROMPTS,
    VIEWS,
    completion_of,
    given_key,
    key_of,
)
from ziggurat.data.sources.records import Document, Fault, checked_messages, checked_text

Get = Callable[[str], Any]
Messages = tuple[Mapping[str, Any], ...]


def document(
    source: Any, file: SourceFile, number: int, get: Callable[[str], Any]
) -> Document | None:
    """The document of one record.

    Args:
        source: says what a record holds.
        file: where the record stands.
        number: its number there.
        get: the record's value under a key; raises :class:`Fault` if there is none.

    Raises:
        Fault: a value is missing or of the wrong type.
        DataError: a record of several answers is not one document.
    """
    if source.content in VIEWS:
        raise DataError(
            f"source {source.path}",
            found=f"content {source.content}, several answers a record",
            expected=f"an objective that compares answers, or content {VIEWS[source.content][0]}",
        )
    if source.content in VIEWS["preference"]:
        made = _answer(source, file, number, get)
        return None if made is None else dataclasses.replace(made, key=_record_key(source, get))
    if source.content in ANSWERS:
        return _answer(source, file, number, get)
    key = key_of(source)
    value = get(key)
    if source.content == "text":
        text = checked_text(value, key)
        return Document(text, file.name, number) if text else None
    if source.content == "messages":
        messages = checked_messages(value, key)
        if not any(message["role"] == "assistant" for message in messages):
            return None
        return _conversation(messages, file, number)
    prompt, other = checked_text(value, key), completion_of(source)
    return _completed(prompt, checked_text(get(other), other), file, number)


def _completed(prompt: str, completion: str, file: SourceFile, number: int) -> Document | None:
    if not completion:
        return None
    whole = prompt + completion
    return Document(whole, file.name, number, learned=((len(prompt), len(whole)),))


def _conversation(
    messages: Messages, file: SourceFile, number: int, learn_from: int = 0
) -> Document:
    said = [m["content"] for m in messages if isinstance(m.get("content"), str)]
    text = "\n".join(said)
    return Document(text, file.name, number, messages=messages, learn_from=learn_from)


def _answer(source: Any, file: SourceFile, number: int, get: Get) -> Document | None:
    """One answer with its prompt; None if the record's label is another."""
    labelled = source.content in VIEWS["labelled"]
    if labelled and _label(get(LABEL)) != (source.content == "desirable"):
        return None
    key = completion_of(source) if labelled else source.content
    answer, prompt = get(key), _prompt(source, get)
    if isinstance(prompt, str) and isinstance(answer, str):
        return _completed(prompt, checked_text(answer, key), file, number)
    if isinstance(answer, str) and prompt is None:
        raise Fault(f"{key!r}: a text and no prompt", "a prompt, or whole conversations")
    if isinstance(answer, str):
        answer = [{"role": "assistant", "content": checked_text(answer, key)}]
    turns = checked_messages([answer] if isinstance(answer, Mapping) else answer, key)
    if turns[0]["role"] not in ("assistant", "tool"):
        return _whole(turns, key, prompt, _other(labelled, key, get), file, number)
    if not isinstance(prompt, tuple):
        found = "no prompt" if prompt is None else "a prompt that is a string"
        raise Fault(f"{key!r}: the assistant's message and {found}", "messages before it")
    return _conversation((*prompt, *turns), file, number, len(prompt))


def _whole(
    turns: Messages, key: str, prompt: Any, other: Any, file: SourceFile, number: int
) -> Document:
    """An answer that repeats its prompt; what both answers share is not learned."""
    if isinstance(prompt, tuple):
        raise Fault(f"{key!r}: starts with {turns[0]['role']!r}", "the assistant's message")
    if isinstance(prompt, str) and all(message.get("content") != prompt for message in turns):
        raise Fault(f"{key!r}: a conversation without the prompt", "one that has it, or no prompt")
    shared = len(turns) - 1
    if other is not None:
        pairs = zip(turns, checked_messages(other, "the other answer"))
        same = [ours == theirs for ours, theirs in pairs]
        shared = same.index(False) if False in same else len(same)
    if not any(message["role"] == "assistant" for message in turns[shared:]):
        raise Fault(f"{key!r}: nothing of the assistant after what is shared", "an answer")
    return _conversation(turns, file, number, shared)


def _record_key(source: Any, get: Get) -> str:
    """What both answers of a record have in common, so that one is held out with the other."""
    parts = [_prompt(source, get), *(get(view) for view in VIEWS["preference"])]
    return json.dumps(parts, default=str)


def _other(labelled: bool, key: str, get: Get) -> Any:
    """The answer that a preference compares with, whole."""
    if labelled:
        return None
    chosen, rejected = VIEWS["preference"]
    return get(rejected if key == chosen else chosen)


def _prompt(source: Any, get: Get) -> str | Messages | None:
    given = given_key(source)
    for key in (given,) if given else PROMPTS:
        value = get(key) if given else _optional(get, key)
        if value is None:
            continue
        return checked_text(value, key) if isinstance(value, str) else checked_messages(value, key)
    return None


def _optional(get: Get, key: str) -> Any:
    try:
        return get(key)
    except (Fault, KeyError):
        return None


def _label(value: Any) -> bool:
    if isinstance(value, bool) or (type(value) is int and value in (0, 1)):
        return bool(value)
    raise Fault(f"{LABEL!r}: {value!r}", "true or false")
