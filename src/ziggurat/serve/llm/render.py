"""From a conversation to the token ids that a model continues."""

from collections.abc import Mapping, Sequence
from typing import Any

from ziggurat.core.errors import DataError
from ziggurat.data import HuggingFaceTokenizer, chat
from ziggurat.serve.errors import RequestError
from ziggurat.serve.llm import hermes

RESERVED = frozenset({"messages", "tools", "add_generation_prompt", "documents"})
"""Variables of a template that a request gives by fields of their own, or not at all."""


def render_chat(
    tokenizer: HuggingFaceTokenizer,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    variables: Mapping[str, Any] | None = None,
) -> list[int]:
    """Token ids of a conversation, ending where the assistant's answer begins.

    A template that has no place for tools gets them as text, see
    :func:`ziggurat.serve.llm.hermes.explain`.

    Args:
        tokenizer: with a chat template.
        messages: as templates read them.
        tools: what may be called, as templates read them.
        add_generation_prompt: open the assistant's turn.
        variables: further variables of the template, such as ``enable_thinking``.

    Raises:
        RequestError: there is no chat template, it rejects the messages, it presents tools in a
            form other than the Hermes one, or a variable is not its own.
    """
    given = dict(variables or {})
    for name in given:
        if name in RESERVED or name.startswith("_"):
            expected = "a variable of the chat template with no field of its own"
            field = "chat_template_kwargs"
            raise RequestError(field, found=name, expected=expected, param=field)
    try:
        messages, tools = _for_template(tokenizer, messages, tools)
        text = tokenizer.apply_chat_template(messages, tools, add_generation_prompt, **given)
        return tokenizer.encode(text)
    except DataError as error:
        raise RequestError(
            error.what, found=error.found, expected=error.expected, fix=error.fix, param="messages"
        ) from None


def _for_template(
    tokenizer: HuggingFaceTokenizer,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
) -> tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]] | None]:
    """Messages and tools, the latter as text where the template would drop them."""
    template = tokenizer.chat_template
    if template is None:
        return messages, tools
    template = tokenizer.chat_templates.get("tool_use", template) if tools else template
    if tools and "tools" in chat.variables(template):
        if hermes.OPEN not in template:
            raise RequestError(
                "tools",
                found="a chat template that asks for calls in a form of its own",
                expected=f"the Hermes form, with {hermes.OPEN}",
                fix="this server reads calls in that form only",
                param="tools",
            )
        _check_readable(tokenizer)
        return messages, tools
    called = any(message.get("tool_calls") or message["role"] == "tool" for message in messages)
    if tools:
        _check_readable(tokenizer)
    if tools or (called and "tool_calls" not in template):
        return hermes.explain(messages, tools or ()), None
    return messages, tools


def _check_readable(tokenizer: HuggingFaceTokenizer) -> None:
    """Generated text does not show special tokens: a tag that is one would be missed."""
    for tag in (hermes.OPEN, hermes.CLOSE):
        if tokenizer.backend.token_to_id(tag) in tokenizer.special_ids:
            raise RequestError(
                "tools",
                found=f"{tag} as a special token, which text does not show",
                expected="an ordinary token, or text",
                param="tools",
            )
