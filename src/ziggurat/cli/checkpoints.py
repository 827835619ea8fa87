"""``ziggurat checkpoints``: list what a run has saved."""

import sys
import time
from json import dumps
from pathlib import Path

from rich.table import Table

from ziggurat.cli import console
from ziggurat.core.errors import CheckpointError

EXAMPLE = "ziggurat checkpoints runs/tiny-python --verify"


def checkpoints(run: Path, /, verify: bool = False, json: bool = False) -> int:
    """List a run's checkpoints; exit code 1 if one is damaged.

    Args:
        run: a run's directory, or one that holds step directories.
        verify: read every file and compare it with its digest.
        json: print JSON.
    """
    from ziggurat.checkpoint import Checkpoints, verify_step

    directory = run / "checkpoints" if (run / "checkpoints").is_dir() else run
    infos = Checkpoints(directory).steps()
    if not infos:
        raise CheckpointError(
            f"checkpoints of {run}",
            found="no step directory" if run.is_dir() else "no such directory",
            expected="a run that has saved",
        )
    rows = []
    for info in infos:
        intact, damage = info.intact, "" if info.intact else "a file is missing or cut short"
        if verify:
            try:
                verify_step(info.path)
            except CheckpointError as error:
                intact, damage = False, str(error)
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(info.created))
        rows.append(
            {"step": info.step, "saved": when, "bytes": info.bytes, "intact": intact}
            | ({"damage": damage} if damage else {})
        )
    if json:
        sys.stdout.write(dumps(rows, indent=1) + "\n")
    else:
        table = Table("step", "saved", "MB", "intact", title=str(directory), title_justify="left")
        for row in rows:
            state = "verified" if verify and row["intact"] else "yes" if row["intact"] else "no"
            shown = f"{state}: {row['damage']}" if "damage" in row else state
            table.add_row(str(row["step"]), row["saved"], f"{row['bytes'] / 1e6:.1f}", shown)
        console.output().print(table)
    return 0 if all(row["intact"] for row in rows) else 1


def main(args: list[str]) -> int:
    return console.run(checkpoints, args, "ziggurat checkpoints", EXAMPLE)
