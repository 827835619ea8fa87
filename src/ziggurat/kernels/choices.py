"""Choice of ``auto`` on this machine, read from a file of measurements, never measured in a run.

``ziggurat kernels tune`` writes, for each operation and number of rows, the implementation that was
fastest. The file is named by the CPU, the number of threads and all versions that matter, so that
it is not taken for another machine or after an update. Without one the operations' own rules hold.
"""

import functools
import hashlib
import json
import os
import platform as host
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import jax

from ziggurat.core import atomic
from ziggurat.core.json_types import JsonMapping, JsonObject
from ziggurat.kernels.cpu.library import library
from ziggurat.kernels.placement import platform

Table = Mapping[str, Mapping[int, str]]
"""Operation -> rows (a power of two) -> implementation."""


def directory() -> Path:
    """Directory of the choices files, in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "ziggurat" / "kernels"


@functools.cache
def machine() -> JsonObject:
    """Facts about this machine on which a measurement depends."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    model = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    found = library()
    return {
        "device": jax.devices()[0].device_kind,
        "cpu": model[1] if model else host.processor() or host.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0,
        "threads": found.threads,
        "jax": metadata.version("jax"),
        "jaxlib": metadata.version("jaxlib"),
        "kernels": found.path.stem if found.path else "",
    }


def path() -> Path:
    """Path of this machine's choices file, whether it exists or not."""
    key = hashlib.sha256(json.dumps(machine(), sort_keys=True).encode()).hexdigest()[:16]
    return directory() / f"choices-{key}.json"


def save(choices: Table, seconds: JsonMapping) -> Path:
    """Write the chosen implementations with the measured times; later processes use them."""
    target = path()
    target.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine(), "choices": choices, "seconds": seconds}
    atomic.write_file(target, json.dumps(content, indent=1, sort_keys=True) + "\n")
    saved.cache_clear()
    return target


@functools.cache
def saved() -> Table:
    """Kernel implementations that ``ziggurat kernels tune`` chose for this machine; empty if there
    is no file of them or it cannot be read."""
    try:
        choices = json.loads(path().read_text(encoding="utf-8"))["choices"]
        return {
            operation: {int(rows): str(name) for rows, name in table.items()}
            for operation, table in choices.items()
        }
    except (OSError, ValueError, KeyError, AttributeError):
        return {}


def chosen(operation: str, rows: int) -> str | None:
    """Fastest measured implementation on this machine for ``rows`` rows, or ``None``.

    It is ``None`` without a measurement, or where the program being traced runs elsewhere.

    The nearest measured number counts, powers of two apart, the smaller of two as near.
    """
    if platform() != jax.default_backend():
        return None
    table = saved().get(operation)
    if not table:
        return None
    power = max(rows - 1, 0).bit_length()
    near = min(sorted(table), key=lambda size: abs(max(size - 1, 0).bit_length() - power))
    return table[near]
