"""Parts of a ``tokenizers`` JSON document that several tokenizer formats share."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

SPACE = "▁"
"""Character that stands for a space in SentencePiece's pieces."""


def _byte_characters() -> str:
    """The character that stands for each byte in a byte-level vocabulary (GPT-2's table)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = iter(range(256, 512))
    return "".join(chr(byte if byte in shown else next(hidden)) for byte in range(256))


BYTE_CHARACTERS = _byte_characters()
"""The character of each byte in a byte-level vocabulary."""


def byte_level(use_regex: bool = False) -> dict[str, Any]:
    """Byte-level pre-tokenizer, decoder or post-processor; with GPT-2's pattern if asked."""
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def split(*patterns: str) -> dict[str, Any]:
    """Pre-tokenizer that cuts text by patterns, one after another, and then goes to bytes."""
    rules = [
        {"type": "Split", "pattern": {"Regex": one}, "behavior": "Isolated", "invert": False}
        for one in patterns
    ]
    return {"type": "Sequence", "pretokenizers": [*rules, byte_level()]}


def bpe(
    vocabulary: Mapping[str, int], merges: Iterable[Sequence[str]], **settings: Any
) -> dict[str, Any]:
    """BPE model; ``settings`` are fields other than their defaults, such as ``byte_fallback``."""
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        **settings,
        "vocab": dict(vocabulary),
        "merges": [list(pair) for pair in merges],
    }


def merges_of(ordered: Iterable[str], vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """BPE merges of a vocabulary that has ranks or scores of pieces instead.

    SentencePiece and tiktoken join any two neighbours whose concatenation is a piece, the best one
    first: each split of a piece into two others is a merge of that piece's rank.

    Args:
        ordered: pieces that joining may give, best first.
        vocabulary: all pieces that may be joined, with their ids.

    >>> merges_of(["ab", "abc"], {"a": 0, "b": 1, "c": 2, "bc": 3, "ab": 4, "abc": 5})
    [('a', 'b'), ('a', 'bc'), ('ab', 'c')]
    """
    merges: list[tuple[str, str]] = []
    for piece in ordered:
        cuts = ((piece[:at], piece[at:]) for at in range(1, len(piece)))
        known = [pair for pair in cuts if pair[0] in vocabulary and pair[1] in vocabulary]
        merges += sorted(known, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    return merges


def added_token(index: int, token: str, special: bool, **flags: bool) -> dict[str, Any]:
    """Entry of ``added_tokens``; ``flags`` such as ``lstrip`` are false unless given."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": index, "content": token, **plain, **flags, "special": special}


def around(before: tuple[str, int] | None, after: tuple[str, int] | None) -> dict[str, Any] | None:
    """Post-processor that puts special tokens before and after a text; None for neither."""
    if before is None and after is None:
        return None

    def template(*sequences: str) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = []
        for type_id, sequence in enumerate(sequences):
            if before is not None:
                parts.append({"SpecialToken": {"id": before[0], "type_id": type_id}})
            parts.append({"Sequence": {"id": sequence, "type_id": type_id}})
            if after is not None:
                parts.append({"SpecialToken": {"id": after[0], "type_id": type_id}})
        return parts

    return {
        "type": "TemplateProcessing",
        "single": template("A"),
        "pair": template("A", "B"),
        "special_tokens": {
            token: {"id": token, "ids": [index], "tokens": [token]}
            for token, index in (one for one in (before, after) if one is not None)
        },
    }


def document(
    model: Mapping[str, Any],
    *,
    added: Iterable[Mapping[str, Any]],
    normalizer: Mapping[str, Any] | None,
    pre_tokenizer: Mapping[str, Any] | None,
    post_processor: Mapping[str, Any] | None,
    decoder: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """A whole document, whose JSON ``tokenizers.Tokenizer.from_str`` reads."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": sorted(added, key=lambda one: one["id"]),
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": post_processor,
        "decoder": decoder,
        "model": model,
    }
