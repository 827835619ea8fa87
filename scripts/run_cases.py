"""Run small inputs that once failed, and say which of them give their expected value.

    python scripts/run_cases.py CASES_DIR [--only models/01 train ...]

Each case runs its own script or input in an empty folder, under a time limit; where the script
cannot run as it is, the line names what was adapted. ``later``: the expected value is to come.
Needs the oracle's environment. Ends with exit code 1 if any case differs.
"""

import argparse
import collections
import sys
import tempfile
import time
from pathlib import Path

from cases import case, front_door, models, post, scale, serve, serve_clients, serve_llm, train

FOLDERS = (front_door, models, post, scale, serve, serve_clients, serve_llm, train)
"""Modules that register their cases when they are imported."""

NOT_RUN = {
    "post/07-dit-step": "a profile without an expected value",
    "scale/03-context-parallel": "belongs to the work on scale: compiles for a pod, many minutes",
    "scale/05-paged-tpu": "belongs to the work on serving: no expected value is named",
    "scale/08-tensor-residuals": "belongs to the work on scale: compiles for a pod, many minutes",
    "servellm/04-client-matrix": "belongs to the work on serving: other APIs",
    "servepredict/00-repository": "a fixture of others",
    "ux/05-notebook": "no expected value is named",
}
"""Folders that are not run, and why."""


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
    for name, reason in sorted(NOT_RUN.items()):
        if not asked.only or name.startswith(tuple(asked.only)):
            print(f"{name:42} {'not run':12} {reason}", flush=True)
    found = collections.Counter(_run(one, asked.folder.resolve(), asked.patience) for one in chosen)
    print(f"{len(chosen)} cases: " + ", ".join(f"{n} {kind}" for kind, n in sorted(found.items())))
    return 1 if found["differs"] else 0


def _run(one: case.Case, folder: Path, patience: float) -> str:
    began, verdict = time.monotonic(), "as expected"
    with tempfile.TemporaryDirectory(prefix="case-", ignore_cleanup_errors=True) as place:
        try:
            seen = one.run(case.Scratch(Path(place), folder, patience))
        except case.Differs as found:
            verdict, seen = "later" if one.later else "differs", f"{one.later or ''} {found}"
        except Exception as error:  # the check itself: one case does not end the others
            verdict, seen = "differs", f"{type(error).__name__}: {error}"
        seen = " ".join(seen.replace(place, "...").split())
    note = f"  (adapted: {one.note})" if one.note else ""
    seconds = time.monotonic() - began
    print(f"{one.name:42} {verdict:12} {seen}{note}  {seconds:.0f} s", flush=True)
    return verdict


if __name__ == "__main__":
    sys.exit(main())
