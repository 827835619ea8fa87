"""Packed batches against Grain's first-fit and torch's DataLoader, interleaved in one run.

The same documents (random lengths, mean about 270 tokens, in memory) go through every pipeline;
counted are tokens in rows, padding excluded. Ziggurat makes all five arrays of a batch, in a keyed
order; Grain makes the same, and once only tokens, segments and positions; torch packs end to end
with numpy. What runs in one process is held on one core. Prints tokens/s with its spread and the
ratios, then what it takes to set up a shuffle, and writes both to
``benchmarks/results/data.json`` with the machine's facts::

    python benchmarks/data.py --rounds 5

Without torch its rows are left out, and nothing is written.
"""

import argparse
import contextlib
import importlib.util
import itertools
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import numpy as np

from ziggurat.data import Concat, DataConfig, FirstFit, JsonLines, PackedDataset, build, byte_level
from ziggurat.data.concat import ConcatPlan
from ziggurat.data.order import Permutation

LENGTH, BATCH, DOCUMENTS = 2048, 64, 40_000
RESULT = Path(__file__).parent / "results" / "data.json"

Rows = Iterator[dict[str, np.ndarray]]


def corpus(directory: Path) -> JsonLines:
    """Documents of log-normal length, like those of web text."""
    rng = np.random.default_rng(0)
    lengths = np.maximum(2, rng.lognormal(5.2, 0.9, DOCUMENTS).astype(int))
    text = rng.integers(97, 123, lengths.sum()).astype(np.uint8).tobytes().decode()
    ends = np.cumsum(lengths)
    with open(directory / "documents.jsonl", "w") as file:
        for end, length in zip(ends.tolist(), lengths.tolist(), strict=True):
            file.write(json.dumps({"text": text[end - length : end]}) + "\n")
    return JsonLines(path=str(directory / "documents.jsonl"))


def ziggurat_data(
    source: JsonLines, cache: Path, packing: Concat | FirstFit, workers: int, length: int = LENGTH
) -> PackedDataset:
    """The product's own pipeline."""
    config = DataConfig(
        sources=(source,),
        sequence_length=length,
        batch_size=BATCH,
        packing=packing,
        workers=workers,
        prefetch=4 if workers else 0,
    )
    made = build(config, byte_level(), 0, cache)
    assert isinstance(made, PackedDataset)
    return made


def grain_rows(documents: list[np.ndarray], tokens_only: bool) -> Rows:
    """Grain's first-fit packing in this thread: read threads only slow such small work down."""
    import grain
    from grain.experimental import FirstFitPackIterDataset

    read = grain.ReadOptions(num_threads=0)
    dataset = grain.MapDataset.source(documents).shuffle(seed=0).repeat()

    def features(document: np.ndarray) -> dict[str, np.ndarray]:
        tokens = document[:LENGTH].astype(np.int32)
        if tokens_only:
            return {"tokens": tokens}
        mask = np.ones(len(tokens), np.float32)
        mask[-1] = 0.0
        return {"tokens": tokens, "targets": np.append(tokens[1:], 0), "loss_mask": mask}

    lengths = dict.fromkeys(features(documents[0]), LENGTH)
    packed = FirstFitPackIterDataset(
        dataset.map(features).to_iter_dataset(read), length_struct=lengths, num_packing_bins=64
    )
    for batch in packed.batch(BATCH):
        yield {"segment_ids": batch["tokens_segment_ids"]}


def torch_rows(documents: list[np.ndarray], workers: int) -> Rows:
    """torch's DataLoader over a dataset that fills rows end to end with numpy."""
    import torch

    class Packed(torch.utils.data.IterableDataset):
        def __iter__(self) -> Rows:
            info = torch.utils.data.get_worker_info()
            rng = np.random.default_rng(0 if info is None else info.id)
            waiting, held = [], 0
            while True:
                for number in rng.permutation(len(documents)).tolist():
                    waiting.append(documents[number])
                    held += len(documents[number])
                    if held > BATCH * LENGTH:
                        yield numpy_batch(waiting)
                        waiting, held = [], 0

    loader = torch.utils.data.DataLoader(Packed(), batch_size=None, num_workers=workers)
    for batch in loader:
        yield {name: values.numpy() for name, values in batch.items()}


