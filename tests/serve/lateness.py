"""How late a server's event loop comes to its work, and why, by the kernel's own account.

A beat is due every :data:`BEAT` seconds. When it is late, the loop's thread was computing, or it
was ready and had no core (other processes hold them), or it waited for something: in a server for
the interpreter's lock, which another thread holds. Linux only.
"""

import asyncio
import dataclasses
import faulthandler
import gc
import os
import threading
import time
from pathlib import Path
from typing import IO

BEAT = 0.01
LATE = 0.05


@dataclasses.dataclass
class Lateness:
    """Beats of a loop and the longest time (ms) that each cause took of one that was late."""

    stacks: IO[str] | None = None
    """Where the stacks of all threads go while a beat is over :data:`LATE` seconds late."""
    beats: int = 0
    late: int = 0
    worst: dict[str, float] = dataclasses.field(default_factory=dict)
    _collecting: float = 0.0

    def __post_init__(self) -> None:
        gc.callbacks.append(self._collected)

    def _collected(self, phase: str, told: dict[str, int]) -> None:
        """Note how long a garbage collection took: it holds the interpreter's lock."""
        if phase == "start":
            self._collecting = time.monotonic()
            return
        took = round((time.monotonic() - self._collecting) * 1000, 1)
        self.worst["collection"] = max(self.worst.get("collection", 0.0), took)
        if self.stacks is not None and took > 20:
            self.stacks.write(f"GC {took} {told} {gc.get_count()} {len(gc.get_objects())}\n")

    async def run(self) -> None:
        """Beat until cancelled, on the loop that is watched."""
        self.worst.clear()  # the start has its collections too
        try:
            await self._beat()
        finally:
            faulthandler.cancel_dump_traceback_later()

    async def _beat(self) -> None:
        statistics = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")
        with statistics.open("rb", buffering=0) as file:
            while True:
                if self.stacks is not None:
                    faulthandler.dump_traceback_later(BEAT + LATE, file=self.stacks)
                begun, (ran, waited) = time.monotonic(), _read(file)
                await asyncio.sleep(BEAT)
                late = time.monotonic() - begun - BEAT
                now_ran, now_waited = _read(file)
                self.beats += 1
                if late > LATE:
                    self.late += 1
                    self._count(late, (now_ran - ran) / 1e9, (now_waited - waited) / 1e9)

    def _count(self, late: float, ran: float, waited: float) -> None:
        found = {
            "late": late,
            "computing": ran,
            "no core": waited,
            "lock": max(0.0, late - ran - waited),
        }
        for cause, seconds in found.items():
            self.worst[cause] = max(self.worst.get(cause, 0.0), round(seconds * 1000, 1))
        if self.stacks is not None:
            self.stacks.write(f"LATE {found} {os.getloadavg()[0]}\n")
            self.stacks.flush()


def _read(file: IO[bytes]) -> tuple[int, int]:
    file.seek(0)
    ran, waited, _ = file.read().split()
    return int(ran), int(waited)
