"""Counts of a run's documents, tokens and rows, and their tables as text."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int64

from ziggurat.cli import data_run
from ziggurat.data import DataConfig, PackedDataset, TokenStore
from ziggurat.data.sources import list_files

PERCENTILES = (5, 25, 50, 75, 95, 99)


@dataclasses.dataclass(frozen=True)
class LengthStatistics:
    """Documents of a source, or of all, by their length in tokens."""

    name: str
    """The source's path, as the run file names it."""
    documents: int
    """All that were read, before filter and duplicates."""
    tokens: int
    """Tokens, the ones that start and end a document included."""
    mean: float
    percentiles: Mapping[str, int]
    """``min``, ``p5`` to ``p99``, ``max``."""
    histogram: Sequence[tuple[int, int, int]]
    """(shortest, longest, documents): bins that double."""


@dataclasses.dataclass(frozen=True)
class ComponentUse:
    """Used part of a component's documents, and its share of the mixture."""

    name: str
    """In the mixture; empty without one."""
    documents: int
    """All that were read."""
    empty: int
    """Records without a single character, left out."""
    skipped: int
    """Damaged records left out."""
    straddling: int
    """Documents with a token that is a part of both the prompt and the answer."""
    faults: Sequence[str]
    """The first damaged records: where they are and what is wrong."""
    held_out: int
    """Documents kept for evaluation."""
    filtered: Mapping[str, int]
    """Training documents that each rule of the filter is against."""
    duplicates: int
    """Training documents left out because they were there before."""
    used: int
    """Documents that training sees."""
    rows: int
    """Rows of one epoch."""
    tokens: int
    """Tokens in them."""
    cut: int
    """Tokens of used documents that packing leaves out."""
    padding: float
    """Share of the places in the rows that hold no token."""
    run_rows: int | None
    """Rows that the whole run takes of it."""
    run_epochs: float | None


@dataclasses.dataclass(frozen=True)
class Stats:
    """Figures of ``ziggurat data stats``, as ``--json`` prints them."""

    run: str
    tokenizer_ids: int
    sources: Sequence[LengthStatistics]
    all: LengthStatistics
    components: Sequence[ComponentUse]
    sequence_length: int
    batch_size: int
    rows_per_epoch: int
    steps_per_epoch: int
    steps: int | None
    """Steps until the data ends."""
    run_steps: int | None
    """Steps that the run trains for."""
    padding: float


def measure(source: data_run.RunSource, dataset: PackedDataset) -> Stats:
    """Count what a run's data holds."""
    config = source.run.data
    sources: list[LengthStatistics] = []
    for part in dataset.components:
        sources += _by_source(config, part.name, part.store)
    lengths = [np.diff(part.store.offsets) for part in dataset.components]
    run_steps = source.steps
    taken = None
    if run_steps is not None:
        last = run_steps if dataset.steps is None else min(run_steps, dataset.steps)
        taken = dataset.state(last)["taken"]
    components = []
    for part in dataset.components:
        report = part.report
        rows = None if taken is None else taken[part.name]["rows"]
        names = {field.name for field in dataclasses.fields(ComponentUse)} & report.keys()
        components.append(
            ComponentUse(
                name=part.name,
                held_out=int(part.store.held_out(config.eval_fraction).sum()),
                run_rows=rows,
                run_epochs=None if rows is None else rows / part.rows,
                **{name: report[name] for name in names},
            )
        )
    return Stats(
        run=source.run.name,
        tokenizer_ids=dataset.vocab_size,
        sources=sources,
        all=describe("all", np.concatenate(lengths)),
        components=components,
        sequence_length=dataset.sequence_length,
        batch_size=dataset.batch_size,
        rows_per_epoch=dataset.rows_per_epoch,
        steps_per_epoch=dataset.steps_per_epoch,
        steps=dataset.steps,
        run_steps=run_steps,
        padding=dataset.padding,
    )


