"""Which operations a step's time goes to: a short trace by XLA's profiler, read back by module.

Events of a trace carry the names of the compiled program's instructions only; where each comes from
stands in the program's text. :func:`origins` reads it there, :func:`summarise` joins the two.
"""

import collections
import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from ziggurat.core import jax_private

_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = .*?op_name=\"([^\"]*)\"", re.MULTILINE)
_NOISE = re.compile(r"^(jit|pjit|jvp|transpose|vmap|remat|checkpoint|rematted_computation)\b")
_STRUCTURE = {"while", "body", "cond", "closed_call", "branch", "rematted_computation", ""}
OTHER = "other"


@dataclasses.dataclass(frozen=True)
class OperationTime:
    """One instruction's share of a trace."""

    name: str
    """As XLA calls it."""
    module: str
    """The named scope it was traced in, such as ``attention``; ``other`` where there was none."""
    seconds: float
    count: int


def can_trace() -> bool:
    """Whether a trace can be taken in this process.

    Not where libtpu was loaded to compile for chips that are not here: its profiler and the one of
    another version of jaxlib crash each other (libtpu 0.0.42 with jaxlib 0.10.2).
    """
    import jax

    return jax.default_backend() == "tpu" or not jax_private.plugin_loaded("tpu")


@contextlib.contextmanager
def tracing(directory: Path) -> Iterator[None]:
    """Record device and host activity inside the block, in XProf's format."""
    import jax

    options = jax.profiler.ProfileOptions()
    options.host_tracer_level, options.python_tracer_level = 1, 0
    jax.profiler.start_trace(str(directory), profiler_options=options)
    try:
        yield
    finally:
        jax.profiler.stop_trace()


def origins(program: str) -> dict[str, str]:
    """Named scope of every instruction in a compiled program's text.

    >>> line = '  %dot.3 = f32[2]{0} dot(%a), metadata={op_name="jit(step)/jvp(attention)/dot" x=1}'
    >>> origins(line), origins("%a = f32[] constant(1)")
    ({'dot.3': 'attention'}, {})
    """
    return {name: module_of(path) for name, path in _INSTRUCTION.findall(program)}


def module_of(path: str) -> str:
    """The named scopes of an operation's path, without what JAX' transformations add.

    >>> module_of("jit(step)/transpose(jvp(mlp))/while/body/closed_call/gate/dot_general")
    'mlp/gate'
    >>> module_of("jit(step)/jvp()/add")
    'other'
    """
    scopes = []
    for part in path.split("/")[:-1]:
        inner = part
        while found := re.fullmatch(r"\w+\((.*)\)", inner):
            if inner.startswith(("jit(", "pjit(")):
                inner = ""
                break
            inner = found[1]
        einsum = "->" in inner  # names itself after its formula
        if inner not in _STRUCTURE and not einsum and not _NOISE.match(inner):
            scopes.append(inner)
    return "/".join(scopes) or OTHER


def summarise(directory: Path, modules: Mapping[str, str]) -> list[OperationTime]:
    """Operations of the newest trace under a directory, the longest first.

    Seconds are summed over all threads and cores of a device; an operation that contains others (a
    loop, a call) is left out, since what is inside counts.

    Args:
        directory: where :func:`tracing` wrote.
        modules: what :func:`origins` says of the traced program.
    """
    import jax

    files = sorted(directory.rglob("*.xplane.pb"), key=lambda file: file.stat().st_mtime)
    if not files:
        return []
    seconds: dict[str, float] = collections.defaultdict(float)
    counts: collections.Counter[str] = collections.Counter()
    for plane in jax.profiler.ProfileData.from_file(str(files[-1])).planes:
        for line in plane.lines:
            for event in line.events:
                name = event.name.removeprefix("%")
                if name in modules and not name.startswith(("while", "call", "conditional")):
                    seconds[name] += event.duration_ns / 1e9
                    counts[name] += 1
    longest = sorted(seconds.items(), key=lambda entry: -entry[1])
    return [OperationTime(name, modules[name], spent, counts[name]) for name, spent in longest]


def by_module(operations: list[OperationTime]) -> dict[str, float]:
    """Seconds by named scope, the longest first."""
    totals: dict[str, float] = collections.defaultdict(float)
    for operation in operations:
        totals[operation.module] += operation.seconds
    return dict(sorted(totals.items(), key=lambda entry: -entry[1]))
