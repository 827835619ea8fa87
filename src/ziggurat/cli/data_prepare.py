"""``ziggurat data prepare``: tokenizer, token stores and plans, made once and found by training."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

from ziggurat.cli import console, data_run
from ziggurat.core.errors import ConfigError
from ziggurat.data import tokenise
from ziggurat.data.opening import open_split


def prepare(run: Path, /, workers: int | None = None, overrides: tuple[str, ...] = ()) -> int:
    """Tokenise all documents of a run, once; what is there already is used as it is.

    After a kill the same command resumes where it was.

    Args:
        run: run file, or a run's directory.
        workers: processes that read and tokenise; 0 does it in this one; default one a core.
    """
    if workers is not None and workers < 0:
        raise ConfigError("--workers", found=workers, expected="0 or more")
    source = data_run.load(run, overrides)
    data_run.require_stores(source, "prepare")
    config, cache, out = source.run.data, source.cache, console.output()
    processes = _cores() if workers is None else workers
    with _bar() as (say, progress):
        say("tokenizer")
        tokenizer = data_run.tokenizer_of(source)
        stores = {}
        for name, sources in config.components.items():
            say(f"tokens {name}".strip())
            stores[name] = tokenise(sources, tokenizer, cache, progress, processes)
        say("rows")
        dataset = open_split(config, stores, source.run.seed, cache)
        held_out = 0
        if config.eval_fraction:
            held = open_split(config, stores, source.run.seed, cache, "eval")
            held_out = held.documents_per_epoch
    out.print(
        f"tokenizer {tokenizer.digest}: {tokenizer.vocab_size:,} ids", markup=False, soft_wrap=True
    )
    for part in dataset.components:
        meta = part.store.meta
        out.print(
            f"{part.store.path}: {meta['documents']:,} documents, {meta['tokens']:,} tokens, "
            f"content {part.store.content}",
            markup=False,
            soft_wrap=True,
        )
    count = dataset.report["straddling"]
    straddling = f"; {count:,} with a token of both prompt and answer" if count else ""
    out.print(
        f"training: {dataset.documents_per_epoch:,} documents in {dataset.rows_per_epoch:,} rows, "
        f"{dataset.padding:.2%} padding; held out: {held_out:,} documents{straddling}",
        markup=False,
        soft_wrap=True,
    )
    return 0


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def _bar() -> Iterator[tuple[Callable[[str], None], Callable[[int, int], None]]]:
    """A line of progress: what to call with the work that begins, and with what it has done."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TextColumn("{task.fields[documents]:,} documents"),
        TextColumn("{task.fields[tokens]:,} tokens"),
        TextColumn("{task.fields[rate]:,.0f} tokens/s"),
        TimeElapsedColumn(),
    )
    with data_run.progress_bar(*columns) as bar:
        task = bar.add_task("", total=None, documents=0, tokens=0, rate=0.0)
        first: tuple[float, int] | None = None
        """When work was reported first, and the tokens that were done by then."""

        def say(what: str) -> None:
            nonlocal first
            first = None
            bar.update(task, description=what, documents=0, tokens=0, rate=0.0)

        def progress(documents: int, tokens: int) -> None:
            nonlocal first
            first = first or (time.monotonic(), tokens)
            rate = (tokens - first[1]) / max(time.monotonic() - first[0], 1e-3)
            bar.update(task, documents=documents, tokens=tokens, rate=rate)

        yield say, progress
