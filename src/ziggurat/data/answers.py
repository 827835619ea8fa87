"""Batches of whole answers, a record a row: pairs to compare, or answers with a label.

Tokens come from the stores that every other document comes from, one store for each kind of answer,
joined by file and record. Row r of the endless list is record ``order(r)`` of its epoch, so a batch
depends on configuration, seed and step, as in :mod:`ziggurat.data.dataset`.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, Int64, Integer, UInt8

from ziggurat.core.errors import ConfigError, DataError
from ziggurat.core.json_types import JsonMapping, JsonObject
from ziggurat.core.protocols import Batch, Tokenizer
from ziggurat.data import changes, filter, store
from ziggurat.data.ahead import Ahead
from ziggurat.data.config import DataConfig
from ziggurat.data.dataset import DocumentSpan, check_facts, check_rows, digest, order_digest
from ziggurat.data.filter import Split
from ziggurat.data.order import Permutation
from ziggurat.data.packing import Concat, Single
from ziggurat.data.sources import views
from ziggurat.data.sources.nodes import VIEWS
from ziggurat.data.store import TokenStore

Kind = Literal["preference", "labelled"]
ARRAYS = ("tokens", "targets", "segment_ids", "positions", "loss_mask")


@dataclasses.dataclass(frozen=True)
class Answer:
    """Tokens of a prompt and its answer."""

    ids: Integer[np.ndarray, "t"]
    learned: UInt8[np.ndarray, "t"]
    """1 for the tokens of the answer."""

    def after(self, prompt: "Answer") -> "Answer":
        """Join this answer to the prompt of another."""
        first, own = int(prompt.learned.argmax()), int(self.learned.argmax())
        return Answer(
            np.concatenate([prompt.ids[:first], self.ids[own:]]),
            np.concatenate([prompt.learned[:first], self.learned[own:]]),
        )


def padded(answers: Sequence[Answer | None], row_tokens: int) -> Batch:
    """Put one answer in each row, cut after ``row_tokens``; a row of zeros for ``None``.

    >>> rows = padded([Answer(np.array([5, 6, 7]), np.array([0, 1, 1], np.uint8))], 4)
    >>> rows["tokens"].tolist(), rows["targets"].tolist(), rows["loss_mask"].tolist()
    ([[5, 6, 7, 0]], [[6, 7, 0, 0]], [[1.0, 1.0, 0.0, 0.0]])
    """
    shape = (len(answers), row_tokens)
    made = {name: np.zeros(shape, np.int32) for name in ARRAYS[:-1]}
    mask: Float[np.ndarray, "b t"] = np.zeros(shape, np.float32)
    for row, answer in enumerate(answers):
        if answer is None:
            continue
        ids, learned = answer.ids[: row_tokens + 1], answer.learned[: row_tokens + 1]
        inside = min(len(ids), row_tokens)
        made["tokens"][row, :inside] = ids[:inside]
        made["targets"][row, : len(ids) - 1] = ids[1:]
        made["segment_ids"][row, :inside] = 1
        made["positions"][row, :inside] = np.arange(inside)
        mask[row, : len(ids) - 1] = learned[1:]
    return made | {"loss_mask": mask}


class AnswerDataset:
    """Batches of answers as a function of the step.

    Implements :class:`ziggurat.core.protocols.BatchSource`. Every record stands in each epoch
    exactly once. All arrays are ``[b, t]`` but for ``desirable`` and ``margin``.

    * ``preference``: those of a language-model batch twice, ``chosen_tokens``,
      ``rejected_tokens`` and so on; and ``margin`` (float32 ``[b, 1]``), by how much the chosen
      answer should score more, 0 where records say nothing of it.
    * ``labelled``: those of a language-model batch; again as ``other_tokens`` and so on, where the
      answer is that of the next row of the global batch (behind this row's prompt, as the reference
      point of KTO wants it); and ``desirable`` (float32 ``[b, 1]``), 1 for good answers.

    Args:
        config: the run file's ``[data]``.
        stores: of the two kinds of answers, in the order of ``VIEWS``.
        numbers: of each, the documents that the split uses; None for all.
        kind: what records hold.
        seed: the run's seed; keys the order.
        split: which side of the held-out line; ``eval`` is one epoch.

    Raises:
        DataError: no record is left.
    """

    def __init__(
        self,
        config: DataConfig,
        stores: Sequence[TokenStore],
        numbers: Sequence[Int64[np.ndarray, "_"] | None],
        kind: Kind,
        seed: int,
        split: Split = "train",
    ):
        self.config, self.kind, self.seed, self.split = config, kind, seed, split
        self.stores = tuple(stores)
        size = config.sequence_length
        used, self._too_long = zip(
            *(_that_fit(s, n, size) for s, n in zip(stores, numbers)), strict=True
        )
        self._items = _pairs(stores, used) if kind == "preference" else _judged(used)
        self.has_margins = kind == "preference" and _have_margins(stores[0], self._items)
        if not len(self._items):
            raise DataError(
                f"{split} split of {', '.join(source.path for source in config.sources)}",
                found=f"no record of content {kind} that is used ({self._left_out()})",
                expected="at least one",
                fix="raise data.sequence_length, loosen data.filter or add records",
            )

    @property
    def batch_size(self) -> int:
        """Rows of the global batch."""
        return self.config.batch_size

    @property
    def sequence_length(self) -> int:
        """Tokens in a row, of both answers together."""
        return 2 * self.config.sequence_length

    @property
    def vocab_size(self) -> int:
        """Number of ids of the tokenizer."""
        return self.stores[0].meta["vocab_size"]

    @property
    def rows_per_epoch(self) -> int:
        """Number of records, one in each row."""
        return len(self._items)

    @property
    def steps_per_epoch(self) -> int:
        """Steps that hold each record once, rounded up."""
        return -(-self.rows_per_epoch // self.batch_size)

    @property
    def steps(self) -> int | None:
        """Steps until the data ends; ``None`` if it never ends."""
        end = self._end
        return None if end is None else -(-end // self.batch_size)

    @property
    def report(self) -> JsonMapping:
        """Counts: ``records`` used, and by kind of answer those read and those whose prompt leaves
        no room for an answer, and those of which a token is a part of prompt and answer."""
        kinds = VIEWS[self.kind]
        read = {name: len(store) for name, store in zip(kinds, self.stores)}
        return {
            "records": self.rows_per_epoch,
            "read": read,
            "too_long": dict(zip(kinds, self._too_long)),
            "straddling": {
                name: store.meta["report"]["straddling"] for name, store in zip(kinds, self.stores)
            },
        }

    @property
    def _end(self) -> int | None:
        epochs = 1 if self.split == "eval" else self.config.epochs
        return None if epochs is None else epochs * self.rows_per_epoch

    def _left_out(self) -> str:
        return f"{max(self._too_long)} have prompts of {self.config.sequence_length} tokens or more"

    def batch(self, step: int, rows: slice | None = None) -> Batch:
        """Rows ``rows`` (default all) of the global batch of step ``step``; those after the end of
        the data hold nothing.

        Raises:
            DataError: the data ends before ``step``, or ``rows`` is not within the batch.
        """
        first, stop = check_rows(rows, self.batch_size)
        items, size = self._of(step), self.config.sequence_length
        if self.kind == "labelled":
            return self._labelled(items, first, stop)
        batch: Batch = {}
        for side, name in enumerate(VIEWS["preference"]):
            mine = [self._answer(side, item[side]) for item in items[first:stop]]
            filled = padded(mine + [None] * (stop - first - len(mine)), size)
            batch |= {f"{name}_{array}": filled[array] for array in ARRAYS}
        margin = np.zeros((stop - first, 1), np.float32)
        if self.has_margins:
            margins = self.stores[0].margins
            assert margins is not None, "looked at before"
            taken = margins[[item[0] for item in items[first:stop]]]
            margin[: len(taken), 0] = taken
        return batch | {"margin": margin}

    def _labelled(self, items: list[list[int]], first: int, stop: int) -> Batch:
        answers: list[Answer | None] = []
        others: list[Answer | None] = []
        labels = np.zeros((stop - first, 1), np.float32)
        for row in range(first, stop):
            if row >= len(items):
                answers.append(None)
                others.append(None)
                continue
            side, number = items[row]
            own = self._answer(side, number)
            next_ = items[(row + 1) % len(items)]
            answers.append(own)
            # alone in its batch an answer has no other
            others.append(self._answer(*next_).after(own) if len(items) > 1 else None)
            labels[row - first] = side == 0
        batch = padded(answers, self.config.sequence_length)
        other = padded(others, self.config.sequence_length)
        return batch | {f"other_{name}": other[name] for name in ARRAYS} | {"desirable": labels}

    def _answer(self, side: int, number: int) -> Answer:
        store_ = self.stores[side]
        begin, end = store_.offsets[number], store_.offsets[number + 1]
        assert store_.learn is not None, "answers are learned in part"
        return Answer(store_.tokens[begin:end], store_.learn[begin:end])

    def documents(self, step: int, rows: slice | None = None) -> list[list[DocumentSpan]]:
        """For each row of a step's batch, the answers it holds; without the mismatched ones."""
        first, stop = check_rows(rows, self.batch_size)
        held: list[list[DocumentSpan]] = []
        for item in self._of(step)[first:stop]:
            pairs = enumerate(item) if self.kind == "preference" else [item]
            held.append([self._held(side, number) for side, number in pairs])
        return held + [[] for _ in range(stop - first - len(held))]

    def _held(self, side: int, number: int) -> DocumentSpan:
        store_ = self.stores[side]
        length = int(store_.offsets[number + 1] - store_.offsets[number])
        length = min(length, self.config.sequence_length)
        return DocumentSpan(VIEWS[self.kind][side], *store_.identity(number), 0, length)

    def _of(self, step: int) -> list[list[int]]:
        """The items of the global batch of a step; fewer than its rows where the data ends."""
        if step < 0 or (self.steps is not None and step >= self.steps):
            raise DataError(
                f"step {step}",
                found=f"data for {self.steps} steps",
                fix="raise data.epochs, or leave it out to train without end",
            )
        begin, count = step * self.batch_size, self.rows_per_epoch
        end = begin + self.batch_size if self._end is None else self._end
        places = np.arange(begin, min(end, begin + self.batch_size))
        epochs, places = np.divmod(places, count)
        if self.config.shuffle:
            for epoch in np.unique(epochs).tolist():
                mine = epochs == epoch
                places[mine] = Permutation(count, self.seed, epoch, "records")(places[mine])
        return self._items[places].tolist()

    def iterate(self, start: int, rows: slice | None = None) -> Iterator[Batch]:
        """The batches from step ``start`` on, made ahead, until the data ends.

        Raises:
            DataError: as :meth:`batch`.
        """
        check_rows(rows, self.batch_size)
        stop, ahead = self.steps, self.config.prefetch
        if self.config.workers:
            from ziggurat.data import workers

            return workers.batches(
                *(self, rows, start, stop),
                processes=self.config.workers,
                ahead=max(1, ahead),
                patience_s=self.config.worker_patience_s,
            )
        made = self._made(start, stop, rows)
        return Ahead(made, ahead) if ahead else made

    def _made(self, start: int, stop: int | None, rows: slice | None) -> Iterator[Batch]:
        step = start
        while stop is None or step < stop:
            yield self.batch(step, rows)
            step += 1

    def state(self, step: int) -> JsonObject:
        """State that a checkpoint stores so that step ``step`` comes next."""
        epoch, row = divmod(step * self.batch_size, self.rows_per_epoch)
        used = {side.name: side.mark for side in self._used()}
        return {"step": step, "epoch": epoch, "row": row, "used": used} | self._facts()

    def check_state(self, state: JsonMapping) -> int:
        """Compare a stored state with this data; returns its step.

        Raises:
            DataError: the data or a setting that decides batches is another than it was; the text
                names each.
        """
        step = check_facts(state, self._facts())
        changes.check_used(state.get("used"), self._used())
        return step

    def _facts(self) -> JsonObject:
        """All that decides the batches."""
        return {
            "kind": self.kind,
            "split": self.split,
            "seed": self.seed,
            "sequence_length": self.config.sequence_length,
            "batch_size": self.batch_size,
            "order": order_digest(self.config),
        }

    def _used(self) -> list[changes.UsedDocuments]:
        items = hashlib.blake2b(self._items.astype("<i8").tobytes(), digest_size=8).hexdigest()
        return [
            changes.UsedDocuments(
                name, store_, digest([store_.content, items]), self.rows_per_epoch
            )
            for name, store_ in zip(VIEWS[self.kind], self.stores, strict=True)
        ]


