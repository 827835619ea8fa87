"""Documents to tokens as a store holds them: bos, the text, eos; and which of them are learned."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Integer, UInt8

from ziggurat.core.errors import DataError
from ziggurat.core.protocols import Tokenizer
from ziggurat.data import conversation
from ziggurat.data.sources import Document
from ziggurat.data.sources.records import Damaged

CHUNK_CHARACTERS = 4_000_000
CHUNK_DOCUMENTS = 4096


class Encoded(NamedTuple):
    """Tokens of a document, and the mask of those that are learned."""

    ids: Integer[np.ndarray, "_t"]
    learned: UInt8[np.ndarray, "_t"] | None
    """1 where they are learned; None means everywhere."""
    straddles: bool = False
    """Whether a learned token begins or ends in characters that are not learned."""


class DocumentEncoder:
    """Encoder of documents: renders conversations, tokenises, and marks the tokens that are
    learned.

    A document is encoded as one text, bos before it if the tokenizer itself puts it there, and eos
    after it; a chat template writes its own bos, or means none to be there. Of a document with
    learned ranges, the tokens that overlap one are learned, as in transformers, and eos if the
    token before it is, unless the text has ended there already: a chat template has closed the
    turn, or the last token but for white space is a special one. bos and eos that its text spells
    already are not doubled.

    Args:
        tokenizer: must have eos.

    Raises:
        DataError: it has none.

    >>> from ziggurat.data.tokenizers import byte_level
    >>> encoder = DocumentEncoder(byte_level())
    >>> ((ids, learned),) = encoder.encode([Document("abc", "file", 1, learned=((1, 3),))])
    >>> ids, learned
    (array([ 97,  98,  99, 256], dtype=uint16), array([0, 1, 1, 1], dtype=uint8))
    """

    def __init__(self, tokenizer: Tokenizer):
        if not tokenizer.eos_ids:
            raise DataError(
                "tokenizer",
                found="no eos token",
                expected="one, to end documents",
                fix="set eos_token in tokenizer_config.json",
            )
        self.tokenizer = tokenizer
        self.dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
        self.prefix, self.eos = prefix_of(tokenizer), tokenizer.eos_ids[0]

    def render(self, document: Document) -> Document | None:
        """Render a conversation as text; ``None`` if nothing of it is learned. Other documents stay
        as they are.

        Raises:
            DataError: as :func:`ziggurat.data.conversation.rendered`.
        """
        made = conversation.rendered(document, self.tokenizer)
        if made.learned == ():
            return None
        if made is document:
            return made
        # a template changes the text, not which document it is
        return dataclasses.replace(made, key=document.key or document.text)

    def rendered(self, document: Document) -> Document | Damaged | None:
        """Render like :meth:`render`, but report a conversation that cannot be rendered as a
        damaged record."""
        try:
            return self.render(document)
        except DataError as error:
            found = f"{error.what}: {error.found}"
            return Damaged(document.file, document.record, found, error.expected, "record")

    def encode(
        self, documents: Sequence[Document]
    ) -> list[tuple[Integer[np.ndarray, "_t"], UInt8[np.ndarray, "_t"] | None]]:
        """Tokens of each document, and 1 where they are learned; None means everywhere."""
        return [(made.ids, made.learned) for made in self.encoded(documents)]

    def encoded(self, documents: Sequence[Document]) -> list[Encoded]:
        """Tokens of each document, and what of them is learned."""
        plain = [document.text for document in documents if document.learned is None]
        ids = iter(self._ids(plain))
        marked = iter(self._marked([d for d in documents if d.learned is not None]))
        return [
            Encoded(self._array([*self.prefix, *next(ids), self.eos]), None)
            if document.learned is None
            else next(marked)
            for document in documents
        ]

    def _ids(self, texts: list[str]) -> list[list[int]]:
        batch = getattr(self.tokenizer, "encode_batch", None)
        return batch(texts) if batch is not None else [self.tokenizer.encode(t) for t in texts]

    def _marked(self, documents: list[Document]) -> list[Encoded]:
        if not documents:
            return []
        backend: Any = getattr(self.tokenizer, "backend", None)
        if backend is None:
            raise DataError(
                f"tokenizer {type(self.tokenizer).__name__}",
                found="no offsets of tokens in the text",
                expected="a HuggingFaceTokenizer, to learn a part of a text",
            )
        texts = [document.text for document in documents]
        encodings = backend.encode_batch(texts, add_special_tokens=False)
        return [self._mark(*pair) for pair in zip(documents, encodings, strict=True)]

    def _mark(self, document: Document, encoding: Any) -> Encoded:
        ids, spans = list(encoding.ids), document.learned or ()
        learned = mark(spans, encoding.offsets)
        ended = self._has_ended(document.text, ids, encoding.offsets)
        if self.prefix and not document.templated and ids[:1] != self.prefix:
            ids, learned = [*self.prefix, *ids], [0, *learned]
        if ids[-1:] != [self.eos]:
            last = learned[-1] if learned and not (ended or document.closed) else 0
            ids, learned = [*ids, self.eos], [*learned, last]
        across = straddles(spans, encoding.offsets)
        return Encoded(self._array(ids), np.array(learned, np.uint8), across)

    def _has_ended(self, text: str, ids: list[int], offsets: Sequence[tuple[int, int]]) -> bool:
        """Whether the last token that is not white space is a special one: a turn's end."""
        special = getattr(self.tokenizer, "special_ids", frozenset())
        for number, (start, end) in zip(reversed(ids), reversed(offsets)):
            if number in special or text[start:end].strip():
                return number in special
        return False

    def _array(self, ids: list[int]) -> np.ndarray:
        return np.array(ids, dtype=self.dtype)


def prefix_of(tokenizer: Tokenizer) -> list[int]:
    """The begin-of-sequence id as a list, if the tokenizer itself puts it before a text; else an
    empty list."""
    added = tokenizer.encode("", add_special_tokens=True)
    return added[:1] if added and added[0] == tokenizer.bos_id else []


def mark(learned: Sequence[tuple[int, int]], offsets: Sequence[tuple[int, int]]) -> list[int]:
    """Mask of a character range: 1 from the token of its first character to that of its last.

    >>> mark([(2, 5)], [(0, 2), (2, 3), (3, 6), (6, 7)])
    [0, 1, 1, 0]
    """
    starts, ends = np.array(offsets, np.int64).reshape(-1, 2).T
    flags = np.zeros(len(starts), int)
    for start, end in learned:
        first, last = np.searchsorted(ends, start, "right"), np.searchsorted(starts, end, "left")
        flags[first:last] = 1
    return flags.tolist()


def straddles(learned: Sequence[tuple[int, int]], offsets: Sequence[tuple[int, int]]) -> bool:
    """Whether a token overlaps a border of a character range.

    >>> straddles([(2, 5)], [(0, 2), (2, 3), (3, 5)]), straddles([(2, 5)], [(0, 3), (3, 5)])
    (False, True)
    """
    starts, ends = np.array(offsets, np.int64).reshape(-1, 2).T
    borders = np.array(learned, np.int64).reshape(-1)
    return bool(((starts[:, None] < borders) & (borders < ends[:, None])).any())


def chunks(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Split work into lists small enough for memory and large enough for all cores."""
    chunk: list[Document] = []
    characters = 0
    for document in documents:
        chunk.append(document)
        characters += len(document.text)
        if characters >= CHUNK_CHARACTERS or len(chunk) >= CHUNK_DOCUMENTS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk
