"""Documents to tokens as a store holds them: bos, the text, eos; and which of them are learned."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Integer, UInt8

from ziggurat.core.errors import DataError
from ziggurat.core.protocols import Tokenizer
from ziggurat.data import conversation
from ziggurat.data.sources import Document

CHUNK_CHARACTERS = 4_000_000
CHUNK_DOCUMENTS = 4096


class Encoder:
    """Turns documents into tokens.

    A document is encoded as one text, bos before it if the tokenizer itself puts it there, and eos
    after it. Of a document with learned ranges, the tokens that overlap one are learned, as in
    transformers, and eos if the token before it is; bos and eos that its text spells already are
    not doubled.

    Args:
        tokenizer: must have eos.

    Raises:
        DataError: it has none.

    >>> from ziggurat.data.tokenizers import byte_level
    >>> encoder = Encoder(byte_level())
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
        """A conversation as text; None if nothing of it is learned. Others stay as they are.

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

    def encode(
        self, documents: Sequence[Document]
    ) -> list[tuple[Integer[np.ndarray, "_t"], UInt8[np.ndarray, "_t"] | None]]:
        """Tokens of each document, and 1 where they are learned; None means everywhere."""
        plain = [document.text for document in documents if document.learned is None]
        ids = iter(self._ids(plain))
        marked = iter(self._marked([d for d in documents if d.learned is not None]))
        return [
            (self._array([*self.prefix, *next(ids), self.eos]), None)
            if document.learned is None
            else next(marked)
            for document in documents
        ]

    def _ids(self, texts: list[str]) -> list[list[int]]:
        batch = getattr(self.tokenizer, "encode_batch", None)
        return batch(texts) if batch is not None else [self.tokenizer.encode(t) for t in texts]

    def _marked(self, documents: list[Document]) -> list[tuple[np.ndarray, np.ndarray]]:
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

    def _mark(self, document: Document, encoding: Any) -> tuple[np.ndarray, np.ndarray]:
        ids, learned = list(encoding.ids), mark(document.learned or (), encoding.offsets)
        if self.prefix and ids[:1] != self.prefix:
            ids, learned = [*self.prefix, *ids], [0, *learned]
        if ids[-1:] != [self.eos]:
            ids, learned = [*ids, self.eos], [*learned, learned[-1] if learned else 0]
        return self._array(ids), np.array(learned, np.uint8)

    def _array(self, ids: list[int]) -> np.ndarray:
        return np.array(ids, dtype=self.dtype)


def prefix_of(tokenizer: Tokenizer) -> list[int]:
    """``[bos]`` if the tokenizer itself puts it before a text."""
    added = tokenizer.encode("", add_special_tokens=True)
    return added[:1] if added and added[0] == tokenizer.bos_id else []


def mark(learned: Sequence[tuple[int, int]], offsets: Sequence[tuple[int, int]]) -> list[int]:
    """1 for each token from the one that holds a range's first character to that of its last.

    >>> mark([(2, 5)], [(0, 2), (2, 3), (3, 6), (6, 7)])
    [0, 1, 1, 0]
    """
    starts, ends = np.array(offsets, np.int64).reshape(-1, 2).T
    flags = np.zeros(len(starts), int)
    for start, end in learned:
        first, last = np.searchsorted(ends, start, "right"), np.searchsorted(starts, end, "left")
        flags[first:last] = 1
    return flags.tolist()


def chunks(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Lists small enough for memory and large enough for all cores."""
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