def build_answers(
    config: DataConfig,
    tokenizer: Tokenizer,
    seed: int,
    cache: Path,
    kind: Kind,
    split: Split = "train",
) -> AnswerDataset:
    """Tokenise what is not in the cache yet, and open one split of records with answers.

    Args:
        config: the run file's ``[data]``; all its sources have the content ``kind``.
        tokenizer: with eos and a ``digest``.
        seed: the run's seed; keys the order.
        cache: directory of token stores.
        kind: what records hold.
        split: ``train``, or ``eval`` for the records held out, once each.

    Raises:
        ConfigError: a source has another content, or a setting does not go with whole answers.
        DataError: no or damaged data; or no record falls into the split.
    """
    _check(config, kind)
    stores, numbers = [], []
    for side, name in enumerate(VIEWS[kind]):
        sources = [views(source)[side] for source in config.sources]
        tokens = store.tokenise(sources, tokenizer, cache, workers=config.workers)
        stores.append(tokens)
        share = config.eval_fraction
        chosen = filter.choose(tokens, config.filter, share, split, None, cache, name)
        numbers.append(np.zeros(0, np.int64) if chosen is None else chosen.numbers)
    return AnswerDataset(config, stores, numbers, kind, seed, split)


def _check(config: DataConfig, kind: Kind) -> None:
    for number, source in enumerate(config.sources):
        content = getattr(source, "content", "text")
        if content != kind:
            raise ConfigError(
                f"data.sources.{number}.content",
                found=repr(content),
                expected=repr(kind),
                fix=f'give the objective records with content = "{kind}"',
            )
    refused = {
        "packing": not isinstance(config.packing, (Concat, Single)),
        "mixture": config.mixture is not None,
        "dedup": config.dedup is not None,
        "tokenize": config.tokenize != "ahead",
    }
    for key, given in refused.items():
        if given:
            raise ConfigError(
                f"data.{key}",
                found="a value",
                expected=f"nothing for content {kind}, whose answers have rows of their own",
            )


