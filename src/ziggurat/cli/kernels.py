"""``ziggurat kernels``: implementations of operations: list, time, tune and build them."""

import dataclasses
import json as json_

from ziggurat.cli import console
from ziggurat.cli.subcommands import Subcommand, dispatch
from ziggurat.core.errors import ConfigError, EnvironmentError, did_you_mean


def list_(json: bool = False) -> int:
    """List operations and implementations: which serve here, and why others do not.

    Args:
        json: print JSON.
    """
    from ziggurat.kernels import catalogue, choices
    from ziggurat.kernels.cpu.library import library

    found, built = catalogue.entries(), library()
    tuned = choices.path() if choices.saved() else None
    if json:
        content = {
            "cpu_library": {
                "level": built.level,
                "threads": built.threads,
                "operations": sorted(built.targets),
                "why_not": built.why_not,
            },
            "choices": str(tuned) if tuned else None,
            "implementations": [dataclasses.asdict(entry) for entry in found],
        }
        console.output().print_json(json_.dumps(content))
        return 0
    from rich.table import Table

    table = Table("operation", "implementation", "here")
    for entry in found:
        table.add_row(entry.operation, entry.implementation, entry.why_not or "yes")
    out = console.output()
    out.print(table)
    state = f"built for {built.level}, {built.threads} threads" if built.path else built.why_not
    out.print(f"C++ kernels: {state}", soft_wrap=True, highlight=False)
    how = (
        f"as measured, {tuned}"
        if tuned
        else "by its built-in rules; to measure, ziggurat kernels tune"
    )
    out.print(f"auto chooses {how}", soft_wrap=True, highlight=False)
    return 0


def bench(operation: str = "", /, rows: int = 0, rounds: int = 7, json: bool = False) -> int:
    """Time implementations in turn, value and gradient together; medians, ratios to the plain one.

    Args:
        operation: one operation; all that can be timed if left out.
        rows: tokens (attention: tokens of each of four rows); the largest of tune by default.
        rounds: measurements of each.
        json: print JSON.
    """
    from ziggurat.kernels import measure

    _positive("--rounds", rounds)
    results = []
    for name in _operations(operation):
        size = rows or measure.SIZES[name][-1]
        one = measure.CASES[name](size)
        found = measure.medians(measure.times(one, rounds))
        for implementation, seconds in found.items():
            ratio = found[one.plain] / seconds
            results.append((name, size, implementation, seconds, ratio))
    keys = ("operation", "rows", "implementation", "seconds", "speedup")
    if json:
        console.output().print_json(json_.dumps([dict(zip(keys, row)) for row in results]))
        return 0
    from rich.table import Table

    table = Table("operation", "rows", "implementation", "ms", "times the plain one")
    for name, size, implementation, seconds, ratio in results:
        table.add_row(name, str(size), implementation, f"{1000 * seconds:.3f}", f"{ratio:.2f}")
    console.output().print(table)
    return 0


def tune(operation: str = "", /, rounds: int = 5) -> int:
    """Measure at several sizes and remember the fastest for this machine.

    Args:
        operation: one operation; all that can be tuned if left out.
        rounds: measurements of each.
    """
    from ziggurat.kernels import choices, measure

    _positive("--rounds", rounds)
    kept = {name: dict(table) for name, table in choices.saved().items()}
    seconds = {}
    for name in _operations(operation):
        kept[name], seconds[name] = {}, {}
        for size in measure.SIZES[name]:
            found = measure.medians(measure.times(measure.CASES[name](size), rounds))
            kept[name][size] = min(found, key=found.__getitem__)
            seconds[name][size] = found
            shown = ", ".join(f"{x} {1000 * s:.3f} ms" for x, s in found.items())
            line = f"{name} {size}: {kept[name][size]} ({shown})"
            console.output().print(line, soft_wrap=True, highlight=False)
    console.output().print(f"saved: {choices.save(kept, seconds)}", soft_wrap=True, highlight=False)
    return 0


def build(all: bool = False) -> int:
    """Compile the C++ kernels, and remove libraries of other sources.

    Args:
        all: for every level of this kind of machine, not only for this CPU.
    """
    import platform

    from ziggurat.kernels.cpu import build as build_
    from ziggurat.kernels.cpu.library import writable_directory

    fitting = build_.levels()[:1]
    if all:
        fitting = tuple(x for x in build_.LEVELS if x.machine == platform.machine())
    if not fitting:
        raise EnvironmentError(
            "building the CPU kernels",
            found=f"{platform.machine()} without AVX2",
            expected="AVX2, AVX-512 or 64-bit ARM",
            fix="nothing to do: XLA's own code is used",
        )
    directory = writable_directory()
    for level in fitting:
        made = build_.build(level, directory)
        console.output().print(f"built for {level.name}: {made}", soft_wrap=True, highlight=False)
    build_.remove_stale(directory)
    return 0


def _operations(wanted: str) -> list[str]:
    from ziggurat.kernels import catalogue, measure  # noqa: F401  the former fills the latter

    if wanted and wanted not in measure.CASES:
        raise ConfigError(
            "kernels",
            found=f"operation {wanted!r}",
            expected="one of " + ", ".join(measure.CASES),
            fix=did_you_mean(wanted, measure.CASES),
        )
    return [wanted] if wanted else list(measure.CASES)


def _positive(option: str, value: int) -> None:
    if value < 1:
        raise ConfigError(option, found=value, expected="1 or more")


COMMANDS = {
    "list": Subcommand(
        list_,
        "every operation with its implementations: usable here, or why not",
        "ziggurat kernels list",
    ),
    "bench": Subcommand(
        bench,
        "time them against the plain version, forward and backward",
        "ziggurat kernels bench attention --rows 512",
    ),
    "tune": Subcommand(
        tune,
        "time them at several sizes; auto takes the fastest from then on",
        "ziggurat kernels tune linear",
    ),
    "build": Subcommand(
        build,
        "compile the C++ kernels for this machine's CPU",
        "ziggurat kernels build",
    ),
}
ABOUT = "Implementations of operations: which there are, how fast here, and building the C++ ones."


def main(args: list[str]) -> int:
    """Run one command of ``ziggurat kernels``."""
    return dispatch("kernels", COMMANDS, args, ABOUT, "[OPTIONS]")
