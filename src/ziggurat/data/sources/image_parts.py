"""Images of a conversation: parts of its messages, and the columns beside them.

Read are the forms that Hugging Face's chat templates, TRL and OpenAI have: a part ``{"type":
"image"}`` stands for the next image of the column ``images`` (or for ``image``, which is one); a
part may name its image itself, under ``image``, ``path``, ``url`` or ``base64``, or as OpenAI's
``{"type": "image_url", "image_url": {"url": ...}}``. Where no message has such a part, the images
of the column stand before the first message of the user, as in TRL.

An image is a path, a data URI, or a table with ``bytes`` or ``path``, as ``datasets`` keeps images.
Nothing is fetched from other machines.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from ziggurat.core.json_types import Json, JsonMapping
from ziggurat.data.sources.fields import IMAGE_PARTS
from ziggurat.data.sources.records import Fault

COLUMNS = ("images", "image")
"""Fields of a record that hold its images: several, or one."""
_OWN = ("image", "path", "url", "base64", "image_url")
"""Keys under which a part names its image."""
Messages = tuple[Mapping[str, Any], ...]
Image = str | bytes
PART = {"type": "image"}
"""A part as chat templates get it."""


def separated(
    messages: Messages, get: Callable[[str], Json], names: Collection[str]
) -> tuple[Messages, tuple[Image, ...]]:
    """Messages whose images are bare parts, and the images in order.

    Args:
        messages: as the record has them.
        get: the record's value under a key.
        names: its keys.

    Raises:
        Fault: there are more or fewer images than parts, or one is of another form or on another
            machine.
    """
    beside = _beside(get, names)
    if beside and not any(_is_image(part) for message in messages for part in _parts(message)):
        messages = _before_first(messages, len(beside))
    waiting, images = iter(beside), list[Image]()
    made = [_with_bare(message, waiting, images) for message in messages]
    left = len(list(waiting))
    if left:
        raise Fault(
            f"{len(beside)} images and {len(beside) - left} bare parts of type 'image'",
            "as many parts as images",
        )
    return tuple(made), tuple(images)


def _beside(get: Callable[[str], Json], names: Collection[str]) -> list[Json]:
    values = {name: get(name) for name in COLUMNS if name in names}
    given = {name: value for name, value in values.items() if value not in (None, [], "")}
    if len(given) > 1:
        raise Fault("both 'image' and 'images'", "one of them")
    for name, value in given.items():
        if name == "image":
            return [value]
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise Fault(f"'images': {type(value).__name__}", "a list of images")
        return list(value)
    return []


def _parts(message: JsonMapping) -> Sequence[Json]:
    content = message.get("content")
    return () if isinstance(content, str) or content is None else content


def _is_image(part: Json) -> bool:
    return isinstance(part, Mapping) and part.get("type") in IMAGE_PARTS


def _before_first(messages: Messages, count: int) -> Messages:
    """Parts for images before what the user says first."""
    made = list(messages)
    for number, message in enumerate(made):
        if message["role"] == "user":
            content = message.get("content")
            rest = [{"type": "text", "text": content}] if isinstance(content, str) else content
            made[number] = {**message, "content": [*[PART] * count, *(rest or [])]}
            return tuple(made)
    raise Fault(f"{count} images and no message of the user", "a message that they belong to")


def _with_bare(message: JsonMapping, waiting: Iterator[Json], images: list[Image]) -> JsonMapping:
    if not any(map(_is_image, _parts(message))):
        return message
    parts = []
    for part in _parts(message):
        if not _is_image(part):
            parts.append(part)
            continue
        given = [part[key] for key in _OWN if part.get(key) is not None]
        value = given[0] if given else next(waiting, None)
        if value is None:
            raise Fault("a part of type 'image' without an image", "one in the column 'images'")
        images.append(checked(value, "base64" if part.get("base64") is not None else ""))
        parts.append(PART)
    return {**message, "content": parts}


def checked(value: Json, form: str = "") -> Image:
    """An image as a path, a data URI or a file's content.

    Args:
        value: of a part or a column.
        form: ``base64``, where the value is that and no URI.

    Raises:
        Fault: it is of another form, or lies on another machine.

    >>> checked({"bytes": None, "path": "a.png"}), checked({"url": "file:///a.png"})
    ('a.png', '/a.png')
    """
    if isinstance(value, Mapping):
        inner = [value[key] for key in ("bytes", "url", "path") if value.get(key) is not None]
        if not inner:
            raise Fault(f"an image with keys {', '.join(map(repr, value))}", "bytes or path")
        value = inner[0]
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or not value:
        raise Fault(f"an image of type {type(value).__name__}", "a path or a data URI")
    if form == "base64":
        return f"data:image;base64,{value}"
    scheme = value.partition(":")[0].lower() if ":" in value[:16] else ""
    if scheme == "file":
        return value.removeprefix("file://")
    if scheme not in ("", "data"):
        raise Fault(f"an image under {scheme}:", "a file or a data URI; nothing is fetched")
    return value
