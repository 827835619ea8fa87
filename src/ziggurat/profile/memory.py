"""Memory: of this process, of its devices, and of a compiled program. All figures are bytes."""

import functools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_STATUS = Path("/proc/self/status")


def host_memory() -> dict[str, int]:
    """Resident memory of this process, now and at its highest.

    The peak is the kernel's own high-water mark, so short spikes between two calls count. On Linux
    it is read from ``VmHWM``: ``ru_maxrss`` would also hold the peak of the parent that started
    this process.

    >>> memory = host_memory()
    >>> memory["host_rss_peak_bytes"] >= memory["host_rss_bytes"] > 0
    True
    """
    now = _process(os.getpid()).memory_info()
    return {"host_rss_bytes": now.rss, "host_rss_peak_bytes": max(_peak(now), now.rss)}


@functools.cache
def _process(pid: int) -> Any:
    """Handle of a process, cached: making one costs ten times a look at its memory."""
    import psutil

    return psutil.Process(pid)


def device_memory(devices: Sequence[Any] | None = None) -> dict[str, int]:
    """Memory of the fullest of this process's devices; empty when the backend does not say (CPU).

    Args:
        devices: JAX devices, by default all local ones. Devices of other processes are left out.

    Returns:
        ``device_bytes_in_use`` and ``device_peak_bytes_in_use``, each the highest over the devices,
        and ``device_bytes_limit``, the lowest; a key is missing when the backend lacks it.

    >>> device_memory()
    {}
    """
    import jax

    here = jax.process_index()
    chosen = jax.local_devices() if devices is None else devices
    stats = [d.memory_stats() or {} for d in chosen if d.process_index == here]
    found: dict[str, int] = {}
    for name, pick in (
        ("bytes_in_use", max),
        ("peak_bytes_in_use", max),
        ("bytes_limit", min),
    ):
        values = [int(entry[name]) for entry in stats if name in entry]
        if values:
            found[f"device_{name}"] = pick(values)
    return found


def compiled_memory(compiled: Any) -> dict[str, int]:
    """Memory that a compiled program needs on each device, by the compiler's own account.

    Args:
        compiled: what ``jax.jit(f).lower(...).compile()`` returns.

    Returns:
        ``argument_bytes``, ``output_bytes``, ``alias_bytes`` (outputs that live in donated
        arguments), ``temp_bytes``, ``generated_code_bytes``; ``peak_bound_bytes``, argument +
        output - alias + temp + code, which no run exceeds; ``peak_estimate_bytes``, the compiler's
        peak of live buffers, or the bound when it gives none. Empty when the backend has no
        account.

    >>> import jax, jax.numpy as jnp
    >>> shape = jax.ShapeDtypeStruct((8, 8), jnp.float32)
    >>> sizes = compiled_memory(jax.jit(lambda x: x + 1).lower(shape).compile())
    >>> sizes["argument_bytes"], sizes["output_bytes"], sizes["alias_bytes"]
    (256, 256, 0)
    """
    stats = compiled.memory_analysis()
    if stats is None:
        return {}
    sizes = {
        "argument_bytes": int(stats.argument_size_in_bytes),
        "output_bytes": int(stats.output_size_in_bytes),
        "alias_bytes": int(stats.alias_size_in_bytes),
        "temp_bytes": int(stats.temp_size_in_bytes),
        "generated_code_bytes": int(stats.generated_code_size_in_bytes),
    }
    bound = sum(sizes.values()) - 2 * sizes["alias_bytes"]
    reported = int(getattr(stats, "peak_memory_in_bytes", 0))
    return sizes | {"peak_bound_bytes": bound, "peak_estimate_bytes": reported or bound}


def _peak(now: Any) -> int:
    try:
        for line in _STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    if hasattr(now, "peak_wset"):  # Windows
        return int(now.peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
