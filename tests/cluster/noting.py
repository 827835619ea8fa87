"""Imported by hosts under test: notes the digest of every row that goes to a device, and makes
steps slow enough to be disturbed."""

import os
import time

import numpy as np
import xxhash

from ziggurat.train.experiment import Experiment, local_rows
from ziggurat.train.loop import Loop

PAUSE_S = float(os.environ["NOTING_PAUSE_S"])
_place, _next = Experiment.place, Loop._next


def _noting(self, batch):
    first = local_rows(self.layout, self.data.batch_size).start
    step = getattr(self, "_placed", None)
    if step is not None:  # else a batch of an evaluation
        lines = []
        for row in range(len(next(iter(batch.values())))):
            digest = xxhash.xxh3_64()
            for key in sorted(batch):
                digest.update(np.ascontiguousarray(batch[key][row]).tobytes())
            lines.append(f"{step} {first + row} {digest.hexdigest()}\n")
        folder = self.run.output / f"{self.run.name}.rows"
        # unbuffered and appended: a line is there before its step can be
        with open(folder / str(os.getpid()), "ab", buffering=0) as file:
            file.write("".join(lines).encode())
    return _place(self, batch)


def _numbered(self, batches, step):
    object.__setattr__(self.experiment, "_placed", step)
    time.sleep(PAUSE_S)
    return _next(self, batches, step)


Experiment.place = _noting  # pyright: ignore
Loop._next = _numbered  # pyright: ignore
