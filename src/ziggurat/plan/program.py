"""A step compiled ahead of time: does it fit, and which collectives does it run?

libtpu plans memory before it generates code, and code is what takes the minutes. So a child process
compiles, libtpu writes down the optimised program and its memory, and then the child is ended: the
step of an 8B model takes seconds instead of minutes. The memory is the total of buffer assignment,
by which the compiler refuses programs too; it lacks only the code itself, about 0.1 GB. Nor would
``as_text`` do: it goes through jaxlib's reader, which refuses some of libtpu's asynchronous
instructions.
"""

import contextlib
import dataclasses
import re
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from ziggurat.core.errors import EnvironmentError
from ziggurat.plan import compiled_text
from ziggurat.plan.fabric import Collective, Fabric
from ziggurat.plan.topology import Topology

OPTIONS: tuple[str, str] = ("xla_dump_to", "xla_dump_hlo_as_text")
"""Compiler options the child gives: the folder, and true."""
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "": 1}
_AVAILABLE = re.compile(r"exceeds available HBM \(([\d.]+)([KMGT]?)\)")
_TOTAL = re.compile(r"^Memory Space: default .*\nTotal bytes: (\d+)", re.MULTILINE)
_ARGUMENT = re.compile(r"^allocation \d+: size (\d+), page \d+, parameter \d+,", re.MULTILINE)
_REPORT = "*after_optimizations-memory-usage-report.txt"
_LAST = "*after_optimizations_after_buffer_assignment.txt"
"""File that libtpu writes last before it generates code."""
_POLL_S = 0.2


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompiledStep:
    """Memory and collectives of a step as the compiler reports them."""

    fits: bool
    memory: dict[str, int]
    """Bytes per device: ``argument_bytes``, ``temp_bytes``, their sum ``peak_estimate_bytes``."""
    hbm_bytes: int
    """Memory of one device, bytes."""
    collectives: list[Collective]
    compile_s: float
    """Until the program and its memory were known; code was not generated."""
    host_rss_peak_bytes: int
    """Memory of the compiling process at its highest."""


def hbm_bytes(topology: Topology) -> int:
    """Memory of one JAX device."""
    return topology.chip.hbm_bytes // topology.chip.devices


def compile_in_child(
    command: Sequence[str], folder: Path, topology: Topology, fabric: Fabric
) -> CompiledStep:
    """Compile a step in a child process, up to the point where its memory is known.

    Args:
        command: starts a process that compiles the step for the topology with :data:`OPTIONS`.
        folder: where that process lets libtpu write; empty.
        topology: what is compiled for.
        fabric: its devices in the program's order.

    Raises:
        EnvironmentError: the child failed for another reason than memory.
    """
    log, start = folder / "log.txt", time.perf_counter()
    with log.open("wb") as output:
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        highest = _wait(child, folder)
    finally:
        child.kill()
        child.wait()
    elapsed, limit = time.perf_counter() - start, hbm_bytes(topology)
    said = log.read_text("utf-8", "replace")
    refused = "RESOURCE_EXHAUSTED" in said and any(folder.glob(_REPORT))
    if not refused and not any(folder.glob(_LAST)):
        lines = [line for line in said.splitlines() if "Error" in line] or said.splitlines()
        raise EnvironmentError(
            f"compiling for {topology}",
            found=lines[-1][:300] if lines else f"exit code {child.returncode}",
            expected="a compiled program",
        )
    available = _AVAILABLE.search(said)
    if available:  # a little less than the chip has
        limit = round(float(available[1]) * _UNITS[available[2]])
    memory = read_memory(folder)
    text = next(folder.glob("*after_optimizations.txt")).read_text("utf-8")
    return CompiledStep(
        fits=not refused and memory["peak_estimate_bytes"] <= limit,
        memory=memory,
        hbm_bytes=limit,
        collectives=compiled_text.collectives(text, fabric),
        compile_s=elapsed,
        host_rss_peak_bytes=highest,
    )


def read_memory(folder: Path) -> dict[str, int]:
    """Read the memory of the optimised program from the files that libtpu wrote; see
    :class:`CompiledStep`."""
    report = next(folder.glob(_REPORT)).read_text("utf-8")
    buffers = next(folder.glob("*after_optimizations-buffer-assignment.txt")).read_text("utf-8")
    total = _TOTAL.search(report)
    assert total is not None, "libtpu's memory report has another form"
    held = sum(int(size) for size in _ARGUMENT.findall(buffers))
    whole = int(total[1])
    return {"argument_bytes": held, "temp_bytes": whole - held, "peak_estimate_bytes": whole}


def _wait(child: subprocess.Popen, folder: Path) -> int:
    """Until everything is written or the child has ended; its highest memory (bytes)."""
    highest, size = 0, -1
    while child.poll() is None:
        with contextlib.suppress(psutil.Error):
            highest = max(highest, psutil.Process(child.pid).memory_info().rss)
        last = next(folder.glob(_LAST), None)
        if last is not None:
            now = last.stat().st_size
            if now and now == size:  # nothing was added since the last look
                break
            size = now
        time.sleep(_POLL_S)
    return highest
