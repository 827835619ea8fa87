"""Batches of packed conversations with images, as a function of (configuration, seed, step).

Records are tokenised when the data is opened, for which the headers of images are enough; pixels
are read when a batch is made. A row holds whole records, told apart by segment numbers, and as many
images as its limits allow, so that every batch has arrays of the same shapes.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import xxhash
from pydantic import Discriminator

from ziggurat.core import config
from ziggurat.core.errors import DataError
from ziggurat.core.json_types import JsonMapping, JsonObject
from ziggurat.core.protocols import Batch, Tokenizer
from ziggurat.data.ahead import Ahead
from ziggurat.data.dataset import DocumentSpan, check_facts, check_rows, digest
from ziggurat.data.filter import Split
from ziggurat.data.image_packing import ImageRows
from ziggurat.data.image_records import ImageRecord, ImageRecordReader, PictureInputs
from ziggurat.data.packing import FirstFit, Single
from ziggurat.data.pieces import Pieces, assemble, empty
from ziggurat.data.sources import ReadReport, Source


@config.node
class ImageTextData:
    """Settings of conversations with images to train on, for a model that reads images."""

    kind: Literal["image_text"] = "image_text"
    sources: tuple[Source, ...]
    """Where records come from, read in this order; each with ``content = "image_messages"``."""
    image_root: Path | None = None
    """Directory below which the files of images lie; default that of each source. Images elsewhere
    are refused, and nothing is fetched."""
    sequence_length: int
    """Tokens in a row, those of images included. A record with more is refused, or left out where
    its source says ``on_error = "skip"``."""
    batch_size: int
    """Rows in the global batch, over all hosts."""
    images_per_row: int = 4
    """Most images in a row; a record with more is refused or left out."""
    patches_per_row: int | None = None
    """Most patches in a row, for towers that read images at their own sizes (Qwen-VL); a record
    with more is refused or left out. Default: as many as the tokens of a whole row stand for."""
    packing: Annotated[FirstFit | Single, Discriminator("kind")] = dataclasses.field(
        default_factory=FirstFit
    )
    """How records fill rows; none is cut."""
    shuffle: bool = True
    """A new keyed order of rows in every epoch; else the order of the sources."""
    epochs: int | None = None
    """Passes over the records; without end if not given."""
    eval_fraction: float = 0.0
    """Share of records held out for evaluation, chosen by a hash of text and images' names."""
    prefetch: int = 4
    """Batches made ahead; 0 makes each when it is asked for."""

    def __post_init__(self) -> None:
        config.require(len(self.sources) > 0, "sources", self.sources, "at least one source")
        for source in self.sources:
            content = getattr(source, "content", "text")
            fits = content == "image_messages"
            config.require(fits, "sources.content", content, '"image_messages"')
        least = {"sequence_length": 2, "batch_size": 1, "images_per_row": 1, "prefetch": 0}
        for key, low in (least | {"patches_per_row": 1, "epochs": 1}).items():
            value = getattr(self, key)
            config.require(value is None or value >= low, key, value, f"at least {low}")
        held = self.eval_fraction
        config.require(0.0 <= held < 1.0, "eval_fraction", held, "0 or more and below 1")


