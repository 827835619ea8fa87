"""Conversations as text, with the ranges of characters that a fine-tune learns.

>>> from ziggurat.data.sources import Document
>>> from ziggurat.data.tokenizers import byte_level
>>> said = "{% generation %}{{ m.content }}{% endgeneration %}"
>>> template = "{% for m in messages %}<{{ m.role }}>" + said + "{% endfor %}"
>>> template = template.replace(said, "{% if m.role == 'assistant' %}" + said + "{% endif %}")
>>> tokenizer = HuggingFaceTokenizer(byte_level().backend, chat_templates={"default": template})
>>> talk = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"})
>>> made = rendered(Document("", "file", 1, messages=talk), tokenizer)
>>> made.text, made.learned
('<user><assistant>Ho', ((17, 19),))
"""

import dataclasses
import re
from collections.abc import Sequence

from ziggurat.core.errors import DataError
from ziggurat.core.json_types import Json, JsonMapping
from ziggurat.core.protocols import Tokenizer
from ziggurat.data import chat, template_input, training_templates
from ziggurat.data.huggingface import HuggingFaceTokenizer
from ziggurat.data.sources import Document, Source

_GENERATION = re.compile(r"\{%-?\+?\s*generation\s*[-+]?%\}")
Span = tuple[int, int]
"""First character and the one after the last."""


def rendered(document: Document, tokenizer: Tokenizer) -> Document:
    """Render a conversation by the tokenizer's chat template, and mark the parts that are learned.

    Learned is what the template puts into ``{% generation %}`` blocks. For a template without such
    blocks, those of a template of :mod:`ziggurat.data.training_templates` that renders the same
    text are taken. Where there is none, it is what each message of the assistant adds to the text
    before it, opening of its turn excluded and closing included: ``r(m[:i + 1])`` after
    ``r(m[:i] + opening)``, for r the template. And where a template changes earlier turns when
    later ones come, it is what changes in the text with the message's content, up to the token that
    closes the turn.

    Of these are left out the messages that the record masks, and a prompt's.

    Args:
        document: with or without messages; one without is returned as it is.
        tokenizer: must have a chat template.

    Raises:
        DataError: there is no template, it refuses the messages, or it has no place for something
            that the record says.
    """
    if document.messages is None:
        return document
    template = template_of(tokenizer, bool(document.tools))
    assert isinstance(tokenizer, HuggingFaceTokenizer), "one with a template"
    talk = _Talk(
        template,
        template_input.prepared(document.messages, document.tools, document.variables, template),
        document.tools,
        {**tokenizer.special_tokens, **(document.variables or {})},
        tuple(
            token.content
            for token in tokenizer.backend.get_added_tokens_decoder().values()
            if token.special
        ),
    )
    turns = talk.answers if document.turns is None else document.turns
    text, spans = talk.marked(turns, tuple(tokenizer.special_tokens.items()))
    learned = tuple((start, end) for start, end in spans if end > start)
    return dataclasses.replace(
        document,
        text=text,
        learned=learned,
        key=document.text if document.key is None else document.key,  # whatever the template
        templated=True,
        closed=bool(learned) and _closes(text[slice(*learned[-1])], talk.messages[max(turns)]),
        messages=None,
        tools=None,
        variables=None,
    )


def _closes(said: str, message: JsonMapping) -> bool:
    """Whether a turn's text continues after the message's content: with a token that ends it."""
    content = message.get("content")
    if isinstance(content, Sequence) and not isinstance(content, str):
        content = "".join(part.get("text", "") for part in content)
    content = content.strip() if isinstance(content, str) else ""
    return bool(said.strip()) and not (content and said.rstrip().endswith(content))


def template_of(tokenizer: Tokenizer, tools: bool = False) -> str:
    """The template that renders messages.

    Args:
        tokenizer: the tokenizer.
        tools: whether functions are given, for which there may be a template of its own.

    Raises:
        DataError: there is none.
    """
    template = tokenizer.chat_template
    if template is None or not isinstance(tokenizer, HuggingFaceTokenizer):
        raise DataError(
            f"tokenizer {type(tokenizer).__name__}",
            found="no chat template",
            expected="one, to render messages",
            fix="use an instruction-tuned tokenizer or add chat_template.jinja",
        )
    return tokenizer.chat_templates.get("tool_use", template) if tools else template


def decided_by(sources: Sequence[Source], tokenizer: Tokenizer) -> list[Json]:
    """Settings that decide the text of conversations, besides the records; empty for plain
    texts."""
    if all(getattr(source, "content", "text") == "text" for source in sources):
        return []
    return [getattr(tokenizer, "chat_templates", None), training_templates.digest()]


