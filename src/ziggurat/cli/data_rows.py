"""``ziggurat data sample|decode``: what stands in a batch, as text and token by token."""

import itertools
import sys
from collections.abc import Sequence
from json import dumps
from pathlib import Path

import numpy as np
from rich.table import Table
from rich.text import Text

from ziggurat.cli import console, data_run
from ziggurat.core.errors import ConfigError, DataError
from ziggurat.core.json_types import JsonObject
from ziggurat.core.protocols import Batch
from ziggurat.data import DocumentSpan, HuggingFaceTokenizer, StreamDecoder
from ziggurat.data.opening import Dataset


def sample(run: Path, /, step: int = 0, rows: int = 4, overrides: tuple[str, ...] = ()) -> int:
    """Show rows of a batch as text: documents, where they came from, and what is learned.

    Text that the loss counts is underlined (where output is no terminal: what it does not count
    stands between ⟦ and ⟧).

    Args:
        run: run file, or a run's directory.
        step: whose batch.
        rows: how many rows of it, from the first.
    """
    source = data_run.load(run, overrides)
    tokenizer = data_run.tokenizer_of(source)
    dataset = data_run.open_data(source, tokenizer)
    data_run.warn_if_changed(source, dataset)
    part = _rows(dataset, 0, rows)
    batch, held = dataset.batch(step, part), dataset.documents(step, part)
    out = console.output()
    for number, pieces in enumerate(held):
        row = {name: values[number] for name, values in batch.items()}
        filled = int((row["segment_ids"] > 0).sum())
        title = (
            f"step {step}, row {number}: {len(pieces)} pieces of documents, {filled} tokens, "
            f"{dataset.sequence_length - filled} padding, {int(row['loss_mask'].sum())} learned"
        )
        out.rule(title, align="left", style="bold")
        for segment, piece in enumerate(pieces, 1):
            out.print(Text(f"--- {_describe(piece)}", style="cyan"), soft_wrap=True)
            out.print(_text_of(row, segment, tokenizer, out.is_terminal), soft_wrap=True)
    return 0


def decode(
    run: Path,
    /,
    step: int = 0,
    row: int = 0,
    ids: str | None = None,
    json: bool = False,
    overrides: tuple[str, ...] = (),
) -> int:
    """Show a row of a batch token by token, or what some ids mean.

    Args:
        run: run file, or a run's directory.
        step: whose batch.
        row: which row of it.
        ids: decode these instead, e.g. 15,2,7.
        json: print JSON.
    """
    source = data_run.load(run, overrides)
    tokenizer = data_run.tokenizer_of(source)
    if ids is not None:
        tokens = _explain_ids(_parse_ids(ids, tokenizer), tokenizer)
        whole: JsonObject = {"text": tokenizer.decode([t["id"] for t in tokens])}
    else:
        dataset = data_run.open_data(source, tokenizer)
        data_run.warn_if_changed(source, dataset)
        part = _rows(dataset, row, row + 1)
        batch = {name: values[0] for name, values in dataset.batch(step, part).items()}
        tokens, whole = _explain_row(batch, tokenizer), {"step": step, "row": row}
    if json:
        sys.stdout.write(dumps({**whole, "tokens": tokens}) + "\n")
        return 0
    table = Table(*(tokens[0] if tokens else ("id",)), box=None, pad_edge=False)
    for token in tokens:
        cells = (repr(v) if key == "text" else str(v) for key, v in token.items())
        table.add_row(*(Text(cell) for cell in cells))
    console.output().print(table)
    return 0


def _rows(dataset: Dataset, first: int, stop: int) -> slice:
    if not 0 <= first < dataset.batch_size:
        raise DataError(
            "row", found=first, expected=f"0 to {dataset.batch_size - 1}, the rows of a batch"
        )
    if stop <= first:
        raise DataError("rows", found=stop - first, expected="at least 1")
    return slice(first, min(stop, dataset.batch_size))


def _describe(piece: DocumentSpan) -> str:
    last = piece.start + piece.length
    return f"{piece.file}:{piece.record} tokens {piece.start} to {last}"


def _learned(row: Batch) -> np.ndarray:
    """Which tokens of a row are the target of the one before them, and count."""
    same = row["segment_ids"][1:] == row["segment_ids"][:-1]
    return np.concatenate([[False], same & (row["loss_mask"][:-1] > 0)])


def _text_of(row: Batch, segment: int, tokenizer: HuggingFaceTokenizer, styled: bool) -> Text:
    """The text of one piece, its special tokens too, in runs of learned and other tokens."""
    places = np.flatnonzero(row["segment_ids"] == segment)
    tokens = zip(_learned(row)[places].tolist(), row["tokens"][places].tolist(), strict=True)
    text, decoder = Text(), StreamDecoder(tokenizer, skip_special_tokens=False)
    for counts, run in itertools.groupby(tokens, key=lambda pair: pair[0]):
        said = _visible("".join(decoder.push(token) for _, token in run))
        if styled:
            text.append(said, "underline green" if counts else "dim")
        else:
            text.append(said if counts else f"⟦{said}⟧")
    return text.append(_visible(decoder.finish()))


def _visible(text: str) -> str:
    """``text`` without what would move a terminal's cursor or change its colours."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)


def _explain_ids(ids: Sequence[int], tokenizer: HuggingFaceTokenizer) -> list[JsonObject]:
    decoder = StreamDecoder(tokenizer, skip_special_tokens=False)
    return [
        {"id": token, "token": tokenizer.backend.id_to_token(token), "text": decoder.push(token)}
        for token in ids
    ]


def _explain_row(row: Batch, tokenizer: HuggingFaceTokenizer) -> list[JsonObject]:
    explained: list[JsonObject] = []
    for segment in range(1, int(row["segment_ids"].max()) + 1):
        places = np.flatnonzero(row["segment_ids"] == segment)
        for place, entry in zip(
            places.tolist(), _explain_ids(row["tokens"][places].tolist(), tokenizer), strict=True
        ):
            explained.append(
                {"place": place, "document": segment, "position": int(row["positions"][place])}
                | entry
                | {"target": int(row["targets"][place]), "loss": float(row["loss_mask"][place])}
            )
    return explained


def _parse_ids(ids: str, tokenizer: HuggingFaceTokenizer) -> list[int]:
    parsed = [int(part) for part in ids.split(",") if part.strip().isdigit()]
    if len(parsed) != ids.count(",") + 1:
        raise ConfigError("--ids", found=repr(ids), expected="numbers with commas, e.g. 15,2,7")
    unknown = [token for token in parsed if tokenizer.backend.id_to_token(token) is None]
    if unknown:
        raise DataError(
            "--ids",
            found=unknown[0],
            expected=f"ids of the tokenizer, below {tokenizer.vocab_size}",
        )
    return parsed
