"""``ziggurat doctor``: what this machine has, what is missing and which command installs it.

Everything is looked up here and now: versions from the installed distributions, devices by starting
JAX and running one small compiled program in this process, commands by carrying out their imports,
extras from the package's own metadata.
"""

import dataclasses
import json as json_format
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from ziggurat.cli import console
from ziggurat.cli.doctor_commands import Command, check

PACKAGES = ("ziggurat", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
PLUGINS = ("libtpu", "jax-cuda13-plugin", "jax-cuda12-plugin", "jax-rocm7-plugin", "jax-metal")
LEAST_DISK_GIB = 10
OPTIONAL = frozenset({"serve", "demo"})
"""Commands that need an extra; all others must work with the core alone."""
NO_KERNELS = "none: "
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


@dataclasses.dataclass(frozen=True)
class DeviceGroup:
    """Devices of one kind on this machine."""

    platform: str
    kind: str
    count: int
    memory_gib: float | None
    """Memory of each device, GiB; ``None`` where the backend does not tell."""


@dataclasses.dataclass(frozen=True)
class Extra:
    """One optional part of the installation."""

    installed: bool
    missing: list[str]
    install: str


@dataclasses.dataclass(frozen=True)
class DoctorReport:
    """Findings of ``ziggurat doctor``, as ``--json`` prints them."""

    ok: bool
    """JAX computes here, and every command works that no extra is needed for."""
    versions: dict[str, str | None]
    plugins: dict[str, str]
    machine: dict[str, str | int | float | None]
    devices: list[DeviceGroup]
    commands: dict[str, Command]
    extras: dict[str, Extra]
    errors: list[str]
    warnings: list[str]


def main(args: list[str]) -> int:
    """Run ``ziggurat doctor``."""
    return console.run(doctor, args, "ziggurat doctor", "ziggurat doctor --json")


def doctor(json: bool = False) -> int:
    """Say what this machine has, what is missing and how to install it.

    Exits 0 if the core works here, 1 if it does not.

    Args:
        json: print the report as JSON.
    """
    report = examine(Path.cwd(), os.environ)
    if json:
        text = json_format.dumps(dataclasses.asdict(report), indent=2)
        console.output().print(text, markup=False, highlight=False, soft_wrap=True)
    else:
        show(report)
    return 0 if report.ok else 1


def examine(directory: Path, environment: Mapping[str, str]) -> DoctorReport:
    """Examine this machine; ``directory`` is where free disk is measured."""
    versions = {name: version(name) for name in PACKAGES}
    plugins = {name: found for name in PLUGINS if (found := version(name))}
    absent = lacking("ziggurat") if versions["ziggurat"] else ["ziggurat itself"]
    devices, failure = start_jax()
    errors = [failure] if failure else []
    if absent:
        errors.append(f"required and missing: {', '.join(absent)}; pip install ziggurat")
    commands = check() if not failure else {}
    errors += [
        f"ziggurat {name}: {command.note}"
        for name, command in commands.items()
        if not command.works and name not in OPTIONAL
    ]
    machine = describe_machine(directory)
    warnings = find_traps(devices, versions | plugins, machine, environment)
    extras = describe_extras() if versions["ziggurat"] else {}
    return DoctorReport(
        not errors, versions, plugins, machine, devices, commands, extras, errors, warnings
    )


def version(distribution: str) -> str | None:
    """The installed version of a distribution, ``None`` if there is none."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def lacking(distribution: str, extra: str = "") -> list[str]:
    """Missing requirements of a distribution, or of one of its extras.

    Each entry is a requirement, with the version that is there if it is the wrong one.

    >>> lacking("rich")
    []
    """
    from packaging.requirements import Requirement

    absent: list[str] = []
    for requirement in map(Requirement, metadata.requires(distribution) or []):
        marker = requirement.marker
        always = marker is None or marker.evaluate({"extra": ""})
        if always == bool(extra) or not (always or (marker and marker.evaluate({"extra": extra}))):
            continue
        wanted = f"{requirement.name}{requirement.specifier}"
        found = version(requirement.name)
        if found is None:
            absent.append(wanted)
        elif not requirement.specifier.contains(found, prereleases=True):
            absent.append(f"{wanted} (found {found})")
        else:
            absent += [
                entry for name in requirement.extras for entry in lacking(requirement.name, name)
            ]
    return absent


def describe_extras() -> dict[str, Extra]:
    """Every extra of Ziggurat: is it complete, and the command that installs it."""
    names = metadata.metadata("ziggurat").get_all("Provides-Extra") or []
    absent = {name: lacking("ziggurat", name) for name in names}
    return {
        name: Extra(not missing, missing, f"pip install 'ziggurat[{name}]'")
        for name, missing in absent.items()
    }


def start_jax() -> tuple[list[DeviceGroup], str | None]:
    """Start JAX and run one compiled program; returns the devices, or the error."""
    try:
        import jax
        import jax.numpy as jnp

        found = jax.devices()
        answer = int(jax.jit(lambda x: (x * x).sum())(jnp.arange(4)))
    except Exception as error:  # whatever a broken installation raises is the finding
        line = " ".join(str(error).split())
        return [], f"JAX does not start: {line}; pip install --upgrade jax jaxlib"
    kinds = list(dict.fromkeys((device.platform, device.device_kind) for device in found))
    groups = [[d for d in found if (d.platform, d.device_kind) == kind] for kind in kinds]
    devices = [
        DeviceGroup(kind[0], kind[1], len(group), _memory_gib(group[0]))
        for kind, group in zip(kinds, groups)
    ]
    wrong = f"a compiled program gave {answer}; expected 14; the installation of JAX is damaged"
    return devices, None if answer == 14 else wrong


def describe_machine(directory: Path) -> dict[str, str | int | float | None]:
    """Python, system, cores, memory, free disk, and the C++ kernels or why they are not there."""
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": cores,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "disk_free_gib": round(shutil.disk_usage(directory).free / 2**30, 1),
        "cpu_kernels": cpu_kernels(),
    }


def cpu_kernels() -> str:
    """For which CPUs the C++ kernels in use were built, or why none are; see ``kernels.cpu``."""
    from ziggurat.kernels.cpu.library import library

    found = library()
    if not found.path:
        return f"{NO_KERNELS}{found.why_not}"
    return f"{found.level}, {found.threads} threads"


def find_traps(
    devices: Sequence[DeviceGroup],
    versions: Mapping[str, str | None],
    machine: Mapping[str, str | int | float | None],
    environment: Mapping[str, str],
) -> list[str]:
    """Known pitfalls on this machine, each with its remedy."""
    platforms = {device.platform for device in devices}
    traps: list[str] = []
    if versions.get("libtpu") and "tpu" not in platforms and not environment.get("JAX_PLATFORMS"):
        traps.append(
            "libtpu is installed and there is no TPU: JAX tries one first and prints alarming "
            "lines; set JAX_PLATFORMS=cpu"
        )
    for name in ("jax", "jax-cuda13-plugin", "jax-cuda12-plugin"):
        found, jaxlib = versions.get(name), versions.get("jaxlib")
        if found and jaxlib and found != jaxlib:
            traps.append(
                f"{name} {found} beside jaxlib {jaxlib}: they belong together; "
                f"pip install --upgrade {name} jaxlib"
            )
    if NVIDIA_DRIVER.exists() and not platforms & {"gpu", "cuda"}:
        traps.append(
            "an NVIDIA driver is here and JAX sees no GPU; pip install 'ziggurat[cuda]' "
            "and leave JAX_PLATFORMS unset"
        )
    if "--xla_force_host_platform_device_count" in environment.get("XLA_FLAGS", ""):
        traps.append(
            "XLA_FLAGS makes virtual CPU devices, which share the same cores; for tests only"
        )
    disk = machine.get("disk_free_gib")
    if isinstance(disk, float) and disk < LEAST_DISK_GIB:
        traps.append(f"{disk} GiB of disk are free here; checkpoints want {LEAST_DISK_GIB} or more")
    kernels = str(machine.get("cpu_kernels"))
    if platforms == {"cpu"} and kernels.startswith(NO_KERNELS):
        why_not = kernels.removeprefix(NO_KERNELS)
        traps.append(f"no C++ kernels, so training on this CPU is slower: {why_not}")
    return traps


def show(report: DoctorReport) -> None:
    """Print the report as tables."""
    from rich.table import Table

    out = console.output()

    def table(title: str, *columns: str) -> Table:
        return Table(*columns, title=title, title_justify="left", title_style="bold")

    facts = table("machine", "what", "found")
    for name, value in (report.versions | report.plugins | report.machine).items():
        facts.add_row(name, "[red]missing[/]" if value is None else str(value))
    for device in report.devices:
        memory = f", {device.memory_gib} GiB each" if device.memory_gib else ""
        facts.add_row("devices", f"{device.count} x {device.kind} ({device.platform}){memory}")
    commands = table("commands", "command", "state", "missing")
    for name, command in report.commands.items():
        state = "[green]works[/]" if command.works else "[yellow]does not work[/]"
        commands.add_row(name, state, _literal(command.note))
    extras = table("extras", "extra", "state", "missing", "install with")
    for name, extra in report.extras.items():
        state = "[green]installed[/]" if extra.installed else "[yellow]missing[/]"
        extras.add_row(
            name,
            state,
            ", ".join(extra.missing),
            "" if extra.installed else _literal(extra.install),
        )
    out.print(facts)
    out.print(commands)
    out.print(extras)
    for style, label, lines in (
        ("red", "error", report.errors),
        ("yellow", "warning", report.warnings),
    ):
        for line in lines:
            out.print(f"[{style}]{label}:[/] {_literal(line)}", soft_wrap=True, highlight=False)
    verdict = (
        "[green]the core works here[/]" if report.ok else "[red]the core does not work here[/]"
    )
    out.print(verdict)


def _literal(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _memory_gib(device) -> float | None:
    limit = (device.memory_stats() or {}).get("bytes_limit")
    return round(limit / 2**30, 1) if limit else None
