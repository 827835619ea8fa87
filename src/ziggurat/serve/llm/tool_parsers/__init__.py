"""Tool-call parsers: a file of this folder for each form in which models write calls.

A file holds one :class:`ToolCallParser` under the name ``PARSER``, and the parser is called as its
file is. A plugin adds others with ``TOOL_CALL_PARSERS.add(name, parser)``.

>>> TOOL_CALL_PARSERS["hermes"].tags
('<tool_call>', '</tool_call>')
"""

import abc
import pkgutil
import secrets
from collections.abc import Sequence
from typing import ClassVar

from ziggurat.core.json_types import JsonMapping, JsonObject
from ziggurat.core.registry import Registry
from ziggurat.data import HuggingFaceTokenizer, chat
from ziggurat.serve.llm.call_deltas import CallDelta as CallDelta
from ziggurat.serve.llm.call_deltas import CallStream
from ziggurat.serve.llm.call_deltas import Delta as Delta
from ziggurat.serve.llm.call_deltas import TextDelta as TextDelta
from ziggurat.serve.llm.structured import Form
from ziggurat.serve.llm.tools import ToolUse

AUTO = "auto"
"""Name for the parser whose form the chat template shows."""
FALLBACK = "hermes"
"""Form that a model is told of, where its template has no place for tools."""


class ToolCallParser(abc.ABC):
    """A form of tool calls: how to read it, enforce it, and explain it to a model."""

    tags: ClassVar[tuple[str, ...]]
    """Texts that mark a call, the opening one first. A vocabulary may hold them as tokens, but not
    as special ones, which generated text does not show, unless ``reads_special``."""
    reads_special: ClassVar[bool] = False
    """Whether tags may be special tokens: answers with tools are then decoded with these."""

    def written_by(self, template: str) -> bool:
        """Whether a chat template shows calls in this form; by default, if it holds ``tags[0]``."""
        return self.tags[0] in template

    @abc.abstractmethod
    def stream(self) -> CallStream:
        """A new reader, for one answer."""

    def reader(self, use: ToolUse) -> CallStream:
        """A new reader, for one answer of a request with these tools; by default, one that needs
        not know them."""
        return self.stream()

    def new_id(self) -> str:
        """A new id of a call."""
        return f"call_{secrets.token_hex(12)}"

    @abc.abstractmethod
    def grammar(
        self, use: ToolUse, tokenizer: HuggingFaceTokenizer, answer: Form | None = None
    ) -> Form:
        """Grammar of an answer with these tools.

        Args:
            use: the tools. Where no call is forced, text may stand before and between calls.
            tokenizer: of the model; a tag may be a token of its own.
            answer: a JSON form that an answer without calls must have.

        Raises:
            ValueError: a schema is no schema, or too large.
        """

    @abc.abstractmethod
    def explain(
        self, messages: Sequence[JsonMapping], tools: Sequence[JsonMapping]
    ) -> list[JsonObject]:
        """Rewrite tools, calls and their results as text, for chat templates that know none."""


TOOL_CALL_PARSERS: Registry[ToolCallParser] = Registry(
    "tool-call parser",
    homes={file.name: f"{__name__}.{file.name}:PARSER" for file in pkgutil.iter_modules(__path__)},
)


def tool_template(tokenizer: HuggingFaceTokenizer) -> str | None:
    """The chat template of requests with tools: the one for tools, where there are several."""
    return tokenizer.chat_templates.get("tool_use", tokenizer.chat_template)


def knows_tools(template: str | None) -> bool:
    """Whether a chat template has a place for tools."""
    return template is not None and "tools" in chat.variables(template)


def parser_for(tokenizer: HuggingFaceTokenizer, name: str = AUTO) -> ToolCallParser | None:
    """The parser of a model's tool calls; ``None`` where its template shows a form of its own.

    Args:
        tokenizer: with the chat template.
        name: of the parser; ``auto``: the one whose form the template shows, or Hermes' where the
            template has no place for tools.

    Raises:
        ConfigError: no parser has this name.
    """
    if name != AUTO:
        return TOOL_CALL_PARSERS[name]
    template = tool_template(tokenizer)
    if template is None or not knows_tools(template):
        return TOOL_CALL_PARSERS[FALLBACK]
    parsers = (TOOL_CALL_PARSERS[known] for known in TOOL_CALL_PARSERS)
    return next((parser for parser in parsers if parser.written_by(template)), None)