def _that_fit(
    tokens: TokenStore, numbers: Int64[np.ndarray, "n"] | None, row_tokens: int
) -> tuple[Int64[np.ndarray, "m"], int]:
    """Documents whose answer begins within a row, and how many others there are."""
    numbers = np.arange(len(tokens)) if numbers is None else numbers
    if not len(numbers):
        return numbers, 0
    assert tokens.learn is not None, "answers are learned in part"
    learned = np.append(np.flatnonzero(tokens.learn), len(tokens.tokens))
    begins = tokens.offsets[numbers]
    first = learned[np.searchsorted(learned, begins)] - begins
    fit = (first <= row_tokens) & (tokens.offsets[numbers + 1] - begins > 1)
    return numbers[fit], int((~fit).sum())


def _pairs(
    stores: Sequence[TokenStore], used: Sequence[Int64[np.ndarray, "_"]]
) -> Int64[np.ndarray, "records 2"]:
    """Numbers of the chosen and the rejected answer of each record that has both."""
    ours, theirs = used
    where = {stores[1].identity(number): number for number in theirs.tolist()}
    found = [(n, where.get(stores[0].identity(n), -1)) for n in ours.tolist()]
    pairs = np.array(found, np.int64).reshape(-1, 2)
    return pairs[pairs[:, 1] >= 0]


def _have_margins(chosen: TokenStore, items: Int64[np.ndarray, "records 2"]) -> bool:
    """Whether the records say by how much the chosen answer should score more.

    Raises:
        DataError: some do and some do not.
    """
    if chosen.margins is None or not len(items):
        return False
    missing = np.isnan(chosen.margins[items[:, 0]])
    if missing.any() and not missing.all():
        file, record = chosen.identity(int(items[missing.argmax(), 0]))
        raise DataError(
            f"{file} record {record}",
            found=f"no margin, as {int(missing.sum())} of {len(items)} records",
            expected="one in each record, or in none",
        )
    return not missing.all()


def _judged(used: Sequence[Int64[np.ndarray, "_"]]) -> Int64[np.ndarray, "records 2"]:
    """Kind and number of each labelled answer."""
    parts = [np.stack([np.full(len(n), side), n], 1) for side, n in enumerate(used)]
    return np.concatenate(parts).astype(np.int64)
