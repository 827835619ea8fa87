"""Program that imports a model: ``python -m tests.models.loading.importing SOURCE OUTPUT [BATCH]``.

Prints the peak of resident memory beyond that of importing ``SOURCE/tiny`` first, in bytes. With
``BATCH`` it is killed in that batch, when the data is on disk and not yet counted.
"""

import os
import signal
import sys
from pathlib import Path

from ziggurat.checkpoint.resumable_step import ResumableStep
from ziggurat.cli.main import main


def peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def import_hf(source: str, output: str) -> None:
    if main(["import", "hf", source, "--output", output, "--verify", "never"]) != 0:
        raise SystemExit(1)


source, output, *batch = sys.argv[1:]
import_hf(f"{source}/tiny", f"{output}-tiny{os.getpid()}")
before = peak()
if batch:
    note = ResumableStep._note

    def counted(self: ResumableStep) -> None:
        if self.finished == int(batch[0]):
            os.kill(os.getpid(), signal.SIGKILL)
        note(self)

    ResumableStep._note = counted
import_hf(source, output)
print(peak() - before)