class ImageTextDataset:
    """Batches of conversations with images; implements
    :class:`ziggurat.core.protocols.BatchSource`.

    Every record stands in each epoch exactly once, and whole. A batch holds the arrays of a
    language-model batch ``[b, t]``, and what the tower reads, see
    :meth:`ziggurat.data.image_records.PictureInputs.arrays`. Rows behind the end of the data are
    empty, with a loss mask of 0.

    Args:
        data: the run file's ``[data]``.
        records: those of one side of the held-out line; one at least.
        inputs: makes arrays of images.
        seed: the run's seed.
        split: which side; ``eval`` is one epoch.
        report: counts of reading.
    """

    def __init__(
        self,
        data: ImageTextData,
        records: Sequence[ImageRecord],
        inputs: PictureInputs,
        seed: int,
        split: Split = "train",
        report: ReadReport | None = None,
    ):
        self.config, self.inputs, self.seed, self.split = data, inputs, seed, split
        self._records, self._report = records, report or ReadReport()
        self._tokens = np.concatenate([record.ids for record in records])
        self._learned = np.concatenate([record.learned for record in records])
        self._lengths = np.array([len(record.ids) for record in records], np.int64)
        self._begins = np.cumsum(self._lengths) - self._lengths
        window = data.packing.window if isinstance(data.packing, FirstFit) else 1
        needs = np.array([record.needs for record in records], np.int64)
        room = (data.sequence_length, *inputs.room.values())
        shuffle = data.shuffle and split == "train"
        self._rows = ImageRows(needs, room, window, seed, shuffle)

    @property
    def batch_size(self) -> int:
        """Rows of the global batch."""
        return self.config.batch_size

    @property
    def sequence_length(self) -> int:
        """Tokens in a row."""
        return self.config.sequence_length

    @property
    def rows_per_epoch(self) -> int:
        """Rows that hold each record once."""
        return self._rows.count

    @property
    def steps_per_epoch(self) -> int:
        """Steps that hold each record once, rounded up."""
        return -(-self.rows_per_epoch // self.batch_size)

    @property
    def steps(self) -> int | None:
        """Steps until the data ends; ``None`` if it never ends."""
        return None if self._end is None else -(-self._end // self.batch_size)

    @property
    def _end(self) -> int | None:
        epochs = 1 if self.split == "eval" else self.config.epochs
        return None if epochs is None else epochs * self.rows_per_epoch

    @property
    def report(self) -> JsonMapping:
        """Counts of records read and left out, ``images``, ``rows`` of an epoch, and the share of
        ``padding`` in them."""
        counts = {"images": sum(len(record.images) for record in self._records)}
        room = self.rows_per_epoch * self.sequence_length
        padding = 1.0 - len(self._tokens) / room
        counts |= {"used": len(self._records), "rows": self.rows_per_epoch}
        return dataclasses.asdict(self._report) | counts | {"padding": padding}

    def batch(self, step: int, rows: slice | None = None) -> Batch:
        """Rows ``rows`` (default all) of the global batch of step ``step``.

        Raises:
            DataError: the data ends before ``step``, ``rows`` is not within the batch, or an image
                cannot be decoded.
        """
        first, stop = check_rows(rows, self.batch_size)
        numbers = self._numbers(step, first, stop)
        held = [self._placed(row) for row in numbers]
        text = empty(stop - first, self.sequence_length)
        if any(held):
            text = self._text(numbers, held)
        return text | self.inputs.arrays(held)

    def documents(self, step: int, rows: slice | None = None) -> list[list[DocumentSpan]]:
        """For each row of a step's batch, the records it holds, from left to right."""
        numbers = self._numbers(step, *check_rows(rows, self.batch_size))
        return [
            [
                DocumentSpan("", one.file, one.record, 0, len(one.ids))
                for one in (self._records[number] for number in row)
            ]
            for row in numbers
        ]

    def iterate(self, start: int, rows: slice | None = None) -> Iterator[Batch]:
        """The batches from step ``start`` on, made ahead, until the data ends.

        Raises:
            DataError: as :meth:`batch`.
        """
        check_rows(rows, self.batch_size)
        made = self._made(start, rows)
        return Ahead(made, self.config.prefetch) if self.config.prefetch else made

    def state(self, step: int) -> JsonObject:
        """State that a checkpoint stores so that step ``step`` comes next."""
        epoch, row = divmod(step * self.batch_size, self.rows_per_epoch)
        return {"step": step, "epoch": epoch, "row": row} | self._facts()

    def check_state(self, state: JsonMapping) -> int:
        """Compare a stored state with this data; returns its step.

        Raises:
            DataError: the records or a setting that decides batches is another than it was.
        """
        return check_facts(state, self._facts())

    def _facts(self) -> JsonObject:
        plain = config.to_plain(self.config.packing)
        return {
            "split": self.split,
            "seed": self.seed,
            "records": len(self._records),
            "content": self._content,
            "batch_size": self.batch_size,
            "order": digest([plain, self.config.shuffle, self.config.eval_fraction]),
            "images": digest([self.inputs.digest, self.inputs.room]),
        }

    @functools.cached_property
    def _content(self) -> str:
        """Digest of tokens and of the images' names and sizes in bytes."""
        made = xxhash.xxh3_64(self._tokens.tobytes())
        made.update(self._learned.tobytes())
        made.update(self._lengths.tobytes())
        for image in (image for record in self._records for image in record.images):
            made.update(f"{image.path.name} {image.path.stat().st_size}".encode())
        return made.hexdigest()

    def _numbers(self, step: int, first: int, stop: int) -> list[np.ndarray]:
        """Records of rows of a step, none behind the end of the data."""
        if step < 0 or (self.steps is not None and step >= self.steps):
            fix = "raise data.epochs, or leave it out to train without end"
            raise DataError(f"step {step}", found=f"data for {self.steps} steps", fix=fix)
        begin, end = step * self.batch_size + first, step * self.batch_size + stop
        last = end if self._end is None else max(begin, min(end, self._end))
        found = self._rows.records(begin, last)
        return found + [np.zeros(0, np.int64)] * (end - last)

    def _placed(self, numbers: np.ndarray) -> list[tuple[int, ImageRecord]]:
        lengths = self._lengths[numbers]
        places = (np.cumsum(lengths) - lengths).tolist()
        return [(place, self._records[number]) for place, number in zip(places, numbers)]

    def _text(
        self, numbers: Sequence[np.ndarray], held: Sequence[Sequence[tuple[int, ImageRecord]]]
    ) -> Batch:
        document = np.concatenate(numbers)
        row = np.repeat(np.arange(len(numbers)), [len(one) for one in numbers])
        column = np.array([place for one in held for place, _ in one], np.int64)
        zero, lengths = np.zeros(len(document), np.int64), self._lengths[document]
        return assemble(
            Pieces(row, column, document, zero, lengths),
            self._tokens,
            self._begins[document],
            lengths,
            rows=len(numbers),
            row_tokens=self.sequence_length,
            learn=self._learned,
        )

    def _made(self, step: int, rows: slice | None) -> Iterator[Batch]:
        while self.steps is None or step < self.steps:
            yield self.batch(step, rows)
            step += 1


def build_image_text(
    data: ImageTextData,
    tokenizer: Tokenizer,
    inputs: PictureInputs,
    seed: int,
    cache: Path,
    longest: int,
) -> tuple[ImageTextDataset, ImageTextDataset | None]:
    """Training batches of conversations with images, and held-out ones if any are held out.

    Args:
        data: the run file's ``[data]``.
        tokenizer: with a chat template.
        inputs: makes arrays of images.
        seed: the run's seed.
        cache: directory that keeps images which stand in the records.
        longest: most tokens of a record: the model's context.

    Raises:
        DataError: a source has no record, one is damaged or does not fit, or nothing is on one
            side of the held-out line.
    """
    longest = min(longest, data.sequence_length)
    reader = ImageRecordReader(tokenizer, inputs, data.image_root, longest, cache / "images")
    records = list(reader.read(data.sources))
    held = [one.identity / 2**64 < data.eval_fraction for one in records]
    sides: dict[Split, list[ImageRecord]] = {
        "train": [one for one, out in zip(records, held) if not out],
        "eval": [one for one, out in zip(records, held) if out],
    }
    made = {}
    for split, mine in sides.items():
        if split == "eval" and not data.eval_fraction:
            continue
        if not mine:
            found = f"none of {len(records)} with eval_fraction = {data.eval_fraction}"
            raise DataError(f"records for {split}", found=found, expected="at least one")
        made[split] = ImageTextDataset(data, mine, inputs, seed, split, reader.report)
    return made["train"], made.get("eval")
