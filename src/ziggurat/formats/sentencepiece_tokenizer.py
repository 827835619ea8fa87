"""A ``tokenizers`` JSON document from a SentencePiece model.

Kudo and Richardson, "SentencePiece: A simple and language independent subword tokenizer and
detokenizer for Neural Text Processing", 2018. A text gets the ids that SentencePiece gives it;
control and user-defined pieces in a text become their ids, as in transformers, and each part
between them is a text of its own.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ziggurat.formats import tokenizer_document as parts
from ziggurat.formats.sentencepiece_model import (
    BYTE,
    CONTROL,
    NORMAL,
    USER_DEFINED,
    SentencePieceModel,
)
from ziggurat.formats.tokenizer_document import SPACE

Prefix = Literal["first", "always", "never"]
"""Which parts of a text get a space in front: the one at the start of the text, each one behind a
special token too, or none."""
_MANY = 2**31
"""Spaces at the start of a decoded text that are taken away, all of them."""


def sentencepiece_document(
    model: SentencePieceModel,
    prefix: Prefix,
    *,
    added: Sequence[Mapping[str, Any]] = (),
    before: int | None = None,
    after: int | None = None,
) -> dict[str, Any]:
    """JSON document of ``tokenizers`` for a SentencePiece model.

    Args:
        model: the model.
        prefix: where a space is put in front.
        added: entries of ``added_tokens`` beside the model's own, or in their place by id.
        before: id of the token before a text with special tokens; None for none.
        after: id of the token behind it.
    """
    entries = {
        index: parts.added_token(index, piece, kind == CONTROL)
        for index, (piece, kind) in enumerate(zip(model.pieces, model.types, strict=True))
        if kind in (CONTROL, USER_DEFINED)
    }
    entries |= {entry["id"]: dict(entry) for entry in added}
    size = max([len(model.pieces), *(index + 1 for index in entries)])
    pieces = [*model.pieces, *(f"<unused id {n}>" for n in range(len(model.pieces), size))]
    pieces = [entries[n]["content"] if n in entries else piece for n, piece in enumerate(pieces)]
    make = _bpe if model.kind == "bpe" else _unigram
    special = [None if n is None else (pieces[n], n) for n in (before, after)]
    return parts.document(
        make(model, pieces),
        added=entries.values(),
        normalizer=_normalizer(model, prefix),
        pre_tokenizer=_pre_tokenizer(model, prefix),
        post_processor=parts.around(*special),
        decoder=_decoder(model, prefix),
    )


def _bpe(model: SentencePieceModel, pieces: list[str]) -> dict[str, Any]:
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    joined = _reachable(model)
    ordered = sorted(joined, key=lambda piece: (-model.scores[joined[piece]], joined[piece]))
    known = joined | _named_bytes(model, vocabulary, "".join(joined))
    return parts.bpe(
        vocabulary,
        parts.merges_of((piece for piece in ordered if len(piece) > 1), known),
        unk_token=pieces[model.unknown_id],
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
    )


def _unigram(model: SentencePieceModel, pieces: list[str]) -> dict[str, Any]:
    scores = [*model.scores, *[0.0] * (len(pieces) - len(model.scores))]
    return {
        "type": "Unigram",
        "unk_id": model.unknown_id,
        "byte_fallback": model.byte_fallback,
        "vocab": [list(pair) for pair in zip(pieces, scores, strict=True)],
    }


def _reachable(model: SentencePieceModel) -> dict[str, int]:
    """Pieces that text may become, which those of bytes and special ones are not."""
    every = zip(model.pieces, model.types, strict=True)
    return {piece: index for index, (piece, kind) in enumerate(every) if kind == NORMAL}


def _named_bytes(
    model: SentencePieceModel, vocabulary: dict[str, int], text: str
) -> dict[str, int]:
    """Call pieces of bytes by their characters in ``vocabulary``, where longer pieces have a
    character that is none itself (a tab in Gemma): merges start from characters with an id."""
    named = {}
    for index, kind in enumerate(model.types):
        piece = model.pieces[index]
        if kind != BYTE or int(piece[3:5], 16) > 127:
            continue
        character = chr(int(piece[3:5], 16))
        if character in text and character not in vocabulary:
            del vocabulary[piece]
            vocabulary[character] = named[character] = index
    return named


def _normalizer(model: SentencePieceModel, prefix: Prefix) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    if model.charsmap:
        charsmap = base64.b64encode(model.charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if model.remove_extra_whitespaces:
        ends = rf"[ {SPACE}]+\z" if prefix != "never" else rf"\A +|[ {SPACE}]+\z"
        steps += [_replace(ends, ""), _replace(" {2,}", " ")]
    else:
        if prefix == "always":
            steps.append({"type": "Prepend", "prepend": SPACE})
        steps.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
    return {"type": "Sequence", "normalizers": steps}


def _replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def _pre_tokenizer(model: SentencePieceModel, prefix: Prefix) -> dict[str, Any] | None:
    """Where words are cut, if no piece goes over their ends, and the space in front of a text.

    ``Metaspace`` puts none where the text starts with a space already. That is right where extra
    spaces go. Where they do not, the normalizer has left none, so one is put always. Only the
    second step gives it the pieces' character, as a text may start with that one too.
    """
    whole_words = model.kind == "unigram" and not any(SPACE in p[1:] for p in _reachable(model))
    steps = []
    if prefix == "first" or (prefix == "always" and model.remove_extra_whitespaces):
        steps.append(_metaspace(" ", prefix, False))
    if steps or whole_words or model.remove_extra_whitespaces:
        steps.append(_metaspace(SPACE, "never", whole_words))
    return {"type": "Sequence", "pretokenizers": steps} if steps else None


def _metaspace(replacement: str, scheme: str, cut: bool) -> dict[str, Any]:
    return {
        "type": "Metaspace",
        "replacement": replacement,
        "prepend_scheme": scheme,
        "split": cut,
    }


def _decoder(model: SentencePieceModel, prefix: Prefix) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix != "never" or model.remove_extra_whitespaces:
        count = _MANY if model.remove_extra_whitespaces else 1
        steps.append({"type": "Strip", "content": " ", "start": count, "stop": 0})
    return {"type": "Sequence", "decoders": steps}