def numpy_batch(documents: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Documents end to end; what does not fit is dropped."""
    size, shape = BATCH * LENGTH, (BATCH, LENGTH)
    lengths = np.array([len(document) for document in documents])
    tokens = np.concatenate(documents).astype(np.int32)
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    mask = np.ones(len(tokens), np.float32)
    mask[np.cumsum(lengths) - 1] = 0.0
    made = {
        "tokens": tokens[:size],
        "targets": tokens[1 : size + 1],
        "segment_ids": np.repeat(np.arange(1, len(lengths) + 1, dtype=np.int32), lengths)[:size],
        "positions": (np.arange(len(tokens)) - starts).astype(np.int32)[:size],
        "loss_mask": mask[:size],
    }
    return {name: values.reshape(shape) for name, values in made.items()}


@contextlib.contextmanager
def one_core(wanted: bool) -> Iterator[None]:
    """Hold this process, and threads that it starts, on one core."""
    before = os.sched_getaffinity(0)
    if wanted:
        os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def tokens_per_s(rows: Callable[[], Rows], alone: bool, seconds: float) -> float:
    """Tokens in rows made in a second, once processes and buffers are there."""
    with one_core(alone):
        batches = rows()
        warm = 2 if alone else 16
        for _ in itertools.islice(batches, warm):
            pass
        tokens, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            tokens += int(np.count_nonzero(next(batches)["segment_ids"]))
        rate = tokens / (time.perf_counter() - start)
        close = getattr(batches, "close", None)
        if close is not None:
            close()
    return rate


def contenders(directory: Path) -> dict[str, tuple[Callable[[], Rows], bool]]:
    """What is measured, and whether it runs on one core."""
    source = corpus(directory)
    made: dict[str, tuple[Callable[[], Rows], bool]] = {}
    for name, packing in (("concat", Concat()), ("first fit", FirstFit())):
        for workers in (0, 1, 2):
            data = ziggurat_data(source, directory, packing, workers)
            label = f"ziggurat {name}" + (f", {workers} workers" if workers else "")
            made[label] = (lambda data=data: data.iterate(0)), workers == 0
        short = ziggurat_data(source, directory, packing, 0, 256)
        made[f"ziggurat {name}, length 256"] = (lambda data=short: data.iterate(0)), True
    store = ziggurat_data(source, directory, Concat(), 0).components[0].store
    documents = [store.document(number).copy() for number in range(len(store))]
    made["grain first fit"] = (lambda: grain_rows(documents, False)), True
    made["grain first fit, tokens only"] = (lambda: grain_rows(documents, True)), True
    if importlib.util.find_spec("torch") is None:
        print("torch is not installed: its rows are left out")
        return made
    for workers in (0, 1, 2):
        label = "torch numpy" + (f", {workers} workers" if workers else "")
        made[label] = (lambda workers=workers: torch_rows(documents, workers)), workers == 0
    return made


def setup_times(documents: int) -> dict[str, float]:
    """Seconds until the first rows of a shuffled epoch are known."""
    places, times = np.arange(1024), {}
    for name, count in (("permutation_1e12_s", 10**12), ("permutation_1e8_s", 10**8)):
        start = time.perf_counter()
        Permutation(count, seed=0)(places)
        times[name] = time.perf_counter() - start
    lengths = np.random.default_rng(0).integers(2, 500, documents, dtype=np.uint16)
    start = time.perf_counter()
    ConcatPlan(lengths, LENGTH, 0, True).pieces(0, 0, BATCH)
    times[f"concat_plan_{documents:.0e}_documents_s"] = time.perf_counter() - start
    start = time.perf_counter()
    np.random.default_rng(0).permutation(documents)
    times[f"numpy_permutation_{documents:.0e}_s"] = time.perf_counter() - start
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--documents", type=int, default=10**8, help="shuffled in the setup")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as directory:
        measured = contenders(Path(directory))
        rates: dict[str, list[float]] = {name: [] for name in measured}
        for _ in range(options.rounds):
            for name, (rows, alone) in measured.items():
                rates[name].append(tokens_per_s(rows, alone, options.seconds))
    result: dict = {"rounds": options.rounds, "tokens_per_s": {}, "ratio": {}}
    for name, values in rates.items():
        result["tokens_per_s"][name] = spread(values)
        print(f"{name:<32} {statistics.median(values) / 1e6:8.2f} M tokens/s")
    peers = [name for name in rates if not name.startswith("ziggurat")]
    for own, peer in itertools.product(("ziggurat concat", "ziggurat first fit"), peers):
        ratios = [a / b for a, b in zip(rates[own], rates[peer], strict=True)]
        result["ratio"][f"{own} / {peer}"] = spread(ratios)
        low, high = min(ratios), max(ratios)
        print(f"{own} / {peer}: {statistics.median(ratios):.1f} ({low:.1f} to {high:.1f})")
    result["setup"] = setup_times(options.documents)
    for name, seconds in result["setup"].items():
        print(f"{name:<40} {seconds:10.6f}")
    result["machine"] = facts(load)
    if importlib.util.find_spec("torch") is not None:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def facts(load: float) -> dict[str, object]:
    """What the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "")
    return {
        "cpu": model or platform.processor(),
        "cores": os.cpu_count(),
        "load_average_before": load,
        "numpy": np.__version__,
        "grain": metadata.version("grain"),
        "torch": metadata.version("torch") if importlib.util.find_spec("torch") else None,
        "batch_rows": BATCH,
        "row_tokens": LENGTH,
        "date": time.strftime("%Y-%m-%d"),
    }


if __name__ == "__main__":
    main()
