"""Reasoning parsers: a file of this folder for each form in which models write their reasoning.

A file holds one :class:`ReasoningParser` under the name ``PARSER``, and the parser is called as its
file is. A plugin adds others with ``REASONING_PARSERS.add(name, parser)``.

>>> REASONING_PARSERS["qwen3"].tags
('<think>', '</think>')
"""

import dataclasses
import pkgutil
from collections.abc import Sequence
from typing import ClassVar, Literal

from ziggurat.core.errors import ConfigError
from ziggurat.core.registry import Registry
from ziggurat.data import HuggingFaceTokenizer
from ziggurat.serve.llm.stop import overlap
from ziggurat.serve.llm.tool_parsers import AUTO, TextDelta

NONE = "none"
"""Name for no parser: reasoning stays in the text."""
_TAIL = 32
"""Tokens at the end of a prompt among which a tag is looked for."""


@dataclasses.dataclass(frozen=True)
class ReasoningDelta:
    """New text of the reasoning."""

    text: str


class ReasoningStream:
    r"""Reader of one answer that begins with reasoning between two tags; its text comes in pieces
    of any size.

    White space around the reasoning is dropped.

    Args:
        tags: before and after the reasoning.
        opened: whether the reasoning has begun already (``True``) or ended (``False``), in the
            prompt; ``None``: the answer's first text decides.

    >>> stream = ReasoningStream(("<think>", "</think>"), None)
    >>> stream.push("<th"), stream.push("ink>\nIt is"), stream.push(" 4.</th")
    ([], [ReasoningDelta(text='It is')], [ReasoningDelta(text=' 4.')])
    >>> stream.push("ink>\n\nFour")
    [TextDelta(text='Four')]
    """

    def __init__(self, tags: tuple[str, str], opened: bool | None):
        self._tags, self._assumed = tags, opened is True
        self._state: Literal["start", "reasoning", "answer"] = "start"
        self._held, self._begun = "", False
        if opened is False:
            self._state, self._begun = "answer", True

    @property
    def inside(self) -> bool:
        """Whether the text that comes next is reasoning."""
        return self._state == "reasoning" or (self._state == "start" and self._assumed)

    def push(self, text: str) -> list[ReasoningDelta | TextDelta]:
        """Add text; returns the deltas that are decided."""
        self._held += text
        if self._state == "start":
            self._start()
        out: list[ReasoningDelta | TextDelta] = []
        if self._state == "reasoning":
            self._reasoning(out)
        if self._state == "answer":
            self._answer(out)
        return out

    def finish(self) -> list[ReasoningDelta | TextDelta]:
        """Deltas of the text still held back when the answer ends."""
        held, self._held = self._held, ""
        if self._state == "answer":
            return []
        if self.inside:
            held = held.strip() if not self._begun else held.rstrip()
            return [ReasoningDelta(held)] if held else []
        return [TextDelta(held)] if held else []

    def _start(self) -> None:
        opening = self._tags[0]
        text = self._held.lstrip()
        if text.startswith(opening):
            self._state, self._held = "reasoning", text[len(opening) :]
        elif not opening.startswith(text):
            self._state = "reasoning" if self._assumed else "answer"
            self._begun = self._state == "answer"  # an answer without reasoning stays as it is

    def _reasoning(self, out: list[ReasoningDelta | TextDelta]) -> None:
        closing = self._tags[1]
        if not self._begun:
            self._held = self._held.lstrip()
        at = self._held.find(closing)
        end = at if at >= 0 else len(self._held) - overlap(self._held, closing)
        certain = self._held[:end].rstrip()
        if certain:
            self._begun = True
            out.append(ReasoningDelta(certain))
        if at < 0:
            self._held = self._held[len(certain) :]
            return
        self._held = self._held[at + len(closing) :]
        self._state, self._begun = "answer", False

    def _answer(self, out: list[ReasoningDelta | TextDelta]) -> None:
        text = self._held if self._begun else self._held.lstrip()
        self._held = ""
        if text:
            self._begun = True
            out.append(TextDelta(text))


class ReasoningParser:
    """A form of reasoning: text between two tags at the beginning of an answer."""

    tags: ClassVar[tuple[str, str]]
    """Texts before and after the reasoning."""
    assumed: ClassVar[bool] = False
    """Whether an answer that begins without a tag is reasoning too, up to the closing one."""

    def written_by(self, template: str) -> bool:
        """Whether a chat template shows this form; by default, if it holds both tags."""
        return all(tag in template for tag in self.tags)

    def opened(self, tokenizer: HuggingFaceTokenizer, prompt: Sequence[int]) -> bool | None:
        """Whether a prompt ends within the reasoning (``True``), behind it (``False``), or before
        it (``None``)."""
        tail = tokenizer.decode(list(prompt[-_TAIL:]), skip_special_tokens=False).rstrip()
        if tail.endswith(self.tags[0]):
            return True
        if tail.endswith(self.tags[1]):
            return False
        return True if self.assumed else None

    def stream(self, opened: bool | None) -> ReasoningStream:
        """A new reader, for one answer to such a prompt."""
        return ReasoningStream(self.tags, opened)


REASONING_PARSERS: Registry[ReasoningParser] = Registry(
    "reasoning parser",
    homes={file.name: f"{__name__}.{file.name}:PARSER" for file in pkgutil.iter_modules(__path__)},
)


def reasoning_parser_for(
    tokenizer: HuggingFaceTokenizer, name: str = AUTO
) -> ReasoningParser | None:
    """The parser of a model's reasoning; ``None`` where it stays in the text.

    Args:
        tokenizer: with the chat template.
        name: of the parser; ``auto``: the one whose form the template shows, ``none``: none.

    Raises:
        ConfigError: no parser has this name, or one of its tags is a special token, which generated
            text does not show.
    """
    if name == NONE:
        return None
    if name != AUTO:
        parser = REASONING_PARSERS[name]
        hidden = _hidden(tokenizer, parser)
        if hidden:
            found = f"a model with the special token {hidden}"
            raise ConfigError("reasoning parser", found=found, expected="an ordinary token")
        return parser
    template = tokenizer.chat_template
    if template is None:
        return None
    for known in REASONING_PARSERS:
        parser = REASONING_PARSERS[known]
        if parser.written_by(template) and not _hidden(tokenizer, parser):
            return parser
    return None


def _hidden(tokenizer: HuggingFaceTokenizer, parser: ReasoningParser) -> str:
    """A tag that generated text does not show, if there is one."""
    special = tokenizer.special_ids
    hidden = (tag for tag in parser.tags if tokenizer.backend.token_to_id(tag) in special)
    return next(hidden, "")
