"""From a conversation to the token ids that a model continues."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from ziggurat.core.errors import DataError
from ziggurat.core.json_types import JsonMapping, JsonObject
from ziggurat.data import HuggingFaceTokenizer, chat
from ziggurat.serve.errors import RequestError
from ziggurat.serve.llm import special_text, texts
from ziggurat.serve.llm.tool_parsers import (
    AUTO,
    TOOL_CALL_PARSERS,
    ToolCallParser,
    knows_tools,
    parser_for,
    tool_template,
)

RESERVED = frozenset({"messages", "tools", "add_generation_prompt", "documents"})
"""Variables of a template that a request gives by fields of their own, or not at all."""

ContentFormat = Literal["auto", "string", "openai"]
"""How templates get the content of messages: as a text, or as OpenAI's list of parts."""

Messages = Sequence[Mapping[str, Any]]


def render_chat(
    tokenizer: HuggingFaceTokenizer,
    messages: Messages,
    tools: Sequence[JsonMapping] | None = None,
    add_generation_prompt: bool = True,
    variables: JsonMapping | None = None,
    *,
    content_format: ContentFormat = "auto",
    special_tokens: bool = False,
    max_length: int | None = None,
    tool_call_parser: str = AUTO,
    expand: Callable[[str], str] | None = None,
    continue_final: bool = False,
) -> list[int]:
    """Token ids of a conversation, ending where the assistant's answer begins.

    A template that has no place for tools gets them as text, see
    :meth:`ziggurat.serve.llm.tool_parsers.ToolCallParser.explain`.

    Args:
        tokenizer: with a chat template.
        messages: as templates read them.
        tools: what may be called, as templates read them.
        add_generation_prompt: open the assistant's turn.
        variables: further variables of the template, such as ``enable_thinking``.
        content_format: how the template takes the content of messages; ``auto`` finds out by
            rendering a message in either way.
        special_tokens: let the text of a special token in messages, tools and variables become that
            token; else only the template makes such tokens.
        max_length: most tokens; a text that must have more is refused before it is encoded.
        tool_call_parser: name of the form of tool calls; ``auto``: the one that the template shows.
        expand: changes the rendered text: writes the tokens of images in the place of their marks.
        continue_final: end with the last message's text, which the answer continues.

    Raises:
        RequestError: there is no chat template, it rejects the messages, it presents tools in a
            form that no parser reads, or a variable is not its own.
        ContextTooLong: the text cannot be of ``max_length`` tokens or fewer.
    """
    given = dict(variables or {})
    for name in given:
        if name in RESERVED or name.startswith("_"):
            expected = "a variable of the chat template with no field of its own"
            field = "chat_template_kwargs"
            raise RequestError(field, found=name, expected=expected, param=field)
    try:
        sign = "" if special_tokens else special_text.new_mark()
        said: Any = [messages, tools, given]
        messages, tools, given = special_text.mark(said, tokenizer, sign) if sign else said
        parser = parser_for(tokenizer, tool_call_parser)
        messages, tools = _for_template(tokenizer, list(map(_as_text, messages)), tools, parser)
        opens = add_generation_prompt and not continue_final
        text = _render(tokenizer, messages, tools, given, opens, content_format)
        text = _until_final(text, messages) if continue_final else text
        text = text if expand is None else expand(text)
        texts.check_length(tokenizer, text.replace(sign, ""), max_length, "messages")
        if sign and sign in text:
            return special_text.text_tokenizer(tokenizer).encode(text, sign)
        return tokenizer.encode(text)
    except DataError as error:
        raise RequestError(
            error.what, found=error.found, expected=error.expected, fix=error.fix, param="messages"
        ) from None
    except RecursionError:
        found, expected = "values nested too deeply", "a flatter request"
        raise RequestError("messages", found=found, expected=expected, param="messages") from None


def _render(
    tokenizer: HuggingFaceTokenizer,
    messages: Messages,
    tools: Sequence[JsonMapping] | None,
    variables: JsonMapping,
    add_generation_prompt: bool,
    content_format: ContentFormat,
) -> str:
    form = content_format
    if form == "auto" and tokenizer.chat_template is not None:
        name = "tool_use" if tools and "tool_use" in tokenizer.chat_templates else "default"
        template = tokenizer.chat_templates[name]
        form = content_format_of(template, tuple(sorted(tokenizer.special_tokens.items())))
    if form == "openai":
        messages = [_as_parts(message) for message in messages]
    return tokenizer.apply_chat_template(messages, tools, add_generation_prompt, **variables)