def describe(name: str, lengths: Int64[np.ndarray, "n"]) -> LengthStatistics:
    """Statistics of document lengths.

    >>> found = describe("a", np.array([1, 2, 3, 9]))
    >>> found.tokens, found.percentiles["p50"], found.histogram
    (15, 2, [(1, 1, 1), (2, 3, 2), (4, 7, 0), (8, 15, 1)])
    """
    ordered, count = np.sort(lengths), len(lengths)
    if not count:
        return LengthStatistics(name, 0, 0, 0.0, {}, [])
    ends = {f"p{p}": int(ordered[-(-count * p // 100) - 1]) for p in PERCENTILES}
    powers = np.frexp(ordered.astype(np.float64))[1] - 1
    counts = np.bincount(powers)
    first = int(powers[0])
    return LengthStatistics(
        name,
        documents=count,
        tokens=int(ordered.sum()),
        mean=float(ordered.mean()),
        percentiles={"min": int(ordered[0]), **ends, "max": int(ordered[-1])},
        histogram=[(1 << k, (2 << k) - 1, int(counts[k])) for k in range(first, len(counts))],
    )


def facts(found: Stats) -> list[tuple[str, str]]:
    """Facts beside the tables, as pairs of label and text."""
    lines = [
        ("tokenizer", f"{found.tokenizer_ids:,} ids"),
        ("rows an epoch", f"{found.rows_per_epoch:,} of {found.sequence_length:,} tokens"),
        ("steps an epoch", f"{found.steps_per_epoch:,} of {found.batch_size:,} rows"),
        ("padding", f"{found.padding:.2%}"),
    ]
    straddling = sum(part.straddling for part in found.components)
    if straddling:
        text = f"{straddling:,} documents have a token that is a part of prompt and answer"
        lines.append(("straddling", text))
    if found.steps is not None:
        lines.append(("the data ends", f"after {found.steps:,} steps"))
    if found.run_steps is not None:
        epochs = found.run_steps * found.batch_size / found.rows_per_epoch
        lines.append(("the run", f"{found.run_steps:,} steps, {epochs:.2f} epochs of all rows"))
    return lines


LENGTH_COLUMNS = ("source", "documents", "tokens", "mean", "p5", "p50", "p95", "max")


def length_rows(found: Stats) -> list[tuple[str, ...]]:
    """The table of sources, as text."""
    shown = [*found.sources, found.all] if len(found.sources) > 1 else found.sources
    return [
        (
            *(row.name, f"{row.documents:,}", f"{row.tokens:,}", f"{row.mean:,.1f}"),
            *(f"{row.percentiles.get(end, 0):,}" for end in LENGTH_COLUMNS[4:]),
        )
        for row in shown
    ]


USE_COLUMNS = ("component", "empty", "skipped", "read", "held out", "filtered", "duplicates")
USE_COLUMNS += ("used", "rows", "cut tokens", "padding", "rows of the run", "epochs of the run")


def use_rows(found: Stats) -> list[tuple[str, ...]]:
    """The table of components, as text."""
    return [
        (
            part.name or "all",
            *(f"{n:,}" for n in (part.empty, part.skipped, part.documents, part.held_out)),
            *(f"{n:,}" for n in (sum(part.filtered.values()), part.duplicates, part.used)),
            *(f"{part.rows:,}", f"{part.cut:,}", f"{part.padding:.2%}"),
            "" if part.run_rows is None else f"{part.run_rows:,}",
            "" if part.run_epochs is None else f"{part.run_epochs:.2f}",
        )
        for part in found.components
    ]


def _by_source(config: DataConfig, name: str, store: TokenStore) -> list[LengthStatistics]:
    """The documents of a component, source by source."""
    sources, lengths = config.components[name], np.diff(store.offsets)
    if len(sources) == 1:
        return [describe(sources[0].path, lengths)]
    owners: dict[str, int] = {}
    for number, source in enumerate(sources):
        for file in list_files(source):
            owners.setdefault(file.name, number)
    owner = np.array([owners.get(file, -1) for file in store.meta["files"]], np.int64)[store.files]
    return [describe(s.path, lengths[owner == number]) for number, s in enumerate(sources)]
