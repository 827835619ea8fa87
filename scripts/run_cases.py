"""Run small inputs that once failed, and say which of them give their expected value.

    python scripts/run_cases.py CASES_DIR [--only models/01 train ...]

Each case runs its own script or input in an empty folder, under a time limit; where the script
cannot run as it is, the line names what was adapted. Needs the oracle's environment. Ends with exit
code 1 if any case differs.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from cases import case, front_door, models, post, scale, train

FOLDERS = (front_door, models, post, scale, train)
"""Modules that register their cases when they are imported."""


def main() -> int:
    """Run the cases that are asked for; 1 if any differs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path, metavar="CASES_DIR", help="the folder of all cases")
    parser.add_argument("--only", nargs="+", default=(), metavar="NAME", help="beginnings of names")
    parser.add_argument("--patience", type=float, default=1.0, help="factor on time limits")
    asked = parser.parse_args()
    chosen = [
        one
        for name, one in sorted(case.CASES.items())
        if not asked.only or name.startswith(tuple(asked.only))
    ]
    if not chosen:
        parser.error(f"no case begins with {' or '.join(asked.only)}")
    differ = sum(not _run(one, asked.folder.resolve(), asked.patience) for one in chosen)
    print(f"{len(chosen)} cases: {len(chosen) - differ} as expected, {differ} differ")
    return 1 if differ else 0


def _run(one: case.Case, folder: Path, patience: float) -> bool:
    began, verdict = time.monotonic(), "as expected"
    with tempfile.TemporaryDirectory(prefix="case-", ignore_cleanup_errors=True) as place:
        try:
            seen = one.run(case.Scratch(Path(place), folder, patience))
        except case.Differs as found:
            verdict, seen = "differs", str(found)
        except Exception as error:  # the check itself: one case does not end the others
            verdict, seen = "differs", f"{type(error).__name__}: {error}"
        seen = " ".join(seen.replace(place, "...").split())
    note = f"  (adapted: {one.note})" if one.note else ""
    seconds = time.monotonic() - began
    print(f"{one.name:42} {verdict:12} {seen}{note}  {seconds:.0f} s", flush=True)
    return verdict == "as expected"


if __name__ == "__main__":
    sys.exit(main())