def _until_final(text: str, messages: Messages) -> str:
    """A rendered conversation up to the end of the last message's text."""
    content = messages[-1].get("content") if messages else None
    if isinstance(content, list):
        content = next((part["text"] for part in reversed(content) if _is_text(part)), None)
    final = content if isinstance(content, str) else ""
    found = "no text in the last message" if not final.strip() else "a template that changes it"
    if messages and messages[-1].get("tool_calls"):
        found = "calls behind it"
    else:
        for form in (final, final.strip()):
            if form.strip() and (at := text.rfind(form)) >= 0:
                return text[: at + len(form)]
    raise RequestError(
        "continue_final_message",
        found=found,
        expected="a last message whose text the chat template writes as it is",
        param="continue_final_message",
    )


@functools.lru_cache(maxsize=64)
def content_format_of(
    template: str, special_tokens: tuple[tuple[str, str], ...] = ()
) -> ContentFormat:
    """Form in which a template takes the content of messages: ``string``, or ``openai`` for a list
    of parts.

    >>> content_format_of("{% for m in messages %}{{ m.content }}{% endfor %}")
    'string'
    >>> loop = "{% for part in m.content %}{{ part.text }}{% endfor %}"
    >>> content_format_of("{% for m in messages %}" + loop + "{% endfor %}")
    'openai'
    """
    text = {"role": "user", "content": "a text to look for"}
    named: JsonObject = dict(special_tokens)
    forms: dict[ContentFormat, JsonMapping] = {"string": text, "openai": _as_parts(text)}
    for form, message in forms.items():
        try:
            if text["content"] in chat.render(template, [message], **named):
                return form
        except DataError:  # it takes the other form, or wants more than one message
            continue
    return "string"


def _as_text(message: JsonMapping) -> JsonMapping:
    """A message whose content is text, if it holds nothing else."""
    content = message.get("content")
    if not isinstance(content, list) or not all(_is_text(part) for part in content):
        return message
    return {**message, "content": "".join(part["text"] for part in content)}


def _as_parts(message: JsonMapping) -> JsonMapping:
    """A message whose content is a list of parts."""
    content = message.get("content")
    if not isinstance(content, str):
        return message
    return {**message, "content": [{"type": "text", "text": content}] if content else []}


def _is_text(part: Any) -> bool:
    shaped = isinstance(part, Mapping) and part.get("type") == "text"
    return shaped and isinstance(part.get("text"), str)


def _for_template(
    tokenizer: HuggingFaceTokenizer,
    messages: Messages,
    tools: Sequence[JsonMapping] | None,
    parser: ToolCallParser | None,
) -> tuple[Messages, Sequence[JsonMapping] | None]:
    """Messages and tools, the latter as text where the template would drop them."""
    template = tool_template(tokenizer) if tools else tokenizer.chat_template
    if template is None:
        return messages, tools
    if tools:
        _check_readable(tokenizer, parser)
        if knows_tools(template):
            return messages, tools
    called = any(message.get("tool_calls") or message["role"] == "tool" for message in messages)
    if tools or (called and "tool_calls" not in template):
        assert parser is not None  # there is one for templates without a place for tools
        return parser.explain(messages, tools or ()), None
    return messages, tools


def _check_readable(tokenizer: HuggingFaceTokenizer, parser: ToolCallParser | None) -> None:
    """Refuse calls that nothing reads. Generated text does not show special tokens: a tag that is
    one would be missed."""
    if parser is None:
        known = (f"{name} ({TOOL_CALL_PARSERS[name].tags[0]})" for name in TOOL_CALL_PARSERS)
        raise RequestError(
            "tools",
            found="a chat template that asks for calls in a form of its own",
            expected=f"the form of a tool-call parser: {', '.join(known)}",
            fix="name the parser with --tool-call-parser if the model writes one of these",
            param="tools",
        )
    for tag in () if parser.reads_special else parser.tags:
        if tokenizer.backend.token_to_id(tag) in tokenizer.special_ids:
            raise RequestError(
                "tools",
                found=f"{tag} as a special token, which text does not show",
                expected="an ordinary token, or text",
                param="tools",
            )