@dataclasses.dataclass(frozen=True)
class _Talk:
    """A conversation under a template."""

    template: str
    messages: tuple[JsonMapping, ...]
    tools: Sequence[JsonMapping] | None
    variables: JsonMapping
    special: tuple[str, ...]
    """Special tokens; one of them may close a turn."""

    @property
    def answers(self) -> tuple[int, ...]:
        """Numbers of the assistant's messages."""
        return tuple(n for n, message in enumerate(self.messages) if message["role"] == "assistant")

    def render(self, messages: Sequence[JsonMapping], opening: bool = False) -> str:
        return chat.render(self.template, messages, self.tools, opening, **self.variables)

    def marked(
        self, turns: tuple[int, ...], special_tokens: tuple[tuple[str, str], ...]
    ) -> tuple[str, list[Span]]:
        """The text, and the ranges of the messages of these numbers."""
        if _GENERATION.search(self.template):
            text, spans = self._with_blocks(self.template)
            return text, self._of(turns, spans)
        family = training_templates.family_of(self.template, special_tokens)
        whole = self.render(self.messages)
        if family is not None:
            try:
                text, spans = self._with_blocks(training_templates.source(family))
            except DataError:  # of what it has no place for
                text, spans = "", []
            complete = len(spans) == len(self.answers)
            if complete and (text == whole or family in training_templates.REWRITING):
                return text, self._of(turns, spans)
        added = [self._added(number, whole) for number in turns]
        return whole, [self._located(n, whole) if a is None else a for n, a in zip(turns, added)]

    def _with_blocks(self, template: str) -> tuple[str, list[Span]]:
        return chat.render_with_spans(template, self.messages, self.tools, False, **self.variables)

    def _of(self, turns: tuple[int, ...], spans: list[Span]) -> list[Span]:
        """Generation blocks of the messages that are learned."""
        if turns == self.answers:
            return spans
        if len(self.answers) != len(spans):
            raise DataError(
                "chat template",
                found=f"{len(spans)} generation blocks for {len(self.answers)} messages of the "
                "assistant",
                expected="one for each, to tell an answer from those that are not learned",
            )
        return [span for turn, span in zip(self.answers, spans) if turn in turns]

    def _added(self, number: int, whole: str) -> Span | None:
        """Characters that a message adds to the text; ``None`` if later messages change them."""
        # A message of the assistant may follow another one, or open the conversation.
        opened = self.render(self.messages[:number], opening=True)
        closed = self.render(self.messages[: number + 1])
        if not (whole.startswith(closed) and closed.startswith(opened)):
            return None
        return len(opened), _without_separator(closed, self.special)

    def _located(self, number: int, whole: str) -> Span:
        """Where a message's content stands in the text, with what closes the turn.

        Found by what differs when the content is another one: all characters of the substitute are
        in no text, so the first and the last that differ are those of the content.
        """
        message = self.messages[number]
        content = message.get("content")
        said = content.split("</think>")[-1].strip() if isinstance(content, str) else ""
        start, end = _changed(whole, self._with_content(self.messages, number))
        if message.get("tool_calls") or not said or said not in whole[start:end]:
            raise DataError(
                f"chat template on message {number}",
                found="a text that later messages change",
                expected="one that only grows or keeps what was said, or generation blocks",
                fix="put {% generation %} around what the assistant says in the template",
            )
        alone = self.messages[: number + 1]
        rest = self.render(alone)[
            _changed(self.render(alone), self._with_content(alone, number))[1] :
        ]
        # What closes the turn follows the content both here and where the text ends with it.
        same = _common(whole[end:], rest)
        close = _without_separator(whole[end : end + same], self.special, least=True)
        opening = self._opening(number)
        found = whole.rfind(opening, 0, start) if opening else -1
        inside = found >= 0 and not any(
            token in whole[found + len(opening) : start] for token in self.special
        )
        return (found + len(opening) if inside else start), end + close

    def _with_content(self, messages: Sequence[JsonMapping], number: int) -> str:
        other = [dict(message) for message in messages]
        other[number]["content"] = _SUBSTITUTE
        return self.render(other)

    def _opening(self, number: int) -> str:
        """The text that opens the assistant's turn before message ``number``."""
        before = self.messages[:number]
        closed, opened = self.render(before), self.render(before, opening=True)
        return opened[_common(closed, opened) :]


_SUBSTITUTE = "\ue000\ue001"
"""Characters of Unicode's private use, which no template trims."""


def _common(left: str, right: str) -> int:
    """How many characters two texts begin with alike."""
    count = 0
    for ours, theirs in zip(left, right):
        if ours != theirs:
            break
        count += 1
    return count


def _changed(text: str, other: str) -> Span:
    """The range of ``text`` that ``other`` has something else for."""
    start = _common(text, other)
    behind = min(len(text), len(other)) - start
    same = min(_common(text[::-1], other[::-1]), behind)
    return start, len(text) - same


def _without_separator(text: str, special: Sequence[str], *, least: bool = False) -> int:
    """Where a turn ends: white space after the special token that closes it is never generated.

    Args:
        text: up to the next turn, or its end.
        special: special tokens.
        least: of a text that no special token ends, none of it, for it may be cut anywhere.
    """
    ends = [text.rfind(token) + len(token) for token in special if token in text]
    if least:
        return max(ends, default=0)
    bare = text.rstrip()
    return len(bare) if any(bare.endswith(token) for token in special) else len(text)
