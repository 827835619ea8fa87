"""Kills hosts of one run at random instants, again and again, and counts what was lost.

``python -m tests.cluster.chaos --engine subprocess --kills 20 --hosts 2..4`` trains a tiny model
over four hosts under SIGKILL, of any of them, the first included, and of several shortly after one
another; now and then another number of hosts is asked for. Lost hosts are started anew and join
again. Then the loss of every step and the digest of every row that any host put on a device are
compared with a run that nobody disturbed. With ``--fixed`` the mesh wants all hosts, so that the
world waits for lost ones to return, and every loss must be the same number, bit for bit. Recovery
times run from the kill to the first step done after it. The tally is printed and, with ``--tally
FILE``, added to that file.
"""

import argparse
import json
import os
import platform
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from tests.cluster.runs import Run, start_cluster

from ziggurat.cluster.record import read_events
from ziggurat.core.errors import ClusterError

STEPS_A_KILL = 12
PAUSE_S = 0.1
TOLERANCE = 1e-5
"""Relative difference of a loss after sums over hosts were taken in another order, which adds up
over the steps of a run; 3e-7 was measured, see benchmarks/results/cluster_chaos.json."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--engine", choices=("subprocess", "ray"), default="subprocess")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--hosts", default="2..4", help="N, or LEAST..MOST")
    parser.add_argument("--spares", type=int, default=0)
    parser.add_argument("--fixed", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tally", type=Path)
    given = parser.parse_args()
    least, _, most = given.hosts.partition("..")
    numbers = list(range(int(least), int(most or least) + 1))
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        row = disturb_and_compare(given, numbers, Path(folder))
    print(json.dumps(row, indent=1))
    if given.tally:
        rows = json.loads(given.tally.read_text()) if given.tally.exists() else []
        given.tally.write_text(json.dumps([*rows, row], indent=1) + "\n")
    return 1 if any(row[name] for name in LOSSES) else 0


LOSSES = (
    "steps lost or repeated",
    "rows that differed",
    "rows lost",
    "losses beyond tolerance",
)


def disturb_and_compare(given: argparse.Namespace, numbers: list[int], folder: Path) -> dict:
    steps = given.kills * STEPS_A_KILL + 10
    overrides = [f"train.steps={steps}"]
    if given.fixed:
        overrides.append(f"mesh.data={numbers[-1]}")
    war = Run(folder, "war", *overrides)
    killer = Killer(random.Random(given.seed), given.kills, numbers, steps)
    began = time.monotonic()
    # from the least hosts up: others are asked for on the way
    options = {"engine": given.engine, "hosts": numbers[0], "spares": given.spares}
    options["max_failures"] = 2 * given.kills  # a kill while a world is made counts too
    with start_cluster(folder / "cluster", PAUSE_S, **options) as cluster:
        killer.cluster = cluster
        killer.start()
        outcome = war.train(cluster, numbers[-1])
        killer.join(10)
        account = cluster.ledger.account()
    took = time.monotonic() - began
    rarely = ["checkpoint.every=1000000", "checkpoint.memory.every=1000000"]
    peace = Run(folder, "peace", *overrides, *rarely)
    with start_cluster(folder / "in peace", hosts=numbers[-1]) as cluster:
        peace.train(cluster, numbers[-1])
    events = read_events(folder / "cluster")
    times = recovery_times(killer.kills, events)
    shown = {name: round(value, 2) for name, value in account.seconds.items()}
    row = {
        "engine": given.engine,
        "hosts": given.hosts,
        "spares": given.spares,
        "fixed": given.fixed,
        "seed": given.seed,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        **killer.tally,
        "worlds": outcome.generations,
        "hosts of each world": [len(e["hosts"]) for e in events if e["event"] == "formed"],
        "recoveries": len(times),
        "recovery_s median": round(statistics.median(times), 2),
        "recovery_s longest": round(max(times), 2),
        "recovery_s": [round(seconds, 2) for seconds in times],
        "wall_s": round(took, 1),
        "ledger_s": shown,
        "ledger_s minus wall": round(sum(account.seconds.values()) - account.wall_s, 6),
        **compare(war, peace, steps, exact=given.fixed),
    }
    for name in LOSSES:
        row.setdefault(name, 0)
    return row


class Killer(threading.Thread):
    """Kills while the run goes."""

    cluster = None

    def __init__(self, chance: random.Random, kills: int, numbers: list[int], steps: int):
        super().__init__(daemon=True)
        self.chance, self.wanted, self.numbers, self.steps = chance, kills, numbers, steps
        self.kills: list[float] = []
        """When, in seconds since the epoch."""
        self.tally = Counter[str]()

    def run(self) -> None:
        while len(self.kills) < self.wanted:
            seen = self._status()
            if self.chance.random() < 0.4:  # at any instant, while it recovers too
                time.sleep(self.chance.uniform(0, 3.0))
            else:
                until = min(seen["step"] + self.chance.randint(1, STEPS_A_KILL), self.steps - 4)
                deadline = time.monotonic() + 60
                while self._status()["step"] < until and time.monotonic() < deadline:
                    time.sleep(0.01)
                time.sleep(self.chance.uniform(0, PAUSE_S))
            self._kill()
            if len(self.numbers) > 1 and self.chance.random() < 0.2:
                self._resize()

    def _kill(self) -> None:
        status = self._status()
        inside = [row for row in status["hosts"] if row["state"] == "in the world" and row["pid"]]
        others = [row for row in status["hosts"] if row["pid"] and row not in inside]
        if not inside and not others:
            return
        row = self.chance.choice(inside or others)
        try:
            os.kill(row["pid"], signal.SIGKILL)
        except ProcessLookupError:
            return
        self.kills.append(time.time())
        self.tally["kills"] += 1
        self.tally["kills of rank 0"] += row["index"] == 0
        during = "in a world" if inside else "between worlds"
        self.tally[f"kills {during}"] += 1
        print(f"kill {len(self.kills)}: {row['host']}, index {row['index']}", flush=True)

    def _resize(self) -> None:
        number = self.chance.choice(self.numbers)
        try:
            self.cluster.resize(number)
            self.tally["resizes asked for"] += 1
        except ClusterError:
            self.tally["resizes refused"] += 1

    def _status(self) -> dict:
        return self.cluster.status()


def recovery_times(kills: list[float], events: list[dict]) -> list[float]:
    """Seconds from a kill to the first step done after it; kills before that belong together.

    A host that was killed while it was idle is no loss to the run.
    """
    broken = [e["time_unix_s"] for e in events if e["event"] == "broken"]
    found, after = [], 0.0
    for recovered in (e["time_unix_s"] for e in events if e["event"] == "recovered"):
        losses = [when for when in broken if after < when < recovered]
        if losses:
            causes = [when for when in kills if after < when <= losses[0]]
            found.append(recovered - (causes[-1] if causes else losses[0]))
        after = recovered
    return found


def compare(war: Run, peace: Run, steps: int, exact: bool) -> dict:
    tally = Counter[str]()
    ours, theirs = war.curve(), peace.curve()
    assert [step for step, _ in theirs] == list(range(steps))
    numbers = [step for step, _ in ours]
    tally["steps lost or repeated"] += len(set(range(steps)) ^ set(numbers))
    tally["steps lost or repeated"] += len(numbers) - len(set(numbers))
    worst = 0.0
    known = dict(ours)
    for step, expected in theirs:
        if step not in known:
            continue
        loss = known[step]
        difference = abs(loss - expected) / abs(expected)
        worst = max(worst, difference)
        tally["losses equal bit for bit"] += loss == expected
        tally["losses beyond tolerance"] += difference > (0.0 if exact else TOLERANCE)
    seen, reference = war.digests(), peace.digests()
    tally["rows compared"] += sum(map(len, seen.values()))
    tally["rows that differed"] += sum(seen[place] != reference[place] for place in seen)
    tally["rows lost"] += len(reference.keys() - seen.keys())
    return {
        "steps": steps,
        **tally,
        "largest relative difference of a loss": worst,
        "tolerance": 0.0 if exact else TOLERANCE,
    }


if __name__ == "__main__":
    import logging

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s")
    logging.getLogger("ziggurat").setLevel(logging.INFO)
    sys.exit(main())
