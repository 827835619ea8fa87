"""Building the C++ library; the standard library only, since the package's build calls it too.

A library is built for a *level*, a set of CPU features with a name. Its file carries the level and
a digest of all that went into it (sources, flags, the major version of XLA's interface), so that a
library of other sources is never taken for this one. The interface's minor version is not part of
it: XLA runs a library built against an older minor version, so one wheel serves many jaxlibs.
"""

import concurrent.futures
import functools
import hashlib
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ziggurat.core.errors import EnvironmentError

SOURCE = Path(__file__).parent / "source"
LIBRARY = Path(__file__).parent / "library"
"""Where libraries lie in an installed package."""
FLAGS: tuple[str, ...] = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-Wno-psabi",
    "-pthread",
)
"""No ``-ffast-math``: a NaN must stay one."""


class Level(NamedTuple):
    """A set of CPU instructions for which a library is built."""

    name: str
    machine: str
    """As ``platform.machine()`` says it."""
    features: frozenset[str]
    """CPU features that the level needs, in the words of ``/proc/cpuinfo``."""
    flags: tuple[str, ...]


_AVX2 = frozenset({"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe"})
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_WIDE = "-mprefer-vector-width=512"
LEVELS: tuple[Level, ...] = (
    Level(
        "x86-64-v4-vnni",
        "x86_64",
        _AVX512 | {"avx512_vnni"},
        ("-march=x86-64-v4", "-mavx512vnni", _WIDE),
    ),
    Level("x86-64-v4", "x86_64", _AVX512, ("-march=x86-64-v4", _WIDE)),
    Level("x86-64-v3", "x86_64", _AVX2, ("-march=x86-64-v3",)),
    Level("aarch64", "aarch64", frozenset(), ()),
    Level("arm64", "arm64", frozenset(), ()),
)
"""Best first. A CPU below all of them gets no library: XLA's own code is as good there."""


def cpu_features() -> frozenset[str]:
    """Features of this machine's CPU, as Linux lists them; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return frozenset(found[1].split()) if found else frozenset()


def levels(machine: str | None = None, features: frozenset[str] | None = None) -> tuple[Level, ...]:
    """Levels that a CPU can run, best first; default this machine's.

    >>> [level.name for level in levels("x86_64", frozenset({"avx2", "fma", "bmi1", "bmi2",
    ...     "f16c", "movbe"}))]
    ['x86-64-v3']
    """
    machine = machine or platform.machine()
    features = cpu_features() if features is None else features
    return tuple(x for x in LEVELS if x.machine == machine and x.features <= features)


def include_directory() -> Path | None:
    """The headers of XLA's foreign function interface, which jaxlib carries."""
    spec = importlib.util.find_spec("jaxlib")
    for place in (spec and spec.submodule_search_locations) or ():
        if (Path(place) / "include/xla/ffi/api/ffi.h").is_file():
            return Path(place) / "include"
    return None


def interface_version() -> tuple[int, int] | None:
    """The installed jaxlib's version of that interface, (major, minor); ``None`` without jaxlib."""
    include = include_directory()
    if include is None:
        return None
    text = (include / "xla/ffi/api/c_api.h").read_text(encoding="utf-8")
    parts = [re.search(rf"#define XLA_FFI_API_{part} (\d+)", text) for part in ("MAJOR", "MINOR")]
    major, minor = [int(part[1]) if part else 0 for part in parts]
    return major, minor


@functools.cache
def digest() -> str:
    """Digest of sixteen hexadecimal digits over everything that decides the build."""
    flags = FLAGS, [(level.name, level.flags) for level in LEVELS]
    version = interface_version()
    state = hashlib.sha256(repr((flags, version and version[0])).encode())
    for path in sorted(SOURCE.iterdir()):
        state.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return state.hexdigest()[:16]


def file_name(level: Level) -> str:
    """File name of the library of these sources for a level."""
    return f"cpu-{level.name}-{digest()}.so"


def compiler(environment: Mapping[str, str] = os.environ) -> list[str] | None:
    """The C++ compiler's command: ``CXX`` if set, else g++ or clang++; ``None`` without any."""
    named = shlex.split(environment.get("CXX", ""))
    for command in [named] if named else [["g++"], ["clang++"], ["c++"]]:
        found = shutil.which(command[0], path=environment.get("PATH"))
        if found:
            return [found, *command[1:]]
    return None


def build(
    level: Level, directory: Path = LIBRARY, environment: Mapping[str, str] = os.environ
) -> Path:
    """Compile all sources for a level, a process a file, and link them; seconds to a minute.

    Returns:
        The library. It appears under its name only when it is whole.

    Raises:
        EnvironmentError: no compiler, no jaxlib, or the compiler failed.
    """
    command, include = compiler(environment), include_directory()
    if command is None:
        raise EnvironmentError(
            "building the CPU kernels",
            found="no C++ compiler",
            expected="CXX, g++ or clang++",
            fix="install g++; without it XLA's own code is used",
        )
    if include is None:
        raise EnvironmentError(
            "building the CPU kernels", found="no jaxlib", expected="its headers", fix="install jax"
        )
    flags = [*FLAGS, *level.flags, f"-I{SOURCE}", f"-isystem{include}"]
    flags.append(f'-DZIGGURAT_DIGEST="{digest()}"')
    directory.mkdir(parents=True, exist_ok=True)
    final = directory / file_name(level)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".building-") as folder:
        sources = sorted(SOURCE.glob("*.cc"), key=lambda path: -path.stat().st_size)
        objects = [Path(folder) / f"{path.stem}.o" for path in sources]
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            jobs = [
                pool.submit(_call, [*command, *flags, "-c", str(source), "-o", str(target)])
                for source, target in zip(sources, objects)
            ]
            for job in jobs:
                job.result()
        library = Path(folder) / final.name
        _call([*command, "-shared", "-pthread", *map(str, objects), "-o", str(library)])
        os.replace(library, final)
    return final


def remove_stale(directory: Path = LIBRARY) -> list[Path]:
    """Remove libraries of other sources from a directory; returns what was removed."""
    stale = stale_libraries(directory)
    for path in stale:
        path.unlink(missing_ok=True)
    return stale


def stale_libraries(directory: Path = LIBRARY) -> list[Path]:
    """Libraries there that were built from other sources or flags."""
    return [x for x in sorted(directory.glob("cpu-*.so")) if not x.stem.endswith(digest())]


def _call(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        wrong = next((line for line in lines if "error" in line), lines[-1])
        raise EnvironmentError(
            "building the CPU kernels",
            found=wrong,
            expected=f"{Path(command[0]).name} to compile them",
            fix="a newer compiler, or set CXX; without the kernels XLA's own code is used",
        )
