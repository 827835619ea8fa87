"""Finding the built library and giving its handlers to XLA.

It is looked for beside the package's sources, where installing puts it, and in the user's cache,
where ``ziggurat kernels build`` puts it when the former cannot be written. Only a library of
exactly these sources, for a level that this CPU has, is loaded; an older jaxlib may
have built it, if its interface to XLA has the same major version.
"""

import ctypes
import dataclasses
import functools
import os
import threading
from pathlib import Path
from typing import Any

from ziggurat.core.errors import ConfigError
from ziggurat.kernels.cpu import build

SWITCH = "ZIGGURAT_CPU_KERNELS"
"""Environment variable: ``off`` leaves the library alone, ``auto`` (default) uses it if there."""
PREFIX = "ziggurat_"
"""Prefix of the names under which XLA knows the handlers."""
_LOCK = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Library:
    """Library of C++ kernels, or the reason why there is none."""

    path: Path | None
    """The library that is loaded, if any."""
    level: str | None
    """Instruction-set level of the library."""
    targets: frozenset[str]
    """Names of the library's operations."""
    why_not: str
    """Reason that no library is loaded, and what to do; empty when one is."""
    threads: int = 0
    """Threads of its pool."""


def directories() -> list[Path]:
    """Directories searched for libraries, in order."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return [build.LIBRARY, Path(cache) / "ziggurat" / "kernels"]


def writable_directory() -> Path:
    """First of :func:`directories` that can be written."""
    for directory in directories():
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(directory, os.W_OK):
            return directory
    return directories()[-1]


@functools.cache
def library() -> Library:
    """Load and register the library on first use, and return it.

    Raises:
        ConfigError: the switch in the environment is neither ``auto`` nor ``off``.
    """
    switch = os.environ.get(SWITCH, "auto")
    if switch not in ("auto", "off"):
        raise ConfigError(SWITCH, found=repr(switch), expected="auto or off")
    if switch == "off":
        return _without(f"{SWITCH}=off")
    levels = build.levels()
    if not levels:
        return _without("no kernels for this kind of CPU: they need AVX2, AVX-512 or 64-bit ARM")
    for level in levels:
        for directory in directories():
            path = directory / build.file_name(level)
            if path.is_file():
                return _load(path, level)
    stale = any(build.stale_libraries(directory) for directory in directories())
    what = "built from other sources" if stale else "not built"
    if build.compiler() is None:
        return _without(
            f"{what}, and no C++ compiler is here; install g++, then ziggurat kernels build"
        )
    return _without(f"{what}; run ziggurat kernels build")


def available(name: str) -> bool:
    """Whether an operation of the library can be called in this process.

    >>> available("no_such_operation")
    False
    """
    return name in library().targets


def _without(why: str) -> Library:
    return Library(None, None, frozenset(), why)


def _load(path: Path, level: build.Level) -> Library:
    with _LOCK:
        return _loaded(path, level)


@functools.cache  # XLA takes a handler under a name once
def _loaded(path: Path, level: build.Level) -> Library:
    try:
        opened = ctypes.CDLL(str(path))
        digest, minor = opened.ziggurat_digest, opened.ziggurat_interface_minor
    except (OSError, AttributeError) as error:
        return _without(f"{path.name} does not load: {error}; run ziggurat kernels build")
    digest.restype = ctypes.c_char_p
    if digest().decode() != build.digest():
        return _without(f"{path.name} is not what its name says; run ziggurat kernels build")
    minor.restype = ctypes.c_int64
    version = build.interface_version()
    if version is None or minor() > version[1]:
        found = "none" if version is None else f"{version[0]}.{version[1]}"
        return _without(
            f"{path.name} was built for minor version {minor()} of XLA's interface and jaxlib has "
            f"{found}; run ziggurat kernels build"
        )
    opened.ziggurat_threads.restype = ctypes.c_int64
    targets = frozenset(_register(opened))
    return Library(path, level.name, targets, "", opened.ziggurat_threads())


def _register(opened: Any) -> list[str]:
    """Give every handler of the table to XLA; returns their names."""
    import jax

    opened.ziggurat_handler_count.restype = ctypes.c_int64
    opened.ziggurat_handler_name.restype = ctypes.c_char_p
    opened.ziggurat_handler_address.restype = ctypes.c_void_p
    for function in (opened.ziggurat_handler_name, opened.ziggurat_handler_address):
        function.argtypes = [ctypes.c_int64]
    names = []
    for place in range(opened.ziggurat_handler_count()):
        name = opened.ziggurat_handler_name(place).decode()
        address = ctypes.c_void_p(opened.ziggurat_handler_address(place))
        capsule = jax.ffi.pycapsule(address)
        jax.ffi.register_ffi_target(PREFIX + name, capsule, platform="cpu")
        names.append(name)
    return names
