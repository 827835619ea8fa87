"""Fields that OpenAI's fine-tuning format, TRL's and Axolotl's data sets know, and what each does.

A record may carry whatever else it likes: ids, sources, scores. A field that one of these formats
knows changes what is learned there, so here it is honoured or refused by name, and never dropped.

OpenAI: https://platform.openai.com/docs/guides/supervised-fine-tuning#formatting-your-data and
its reference of fine-tuning inputs. TRL: https://huggingface.co/docs/trl/dataset_formats (1.16).
Axolotl: https://docs.axolotl.ai/docs/dataset-formats/.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal

from ziggurat.core.json_types import Json, JsonMapping, JsonObject
from ziggurat.data.sources.records import Fault

Use = Literal["honoured", "inert", "refused"]


@dataclasses.dataclass(frozen=True)
class Field:
    """A known field of a record and its meaning."""

    name: str
    formats: str
    """Whose it is."""
    use: Use
    """``honoured``: it moves the result as documented. ``inert``: it changes nothing in training,
    in its own format neither. ``refused``: a record with a value under it is an error."""
    fix: str = ""
    """Field to write in place of a refused one."""


_TOKENS = "give texts or messages, which are tokenised here"
_IMAGES = "leave them out, or see content image_messages of a source for objective sft"
_MEDIA = "leave them out: text and images are all that objectives learn from"
_LOG_PROBS = "leave them out: the reference is run here"

RECORD = (
    *(Field(name, "TRL", "honoured") for name in ("prompt", "completion", "chosen", "rejected")),
    Field("messages", "OpenAI, TRL, Axolotl", "honoured"),
    Field("label", "TRL", "honoured"),
    Field("tools", "OpenAI, TRL, Axolotl", "honoured"),
    Field("chat_template_kwargs", "TRL", "honoured"),
    Field("margin", "TRL", "honoured"),
    Field("parallel_tool_calls", "OpenAI", "inert"),
    Field("functions", "OpenAI", "refused", "write them as tools"),
    Field("preferred_output", "OpenAI", "refused", "write messages, chosen and rejected"),
    Field("non_preferred_output", "OpenAI", "refused", "write messages, chosen and rejected"),
    Field("system", "Axolotl", "refused", "make it the first message, of role system"),
    Field("input", "Axolotl", "refused", "write it into the prompt, behind the instruction"),
    Field("segments", "Axolotl", "refused", "write prompt and completion, or messages"),
    Field("completions", "TRL", "refused", "write a record for each completion"),
    *(Field(n, "TRL", "refused", _IMAGES) for n in ("image", "images")),
    *(Field(n, "TRL", "refused", _MEDIA) for n in ("video", "videos", "audio", "audios")),
    *(
        Field(name, "TRL, Axolotl", "refused", _TOKENS)
        for name in ("input_ids", "attention_mask", "labels", "position_ids", "token_type_ids")
    ),
    *(
        Field(name, "TRL", "refused", _TOKENS)
        for name in ("completion_mask", "assistant_masks", "seq_lengths", "prompt_ids")
    ),
    *(
        Field(name, "TRL", "refused", _TOKENS)
        for name in ("completion_ids", "chosen_ids", "rejected_ids")
    ),
    *(
        Field(name, "TRL", "refused", _LOG_PROBS)
        for name in ("ref_chosen_logps", "ref_rejected_logps", "ref_logps", "ref_KL_logps")
    ),
)
"""Fields of a record."""

MESSAGE = (
    *(Field(name, "OpenAI, TRL, Axolotl", "honoured") for name in ("role", "content")),
    Field("weight", "OpenAI", "honoured"),
    Field("train", "Axolotl", "honoured"),
    Field("training", "Axolotl", "honoured"),
    Field("tool_calls", "OpenAI, TRL, Axolotl", "honoured"),
    Field("reasoning_content", "TRL, Axolotl", "honoured"),
    Field("thinking", "TRL", "honoured"),
    Field("reasoning", "TRL", "honoured"),
    Field("tool_call_id", "OpenAI", "inert"),
    Field("name", "OpenAI, TRL", "inert"),
    Field("train_detail", "Axolotl", "refused", "give whole messages train or weight"),
    Field("training_detail", "Axolotl", "refused", "give whole messages train or weight"),
    Field("function_call", "OpenAI", "refused", "write it as tool_calls"),
    Field("refusal", "OpenAI", "refused", "write it as content"),
    Field("audio", "OpenAI", "refused", _MEDIA),
    Field("from", "Axolotl", "refused", "rename it to role"),
    Field("value", "Axolotl", "refused", "rename it to content"),
)
"""Fields of a message. An inert one reaches the template, which may show it."""

ROLES = {
    **dict.fromkeys(("human", "prompter", "instruction"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "model", "bot", "ai", "chatbot"), "assistant"),
}
"""Roles of other formats, and what templates call them."""
MASKS = ("weight", "train", "training")
"""Fields that say whether a message is learned."""
IMAGE_PARTS = ("image", "image_url")
"""Types of a message's parts that are images: Hugging Face's and OpenAI's."""
OF_PROMPTS = frozenset({"input"})
"""Fields that mean something beside a prompt only; a conversation may be about an input."""
WITHOUT_ROWS = frozenset({"labels"})
"""Fields that are a list of numbers where the format means them; other data sets call a list of
topics so."""


