"""All trials of ``tests.oracle.config_values`` in several processes, with progress, to be resumed.

A part is one base of one type of model. Its line in the results file counts its trials by verdict
and holds its faults; parts that have a line are not tried again.
"""

import argparse
import collections
import dataclasses
import json
import logging
import multiprocessing
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.oracle import config_parity, config_values

WHOLE = 16
"""One trial in so many runs transformers' model even where it reads nothing that differs."""
ENOUGH = 50
"""After so many faults a part ends."""
PARTS_PER_PROCESS = 8
"""After so many a process is replaced, since programs that JAX compiled stay in its memory."""


@dataclasses.dataclass(frozen=True)
class Part:
    """Trials that start from one config.

    Args:
        model_type: the type of model.
        base: which of its configs.
        only: keys to try; all if empty.
    """

    model_type: str
    base: int
    only: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.model_type}[{self.base}]" + "".join(f" {key}" for key in self.only)

    def trials(self) -> list[config_values.Trial]:
        """Its trials."""
        return [
            trial
            for trial in config_values.trials(self.model_type)
            if trial.base == self.base and (not self.only or trial.key in self.only)
        ]


def tried(part: Part) -> dict[str, Any]:
    """A line of the results file: verdicts counted, faults, seconds."""
    began = time.monotonic()
    counts: collections.Counter[str] = collections.Counter()
    faults = []
    for trial in part.trials():
        try:
            found = trial.verdict(whole=trial.number() % WHOLE == 0)
        except Exception as error:  # any other error than ours, which are verdicts
            text = " ".join(str(error).split())[:300]
            found = config_parity.Verdict("fault", f"{type(error).__name__}: {text}")
        counts[found.kind] += 1
        if found.fault:
            faults.append(f"{trial}: {found.fault}")
        if len(faults) == ENOUGH:
            break
    seconds = round(time.monotonic() - began, 1)
    return {"part": str(part), "counts": counts, "faults": faults, "seconds": seconds}


def _prepare() -> None:
    import torch
    import transformers

    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    logging.disable(logging.ERROR)  # transformers logs what it cannot set, and whole configs
    torch.set_num_threads(1)  # the processes fill the machine


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.oracle.config_values", description=__doc__)
    parser.add_argument("model_types", nargs="*", metavar="MODEL_TYPE", help="all if none is given")
    parser.add_argument("--only", nargs="+", default=(), metavar="KEY", help="keys to try")
    parser.add_argument("--jobs", type=int, default=2, help="processes, about 1.5 GB each")
    parser.add_argument("--results", type=Path, help="file to write and to resume from")
    return parser.parse_args()


def main() -> int:
    """Try everything that is asked; 1 if anything is wrong."""
    asked = _arguments()
    parts = [
        Part(model_type, base, tuple(asked.only))
        for model_type in asked.model_types or config_values.BASES
        for base in range(len(config_values.BASES[model_type]))
    ]
    lines: list[dict[str, Any]] = []
    if asked.results and asked.results.exists():
        known = {str(part) for part in parts}
        written = map(json.loads, asked.results.read_text().splitlines())
        lines = [line for line in written if line["part"] in known]
    done = {line["part"] for line in lines}
    left = [part for part in parts if str(part) not in done]
    context = multiprocessing.get_context("spawn")
    with context.Pool(asked.jobs, _prepare, maxtasksperchild=PARTS_PER_PROCESS) as pool:
        for line in pool.imap_unordered(tried, left):
            lines.append(line)
            if asked.results:
                with asked.results.open("a") as file:
                    file.write(json.dumps(line) + "\n")
            _show(line, f"{len(lines)} of {len(parts)}")
    faults = [fault for line in lines for fault in line["faults"]]
    print("\n".join(faults))
    print(f"{_total(lines)}: {len(faults)} faults")
    return 1 if faults else 0


def _show(line: dict[str, Any], progress: str) -> None:
    found = f"{_total([line])}, {len(line['faults'])} faults"
    print(f"{progress:>10}  {line['part']}: {found}, {line['seconds']:.0f} s", flush=True)
    for fault in line["faults"]:
        print(f"{'':12}{fault}", flush=True)


def _total(lines: Iterable[dict[str, Any]]) -> str:
    counts: collections.Counter[str] = collections.Counter()
    for line in lines:
        counts.update(line["counts"])
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    return f"{counts.total()} trials ({kinds})"
