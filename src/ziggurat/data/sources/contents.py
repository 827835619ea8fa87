"""Contents of a record: a text, a conversation, a prompt with its completion, or an answer.

An answer is one of those that a record compares or judges.

An answer is a text after a prompt that is a text; or one or more messages after a prompt of
messages, where a text counts as the assistant's message. Without a prompt, the answers of a
preference are whole conversations, and their common beginning is the prompt. What a record says
beside is read, or refused, by :mod:`ziggurat.data.sources.fields`.
"""

import dataclasses
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from ziggurat.core.errors import DataError
from ziggurat.core.json_types import Json, JsonMapping
from ziggurat.data.sources import fields, image_parts
from ziggurat.data.sources.fields import NOTHING, Extras
from ziggurat.data.sources.files import SourceFile
from ziggurat.data.sources.nodes import (
    ANSWERS,
    CONVERSATIONS,
    LABEL,
    PROMPTS,
    VIEWS,
    completion_of,
    given_key,
    key_of,
    keys_of,
)
from ziggurat.data.sources.records import Document, Fault, checked_text

Get = Callable[[str], Any]
Messages = tuple[Mapping[str, Any], ...]


def document(
    source: Any, file: SourceFile, number: int, get: Get, names: Collection[str]
) -> Document | None:
    """The document of one record.

    Args:
        source: says what a record holds.
        file: where the record stands.
        number: its number there.
        get: the record's value under a key; raises :class:`Fault` if there is none.
        names: its keys.

    Raises:
        Fault: a value is missing or of the wrong type, or says what cannot be honoured.
        DataError: a record of several answers is not one document.
    """
    if source.content in VIEWS:
        raise DataError(
            f"source {source.path}",
            found=f"content {source.content}, several answers a record",
            expected=f"an objective that compares answers, or content {VIEWS[source.content][0]}",
        )
    if source.content == "text":
        key = key_of(source)
        text = checked_text(get(key), key)
        return Document(text, file.name, number) if text else None
    prompts = source.content not in CONVERSATIONS
    taken = [key for keys in keys_of(source) for key in keys]
    with_images = source.content == "image_messages"
    taken += image_parts.COLUMNS if with_images else ()
    extras = fields.beside(get, names, taken, prompts=prompts)
    place = _Place(file, number, extras)
    if source.content in VIEWS["preference"]:
        made = _answer(source, place, get)
        return None if made is None else dataclasses.replace(made, key=_record_key(source, get))
    if source.content in ANSWERS:
        return _answer(source, place, get)
    key = key_of(source)
    value = get(key)
    if source.content in CONVERSATIONS:
        messages = checked_messages(value, key, images=with_images)
        if not any(message["role"] == "assistant" for message in messages):
            return None
        if not with_images:
            return _conversation(messages, place)
        messages, images = image_parts.separated(messages, get, names)
        return dataclasses.replace(_conversation(messages, place), images=images)
    other = completion_of(source)
    answer = get(other)
    if isinstance(value, str) and isinstance(answer, str):
        return _completed(checked_text(value, key), checked_text(answer, other), place)
    if isinstance(value, str) or isinstance(answer, str) or value is None or answer is None:
        found = f"{key!r}: {type(value).__name__}, {other!r}: {type(answer).__name__}"
        raise Fault(found, "both strings, or both lists of messages")
    before = checked_messages(value, key)
    return _conversation((*before, *checked_messages(answer, other)), place, len(before))


class _Place(NamedTuple):
    """Where a record stands, and what it says beside its document."""

    file: SourceFile
    number: int
    extras: Extras = NOTHING


def _completed(prompt: str, completion: str, place: _Place) -> Document | None:
    extras = place.extras
    if extras.tools or extras.variables:
        name = "tools" if extras.tools else "chat_template_kwargs"
        raise Fault(
            f"{name!r} beside a prompt that is a text", "messages, which a template renders"
        )
    if not completion:
        return None
    whole, learned = prompt + completion, ((len(prompt), len(prompt) + len(completion)),)
    return Document(whole, place.file.name, place.number, learned=learned, margin=extras.margin)