@dataclasses.dataclass(frozen=True, slots=True)
class Extras:
    """Fields of a record besides its document."""

    tools: tuple[Json, ...] | None = None
    """Functions that the assistant may call, as the template gets them."""
    variables: JsonMapping = dataclasses.field(default_factory=dict)
    """Variables of the template, ``chat_template_kwargs``."""
    margin: float | None = None
    """By how much the chosen answer should score more than the rejected one."""


NOTHING = Extras()


def names_beside(taken: Collection[str]) -> list[str]:
    """Names of the known fields of a record that some effect hangs on, beside those that are read
    in any case; by these a reader of columns decides what to read."""
    return [f.name for f in RECORD if f.use != "inert" and f.name not in taken]


def beside(
    get: Callable[[str], Json], names: Collection[str], taken: Collection[str], *, prompts: bool
) -> Extras:
    """Fields of a record besides its document.

    Args:
        get: the record's value under a key.
        names: its keys.
        taken: keys that the document is read from.
        prompts: whether the document is a prompt and an answer.

    Raises:
        Fault: it has a value under a known field that cannot be honoured.
    """
    found: JsonObject = {}
    for known in RECORD:
        if known.name not in names or known.name in taken or known.use == "inert":
            continue
        if known.name in OF_PROMPTS and not prompts:
            continue
        value = get(known.name)
        if _is_absent(value) or (known.name in WITHOUT_ROWS and not _is_numbers(value)):
            continue
        if known.use == "refused":
            whose = f"a field of {known.formats}'s format that is not read"
            raise Fault(f"{known.name!r}, {whose}", f"a record without it; {known.fix}")
        found[known.name] = value
    return Extras(
        tools=_tools(found.get("tools")),
        variables=_variables(found.get("chat_template_kwargs")),
        margin=_margin(found.get("margin")),
    )


def check_message(message: JsonMapping, where: str, *, images: bool = False) -> None:
    """Refuse what a message says that cannot be honoured; ``images`` are parts that some sources
    take.

    Raises:
        Fault: a known field, a role or a part of its content is of that kind; it is named.
    """
    for known in MESSAGE:
        if known.use == "refused" and not _is_absent(message.get(known.name)):
            whose = f"a field of {known.formats}'s format that is not read"
            raise Fault(f"{where}: {known.name!r}, {whose}", f"a message without it; {known.fix}")
    role = message.get("role")
    if not isinstance(role, str):
        raise Fault(f"{where} without a role", "role and content")
    if role in ROLES:
        raise Fault(f"{where} of role {role!r}", f"role {ROLES[role]!r}")
    content = message.get("content")
    for part in content if isinstance(content, Sequence) and not isinstance(content, str) else ():
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if images and kind in IMAGE_PARTS:
            continue
        if kind != "text" or not isinstance(part.get("text"), str):
            raise Fault(f"{where}: a part of type {kind!r}", 'parts {"type": "text", "text": ...}')
    is_learned(message, where)


def is_learned(message: JsonMapping, where: str) -> bool:
    """Whether a message is learned: an assistant's is, unless ``weight`` is 0 or ``train`` is
    false.

    Raises:
        Fault: a mask is another value than 0, 1, true or false, disagrees with another, or asks
            for a message of another role to be learned.
    """
    said = {}
    for name in MASKS:
        value = message.get(name)
        if value is None:
            continue
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise Fault(f"{where}: {name!r} of {value!r}", "0 or 1, true or false")
        said[name] = bool(value)
    if len(set(said.values())) > 1:
        raise Fault(f"{where}: {said}", "masks that agree")
    learned = next(iter(said.values()), message.get("role") == "assistant")
    if learned and message.get("role") != "assistant":
        name = next(iter(said))
        raise Fault(
            f"{where}: {name!r} on a message of role {message.get('role')!r}",
            "it on the assistant's messages only, since no others are learned",
        )
    return learned


def without_masks(message: JsonMapping) -> JsonObject:
    """A message without the fields that only mark what is learned, as templates get it."""
    return {name: value for name, value in message.items() if name not in MASKS}


def _tools(value: Json) -> tuple[Json, ...] | None:
    if value is None:
        return None
    value = _loaded(value, "tools")
    if _is_absent(value):
        return None
    whole = isinstance(value, Sequence) and all(isinstance(tool, Mapping) for tool in value)
    if isinstance(value, str) or not whole:
        raise Fault(f"'tools': {type(value).__name__}", "a list of functions' JSON schemas")
    return tuple(value)


def _variables(value: Json) -> JsonMapping:
    value = _loaded({} if value is None else value, "chat_template_kwargs")
    if not isinstance(value, Mapping):
        found = f"'chat_template_kwargs': {type(value).__name__}"
        raise Fault(found, "an object of the template's variables")
    return dict(value)


def _margin(value: Json) -> float | None:
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value):
        raise Fault(f"'margin': {value!r}", "a finite number")
    return float(value)


def _loaded(value: Json, key: str) -> Json:
    """A value that a table may keep as JSON, as TRL advises for tools."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise Fault(f"{key!r}: {error}", "JSON") from None


def _is_absent(value: Json) -> bool:
    """Tables fill what a record lacks with null or an empty list."""
    return value is None or (isinstance(value, str | Sequence | Mapping) and not value)


def _is_numbers(value: Json) -> bool:
    return isinstance(value, Sequence) and all(isinstance(one, int | float) for one in value)
