"""Rows of token ids on which a quantisation is calibrated."""

import logging
from pathlib import Path

import numpy as np
from jaxtyping import Int

from ziggurat.core.errors import DataError
from ziggurat.core.protocols import Tokenizer
from ziggurat.data.sources import JsonLines, Parquet, Source, TextFiles, read
from ziggurat.data.vocabulary import check_ids
from ziggurat.quantize.rounding import Calibration

_log = logging.getLogger(__name__)
_READ = 8
"""Rows are drawn from a beginning of the text that has this many times the tokens wanted."""


def source_of(path: str) -> Source:
    """The data source that a path means: by the names of its files Parquet, JSON lines or text.
    Files of a directory that are no UTF-8 text are left out.

    >>> source_of("notes.jsonl.gz").kind, source_of("notes.txt").kind
    ('jsonl', 'text')
    """
    here = Path(path)
    names = [here.name] if not here.is_dir() else [file.name for file in here.rglob("*")]
    if any(".jsonl" in name for name in names):
        return JsonLines(path=path)
    if any(name.endswith(".parquet") for name in names):
        return Parquet(path=path)
    return TextFiles(path=path, on_error="skip" if here.is_dir() else "raise")


def calibration_rows(
    calibration: Calibration, tokenizer: Tokenizer, vocab_size: int, context: int
) -> Int[np.ndarray, "n t"]:
    """Rows of equal length, drawn without repetition; equal seeds draw equal rows.

    Documents follow one another with the end-of-text token between them, and are cut anywhere.

    Args:
        calibration: path, tokens, length and seed.
        tokenizer: the model's.
        vocab_size: rows of the model's embedding.
        context: the model's longest sequence, to which rows are shortened.

    Raises:
        DataError: the text cannot be read, is shorter than one row, or has a token beyond the
            vocabulary.
    """
    length = min(calibration.length, context)
    wanted = -(-calibration.tokens // length)
    ids: list[int] = []
    for document in read([source_of(calibration.path)]):
        # a token is seldom longer than 16 characters
        rest = _READ * wanted * length - len(ids)
        ids += tokenizer.encode(document.text[: 16 * rest])
        ids += tokenizer.eos_ids[:1]
        if len(ids) >= _READ * wanted * length:
            break
    count = len(ids) // length
    if count == 0:
        raise DataError(
            f"calibration text {calibration.path}",
            found=f"{len(ids)} tokens",
            expected=f"at least {length}, one row",
            fix="give more text, or fewer tokens a row",
        )
    if count < wanted:
        _log.warning("calibration text has %d tokens of %d wanted", count * length, wanted * length)
    drawn = np.sort(np.random.default_rng(calibration.seed).permutation(count)[:wanted])
    rows = np.asarray(ids[: count * length], np.int32).reshape(count, length)[drawn]
    check_ids(rows, vocab_size, "calibration text")
    return rows