def _conversation(messages: Messages, place: _Place, learn_from: int = 0) -> Document:
    said = [m["content"] for m in messages if isinstance(m.get("content"), str)]
    where = [f"message {number}" for number in range(len(messages))]
    turns = tuple(
        number
        for number, message in enumerate(messages)
        if fields.is_learned(message, where[number]) and number >= learn_from
    )
    extras = place.extras
    return Document(
        "\n".join(said),
        place.file.name,
        place.number,
        messages=tuple(map(fields.without_masks, messages)),
        turns=turns,
        tools=extras.tools,
        variables=extras.variables or None,
        margin=extras.margin,
    )


def _answer(source: Any, place: _Place, get: Get) -> Document | None:
    """One answer with its prompt; None if the record's label is another."""
    labelled = source.content in VIEWS["labelled"]
    if labelled and _label(get(LABEL)) != (source.content == "desirable"):
        return None
    key = completion_of(source) if labelled else source.content
    answer, prompt = get(key), _prompt(source, get)
    if isinstance(prompt, str) and isinstance(answer, str):
        return _completed(prompt, checked_text(answer, key), place)
    if isinstance(answer, str) and prompt is None:
        raise Fault(f"{key!r}: a text and no prompt", "a prompt, or whole conversations")
    if isinstance(answer, str):
        answer = [{"role": "assistant", "content": checked_text(answer, key)}]
    turns = checked_messages([answer] if isinstance(answer, Mapping) else answer, key)
    if turns[0]["role"] not in ("assistant", "tool"):
        return _whole(turns, key, prompt, _other(labelled, key, get), place)
    if not isinstance(prompt, tuple):
        found = "no prompt" if prompt is None else "a prompt that is a string"
        raise Fault(f"{key!r}: the assistant's message and {found}", "messages before it")
    return _conversation((*prompt, *turns), place, len(prompt))


def _whole(turns: Messages, key: str, prompt: Json, other: Json, place: _Place) -> Document:
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
    return _conversation(turns, place, shared)


def _record_key(source: Any, get: Get) -> str:
    """Key that the answers of a record share, so that they are held out together."""
    parts = [_prompt(source, get), *(get(view) for view in VIEWS["preference"])]
    return json.dumps(parts, default=str)


def _other(labelled: bool, key: str, get: Get) -> Json:
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


def _optional(get: Get, key: str) -> Json:
    try:
        return get(key)
    except (Fault, KeyError):
        return None


def _label(value: Json) -> bool:
    if isinstance(value, bool) or (type(value) is int and value in (0, 1)):
        return bool(value)
    raise Fault(f"{LABEL!r}: {value!r}", "true or false")


def checked_messages(value: Json, key: str, *, images: bool = False) -> tuple[JsonMapping, ...]:
    """Messages as mappings with a role; columns of lists, as old data sets keep them, turned.

    Args:
        value: of the record.
        key: its key, for errors.
        images: whether parts of a message may be images.
    """
    if isinstance(value, Mapping) and value and all(isinstance(v, list) for v in value.values()):
        if len({len(column) for column in value.values()}) != 1:
            raise Fault(f"{key!r}: lists of different lengths", "a list of messages")
        value = [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        kind = "no messages" if value == [] else type(value).__name__
        raise Fault(f"{key!r}: {kind}", "a list of messages")
    for number, message in enumerate(value):
        where = f"{key!r}: message {number}"
        if not isinstance(message, Mapping):
            raise Fault(f"{where} without a role ({type(message).__name__})", "role and content")
        fields.check_message(message, where, images=images)
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode("utf-8")
    except UnicodeEncodeError:
        raise Fault(f"{key!r}: a lone surrogate", "text") from None
    # A table fills what a message lacks with null; no template should see the difference.
    return tuple(
        {k: v for k, v in message.items() if v is not None or k == "content"} for message in value
    )
