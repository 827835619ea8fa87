"""A step compiled ahead of time: does it fit, and what did compiling take?"""

import dataclasses
import re
import tempfile
import time
from pathlib import Path
from typing import Any

from ziggurat.plan import compiled_text
from ziggurat.plan.fabric import Collective, Fabric
from ziggurat.plan.topology import Topology
from ziggurat.profile import memory as memory_

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "": 1}
_USED = re.compile(r"[Uu]sed ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """What the compiler says of a step."""

    fits: bool
    memory: dict[str, int]
    """Bytes per device, see ``profile.memory.compiled_memory``; where the program does not fit,
    only ``peak_estimate_bytes``."""
    hbm_bytes: int
    """Of one device."""
    collectives: list[Collective] | None
    """None where the program does not fit and so does not exist."""
    compile_s: float
    host_rss_peak_bytes: int
    """Memory of this process at its highest."""

    @property
    def headroom_bytes(self) -> int:
        """What stays free; negative where it does not fit."""
        return self.hbm_bytes - self.memory["peak_estimate_bytes"]


def hbm_bytes(topology: Topology) -> int:
    """Memory of one JAX device."""
    return topology.chip.hbm_bytes // topology.chip.devices


def compile_step(lowered: Any, topology: Topology, fabric: Fabric) -> Program:
    """Compile a lowered step for a topology; a step too large is an answer, not an error.

    Args:
        lowered: of ``jax.jit(step).lower(...)`` with shardings over the topology's devices.
    """
    import jax

    limit, start = hbm_bytes(topology), time.perf_counter()
    try:
        compiled, text = _compile(lowered)
    except jax.errors.JaxRuntimeError as error:
        used = _USED.search(str(error))
        if "RESOURCE_EXHAUSTED" not in str(error) or used is None:
            raise
        needed = round(float(used[1]) * _UNITS[used[2]])
        limit = round(float(used[3]) * _UNITS[used[4]])
        memory: dict[str, int] = {"peak_estimate_bytes": needed}
        collectives = None
    else:
        memory = memory_.compiled_memory(compiled)
        collectives = compiled_text.collectives(text, fabric)
    elapsed = time.perf_counter() - start
    return Program(
        fits=memory["peak_estimate_bytes"] <= limit,
        memory=memory,
        hbm_bytes=limit,
        collectives=collectives,
        compile_s=elapsed,
        host_rss_peak_bytes=memory_.host_memory()["host_rss_peak_bytes"],
    )


def _compile(lowered: Any) -> tuple[Any, str]:
    """The compiled program and its text. The text is what libtpu itself writes: ``as_text`` goes
    through jaxlib's reader, which refuses some of libtpu's asynchronous instructions."""
    with tempfile.TemporaryDirectory(prefix="ziggurat-plan-") as folder:
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        compiled = lowered.compile(compiler_options=options)
        (file,) = Path(folder).glob("*after_optimizations.txt")
        return compiled, file.read_text(encoding="utf-8")
