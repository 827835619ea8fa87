"""SentencePiece models (``tokenizer.model``): the protocol buffer as its pieces and settings.

Schema: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto, whose
field numbers and defaults are below.
"""

import dataclasses
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ziggurat.core.errors import CheckpointError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Types of pieces, in this format and in GGUF alike."""
KINDS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
"""Algorithms by their number in ``TrainerSpec.model_type``."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclasses.dataclass(frozen=True)
class SentencePieceModel:
    """A SentencePiece model: pieces with scores and types, and how text becomes pieces."""

    kind: str
    """``bpe`` or ``unigram``."""
    pieces: tuple[str, ...]
    scores: tuple[float, ...]
    types: tuple[int, ...]
    """One of NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE for each piece."""
    unknown_id: int
    bos_id: int | None
    eos_id: int | None
    padding_id: int | None
    byte_fallback: bool
    """Whether a character that no piece has becomes its UTF-8 bytes instead of ``unknown_id``."""
    add_dummy_prefix: bool
    """Whether a text starts with a space of its own."""
    remove_extra_whitespaces: bool
    """Whether spaces at both ends go and those between words become one."""
    charsmap: bytes
    """Precompiled rules of Unicode normalization; empty for none."""


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Read a SentencePiece model file.

    Raises:
        CheckpointError: the file is no such model, is damaged, or asks for what is not implemented
            (the algorithms ``word`` and ``char``, spaces behind words, pieces that are switched
            off, rules of denormalization).
    """
    try:
        whole = _message(path.read_bytes())
        pieces = [_message(raw) for raw in whole.get(1, [])]
        trainer, normalizer = (_message(whole.get(n, [b""])[-1]) for n in (2, 3))
        denormalizer = _message(whole.get(5, [b""])[-1])
        texts = tuple(_last(piece, 1, b"").decode() for piece in pieces)
        if not texts or not all(texts) or not whole.keys() >= {2, 3}:
            raise ValueError("no pieces, an empty one, or no settings behind them")
        scores = tuple(struct.unpack("<f", _last(piece, 2, bytes(4)))[0] for piece in pieces)
    except (ValueError, struct.error, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"SentencePiece model {path}",
            found=f"a damaged file, or another kind ({error})",
            expected="a model as sentencepiece writes it",
            fix="copy the file again",
        ) from None
    kind = KINDS.get(_last(trainer, 3, 1), "unknown")
    types = tuple(_last(piece, 3, NORMAL) for piece in pieces)
    _check(path, kind, types, trainer, normalizer, denormalizer)

    def special(number: int, default: int) -> int | None:
        index = _last(trainer, number, default)
        index = index - 2**64 if index >= 2**63 else index
        return index if 0 <= index < len(texts) else None

    unknown = next((n for n, one in enumerate(types) if one == UNKNOWN), None)
    if unknown is None:
        raise CheckpointError(f"SentencePiece model {path}", found="no unknown piece", expected="1")
    return SentencePieceModel(
        kind=kind,
        pieces=texts,
        scores=scores,
        types=types,
        unknown_id=unknown,
        bos_id=special(41, 1),
        eos_id=special(42, 2),
        padding_id=special(43, -1),
        byte_fallback=bool(_last(trainer, 35, 0)),
        add_dummy_prefix=bool(_last(normalizer, 3, 1)),
        remove_extra_whitespaces=bool(_last(normalizer, 4, 1)),
        charsmap=_last(normalizer, 2, b""),
    )


def _check(
    path: Path,
    kind: str,
    types: tuple[int, ...],
    trainer: dict[int, list[Any]],
    normalizer: dict[int, list[Any]],
    denormalizer: dict[int, list[Any]],
) -> None:
    """Refuse what the ``tokenizers`` library cannot do."""
    refusals = {
        f"model_type {kind}": kind not in ("bpe", "unigram"),
        "treat_whitespace_as_suffix true": bool(_last(trainer, 24, 0)),
        "escape_whitespaces false": not _last(normalizer, 5, 1),
        "rules of denormalization": bool(_last(denormalizer, 2, b"")),
        "pieces of type UNUSED": UNUSED in types,
    }
    for found, refused in refusals.items():
        if refused:
            raise CheckpointError(
                f"SentencePiece model {path}",
                found=found,
                expected="a bpe or unigram model of common settings",
                fix="use the model's tokenizer.json",
            )


def _last(message: dict[int, list[Any]], number: int, default: Any) -> Any:
    """A field's value; of several the last counts, as protocol buffers have it."""
    values = message.get(number)
    return values[-1] if values else default


def _message(content: bytes) -> dict[int, list[Any]]:
    """Fields of a message by number: integers, or bytes."""
    if not isinstance(content, bytes):
        raise ValueError("a number where a message belongs")
    fields: dict[int, list[Any]] = {}
    for number, value in _fields(content):
        fields.setdefault(number, []).append(value)
    return fields


def _fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(content, at)
            yield number, value
            continue
        if kind == _BYTES:
            size, at = _varint(content, at)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {kind}")
        if not number or at + size > len(content):
            raise ValueError("a field ends beyond the end")
        yield number, content[at : at + size]
        at += size


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = 0
    for count in range(10):
        if at + count >= len(content):
            raise ValueError("a number ends beyond the end")
        byte = content[at + count]
        value |= (byte & 127) << (7 * count)
        if byte < 128:
            return value, at + count + 1
    raise ValueError("a number of more than 64 bits")
