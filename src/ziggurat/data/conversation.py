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

from ziggurat.core.errors import DataError
from ziggurat.core.protocols import Tokenizer
from ziggurat.data import chat
from ziggurat.data.huggingface import HuggingFaceTokenizer
from ziggurat.data.sources import Document

_GENERATION = re.compile(r"\{%-?\+?\s*generation\s*[-+]?%\}")


def rendered(document: Document, tokenizer: Tokenizer) -> Document:
    """A conversation's text under the tokenizer's chat template, and what of it is learned.

    Learned is what the template puts into ``{% generation %}`` blocks. Without such blocks it is
    what each message of the assistant adds to the text before it, opening of its turn excluded and
    closing included: ``r(m[:i + 1])`` after ``r(m[:i] + opening)``, for r the template. That needs
    each of them to be a beginning of the whole text. Messages before ``document.learn_from`` are
    not learned.

    Args:
        document: with or without messages; one without is returned as it is.
        tokenizer: must have a chat template.

    Raises:
        DataError: there is no template, it refuses the messages, or it has no generation blocks and
            changes earlier turns when later ones come.
    """
    if document.messages is None:
        return document
    template = template_of(tokenizer)
    assert isinstance(tokenizer, HuggingFaceTokenizer), "one with a template"
    text, spans = chat.render_with_spans(
        template, document.messages, None, False, **tokenizer.special_tokens
    )
    if not _GENERATION.search(template):
        spans = _added(document, tokenizer, template, text)
    elif document.learn_from:
        spans = _later(document, spans)
    learned = tuple((start, end) for start, end in spans if end > start)
    return dataclasses.replace(document, text=text, learned=learned, messages=None)


def template_of(tokenizer: Tokenizer) -> str:
    """The template that renders messages.

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
    return template


def _later(document: Document, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Generation blocks of the messages that may be learned."""
    assert document.messages is not None
    turns = [n for n, message in enumerate(document.messages) if message["role"] == "assistant"]
    if len(turns) != len(spans):
        raise DataError(
            "chat template",
            found=f"{len(spans)} generation blocks for {len(turns)} messages of the assistant",
            expected="one for each, to tell an answer from the turns before it",
        )
    return [span for turn, span in zip(turns, spans) if turn >= document.learn_from]


def _added(
    document: Document, tokenizer: HuggingFaceTokenizer, template: str, whole: str
) -> list[tuple[int, int]]:
    """What each of the assistant's messages adds."""
    messages = document.messages or ()
    spans: list[tuple[int, int]] = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant" or number < document.learn_from:
            continue
        # A message of the assistant may follow another one, or open the conversation.
        opened = _render(template, messages[:number], True, tokenizer)
        closed = _render(template, messages[: number + 1], False, tokenizer)
        if not (whole.startswith(closed) and closed.startswith(opened)):
            raise DataError(
                f"chat template on message {number}",
                found="a text that later messages change",
                expected="one that only grows, or generation blocks",
                fix="put {% generation %} around what the assistant says in the template",
            )
        spans.append((len(opened), _without_separator(closed, tokenizer)))
    return spans


def _render(template: str, messages: tuple, opening: bool, tokenizer: HuggingFaceTokenizer) -> str:
    return chat.render(template, messages, None, opening, **tokenizer.special_tokens)


def _without_separator(text: str, tokenizer: HuggingFaceTokenizer) -> int:
    """Where a turn ends: white space after the special token that closes it is never generated."""
    bare = text.rstrip()
    special = tokenizer.backend.get_added_tokens_decoder().values()
    closes = any(bare.endswith(token.content) for token in special if token.special)
    return len(bare) if closes else len(text)
