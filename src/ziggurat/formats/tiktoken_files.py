"""Byte-level BPE by ranks: tiktoken's files and Mistral's ``tekken.json``.

A tiktoken file has a line for each token, its bytes in base64 and its rank, which is its id; the
pattern that cuts text and the special tokens stand in each model's code. ``tekken.json`` holds all.
"""

import base64
import binascii
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ziggurat.core.errors import CheckpointError
from ziggurat.formats import tokenizer_document as parts
from ziggurat.formats.tokenizer_document import BYTE_CHARACTERS


@dataclasses.dataclass(frozen=True)
class RankedTokens:
    """A byte-level vocabulary in the order in which its tokens merge."""

    tokens: tuple[bytes, ...]
    """Best first; a token's id is its place and ``first_id``."""
    first_id: int = 0
    pattern: str = ""
    """Regular expression whose matches are the words; empty if the file has none."""
    special: tuple[str, ...] = ()
    """Special tokens from id 0 on; empty if the file names none."""


def is_tiktoken(path: Path) -> bool:
    """Whether a file's first line is one of tiktoken's: base64, a space and a number."""
    with open(path, "rb") as file:
        words = file.readline(4096).split()
    try:
        return len(words) == 2 and bool(
            base64.b64decode(words[0], validate=True) and words[1].isdigit()
        )
    except (ValueError, binascii.Error):
        return False


def read_tiktoken(path: Path) -> RankedTokens:
    """Read a tiktoken file.

    Raises:
        CheckpointError: a line is no token, or ranks are no count from 0.
    """
    ranks: dict[int, bytes] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[int(rank)] = base64.b64decode(token, validate=True)
        except (ValueError, binascii.Error):
            raise CheckpointError(
                f"tiktoken file {path}, line {number}",
                found=repr(line[:40]),
                expected="a token in base64, a space and its rank",
                fix="copy the file again",
            ) from None
    return _whole(path, RankedTokens(tuple(ranks.get(n, b"") for n in range(len(ranks)))))


def read_tekken(path: Path) -> RankedTokens:
    """Read Mistral's ``tekken.json``; special tokens come first and fillers ``<SPECIAL_n>`` behind
    those with a name.

    Raises:
        CheckpointError: the file is damaged, or of the first form, which names no special tokens.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        settings, entries = content["config"], content["vocab"]
        named = {entry["rank"]: entry["token_str"] for entry in content.get("special_tokens") or ()}
        count = settings.get("default_num_special_tokens") or len(named)
        size = settings.get("default_vocab_size") or count + len(entries)
        tokens = [base64.b64decode(entry["token_bytes"]) for entry in entries[: size - count]]
        pattern = settings["pattern"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"tokenizer {path}",
            found=f"{type(error).__name__}: {error}",
            expected="a tekken.json with config and vocab",
            fix="copy the file again",
        ) from None
    if not named or max(named) >= count:
        raise CheckpointError(
            f"tokenizer {path}: special_tokens",
            found=f"{len(named)} tokens",
            expected=f"some, of {count} at most, each with token_str and rank",
            fix="use the model's tokenizer.json",
        )
    special = tuple(named.get(n, f"<SPECIAL_{n}>") for n in range(count))
    return _whole(path, RankedTokens(tuple(tokens), count, pattern, special))


def _whole(path: Path, ranked: RankedTokens) -> RankedTokens:
    """Refuse a vocabulary without all bytes, with gaps or with a token twice."""
    tokens = set(ranked.tokens)
    missing = [byte for byte in range(256) if bytes([byte]) not in tokens]
    if missing or b"" in tokens or len(tokens) != len(ranked.tokens):
        found = f"no token for byte {missing[0]}" if missing else "a gap, or a token twice"
        raise CheckpointError(
            f"tokenizer {path}",
            found=found,
            expected="ranks from 0 on, each of one token, with all 256 bytes",
            fix="copy the file again",
        )
    return ranked


def ranked_document(
    ranked: RankedTokens,
    pattern: str,
    *,
    added: Sequence[Mapping[str, Any]],
    normalizer: Mapping[str, Any] | None = None,
    before: int | None = None,
    after: int | None = None,
) -> dict[str, Any]:
    """JSON document of ``tokenizers`` for a vocabulary of ranks.

    Args:
        ranked: the vocabulary.
        pattern: regular expression whose matches are the words.
        added: entries of ``added_tokens``.
        normalizer: what is done to a text first.
        before: id of the token before a text with special tokens; None for none.
        after: id of the token behind it.
    """
    written = [_written(token) for token in ranked.tokens]
    vocabulary = {token: ranked.first_id + n for n, token in enumerate(written)}
    merges = parts.merges_of((token for token in written if len(token) > 1), vocabulary)
    names = {number: token for token, number in vocabulary.items()}
    names |= {entry["id"]: entry["content"] for entry in added}
    for number in range(max(names)):
        names.setdefault(number, f"<unused id {number}>")
    special = [None if n is None else (names[n], n) for n in (before, after)]
    return parts.document(
        parts.bpe({token: n for n, token in names.items()}, merges, ignore_merges=True),
        added=added,
        normalizer=normalizer,
        pre_tokenizer=parts.split(pattern),
        post_processor=parts.around(*special) or parts.byte_level(),
        decoder=parts.byte_level(),
    )


def _written(token: bytes) -> str:
    return "".join(BYTE_CHARACTERS[byte] for byte in token)
