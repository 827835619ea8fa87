"""Host memory in pages of 2 MB, for programs that XLA runs on a CPU.

XLA allocates what a program needs anew at every call, through the C library. In pages of 4 KB a
training step then spends its time in page faults: a step of 0.88 s takes 1.02 s
(``benchmarks/train_step.py``). The C library of GNU asks Linux for huge pages if it is told so when
the process starts (``glibc.malloc.hugetlb=1``), never later; so a process that is to have them is
started anew, under its own process id.
"""

import os
import platform
import re
import sys
from collections.abc import Mapping
from pathlib import Path

SWITCH = "ZIGGURAT_HUGE_PAGES"
TUNABLES = "GLIBC_TUNABLES"
_ASK = "glibc.malloc.hugetlb"
_SYSTEM = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_OLDEST = (2, 35)


def tunables(environment: Mapping[str, str]) -> str | None:
    """Value of ``GLIBC_TUNABLES`` that gives huge pages, or ``None`` if nothing is to change.

    Nothing changes if Linux does not give huge pages on request, if they are requested already, or
    if ``ZIGGURAT_HUGE_PAGES`` is ``off``.

    Args:
        environment: of the process.
    """
    name, version = platform.libc_ver()
    numbers = tuple(map(int, re.findall(r"\d+", version)[:2]))
    given = environment.get(TUNABLES, "")
    if environment.get(SWITCH) == "off" or _ASK in given:
        return None
    if sys.platform != "linux" or name != "glibc" or numbers < _OLDEST:
        return None
    try:
        by_asking = "[madvise]" in _SYSTEM.read_text(encoding="utf-8")
    except OSError:
        by_asking = False
    return ":".join(filter(None, (given, f"{_ASK}=1"))) if by_asking else None


def restart_with_huge_pages() -> None:
    """Start this very command anew so that it has huge pages; returns if that changes nothing, or
    if the system refuses (a command line that is too long, a sandbox, an interpreter that may not
    be executed): then a line on standard error says so and the command runs in small pages.

    For the first lines of a process: whatever it has done is gone.
    """
    wanted = tunables(os.environ)
    if wanted is None or not sys.executable:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    command = [sys.executable, *sys.orig_argv[1:]]
    try:
        os.execve(sys.executable, command, {**os.environ, TUNABLES: wanted})
    except (OSError, ValueError) as error:  # ValueError: an argument that no process can be given
        reason = getattr(error, "strerror", None) or error
        line = (
            f"huge pages: {sys.executable} cannot be started anew ({reason}); {SWITCH}=off skips it"
        )
        print(line, file=sys.stderr, flush=True)
