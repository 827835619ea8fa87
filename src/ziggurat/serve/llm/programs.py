"""Compiled programs by name: compiled once, ahead of the first call, and kept on disk if asked for.

A file's name is a digest of the program's StableHLO, of the versions of jax, jaxlib and the C++
kernels that it may call, of XLA's flags and of the machine, so another model, shape, version or
processor finds nothing rather than something wrong. Files appear by a rename and carry a digest of
their content: a reader never sees half of one. They are code: keep the directory from others'
hands, as with jax's own cache.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import logging
import os
import pickle
import platform
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable
from jaxtyping import PyTree

from ziggurat.core.compile_cache import passing_by_compile_cache
from ziggurat.core.errors import ConfigError
from ziggurat.core.protocols import Device
from ziggurat.core.pytrees import Leaf
from ziggurat.kernels.cpu.library import library

_log = logging.getLogger(__name__)
DIGEST = 32


class Programs:
    """Compiled functions by name, each for arguments of one shape.

    Args:
        directory: where compiled programs are kept; ``None``: nowhere.
        devices: for which they are; default the first.

    Raises:
        ConfigError: the directory cannot be made.
    """

    def __init__(
        self, directory: str | Path | None = None, devices: Sequence[Device] | None = None
    ):
        devices = jax.devices()[:1] if devices is None else devices
        self._files = None if directory is None else _Files(Path(directory), devices)
        self._makers: dict[str, Callable[[], Any]] = {}
        self._ahead: list[str] = []
        self._made: dict[str, jax.stages.Compiled] = {}
        self._compiling = threading.Lock()
        self.loaded = 0
        """Programs that came from disk."""

    def add(
        self,
        name: str,
        function: Callable[..., Any],
        *arguments: Any,
        donate: int | None = None,
        shardings: PyTree = None,
        on_demand: bool = False,
    ) -> None:
        """Declare a program.

        Args:
            name: to call it by.
            function: what it does.
            arguments: arrays, or their shapes, types and shardings.
            donate: index of the argument that it may overwrite.
            shardings: of its results; default on one device.
            on_demand: compile it at its first call, and not before with all others.
        """

        @functools.wraps(function)
        def own(
            *given: Any,
        ) -> Any:  # a program that JAX has in memory may have come from its cache
            return function(*given)

        donated = () if donate is None else donate
        jitted = jax.jit(own, donate_argnums=donated, out_shardings=shardings)
        abstract = jax.tree.map(_abstract, arguments)
        self._makers[name] = lambda: self._compile(jitted.lower(*abstract))
        if not on_demand:
            self._ahead.append(name)

    def __getitem__(self, name: str) -> jax.stages.Compiled:
        made = self._made.get(name)
        if made is None:
            with self._compiling:
                if name not in self._made:
                    self._made[name] = self._makers[name]()
                made = self._made[name]
        return made

    def compile_all(self, told: Callable[[str, int, int], None] | None = None) -> tuple[int, float]:
        """Compile the programs that are not compiled yet, but those on demand; returns their number
        and the seconds it took.

        Args:
            told: called before each program with its name, how many are done, and all of them.
        """
        begun = time.perf_counter()
        for done, name in enumerate(self._ahead):
            if told is not None:
                told(name, done, len(self._ahead))
            self[name]
        return len(self._ahead), time.perf_counter() - begun

    def _compile(self, lowered: jax.stages.Lowered) -> jax.stages.Compiled:
        if self._files is None:
            return lowered.compile()
        key = _key(lowered)
        found = self._files.read(key, lowered)
        if found is not None:
            self.loaded += 1
            return found
        with passing_by_compile_cache():
            compiled = lowered.compile()
        self._files.write(key, compiled)
        return compiled


class _Files:
    """A directory of serialised executables."""

    def __init__(self, directory: Path, devices: Sequence[Device]):
        self._directory, self._devices = directory, list(devices)
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or error
            what = f"compile cache {directory}"
            raise ConfigError(what, found=reason, expected="a directory") from None

    def read(self, key: str, lowered: jax.stages.Lowered) -> jax.stages.Compiled | None:
        """The program, or ``None`` if it is not there, damaged or of no use here."""
        try:
            content = (self._directory / key).read_bytes()
        except OSError:
            return None
        digest, payload = content[:DIGEST], content[DIGEST:]
        if hashlib.sha256(payload).digest() != digest:
            _log.warning("compile cache: %s is damaged and is made anew", key)
            return None
        try:
            return serialize_executable.deserialize_and_load(
                payload, lowered.in_tree, lowered.out_tree, execution_devices=self._devices
            )
        except Exception as error:  # any reason of XLA's means: compile
            _log.warning("compile cache: %s cannot be loaded (%s) and is made anew", key, error)
            return None

    def write(self, key: str, compiled: jax.stages.Compiled) -> None:
        """Keep a program; a full or lost disk is no reason not to serve."""
        try:
            payload, _, _ = serialize_executable.serialize(compiled)
        except (ValueError, pickle.PicklingError) as error:
            _log.warning("compile cache: a program cannot be kept (%s)", error)
            return
        name = None
        try:
            with tempfile.NamedTemporaryFile(dir=self._directory, delete=False) as file:
                name = file.name
                file.write(hashlib.sha256(payload).digest() + payload)
            os.replace(name, self._directory / key)
        except OSError as error:
            _log.warning("compile cache: %s cannot be written (%s)", key, error)
            with contextlib.suppress(OSError):
                os.unlink(name or "")


def _abstract(leaf: Leaf) -> Leaf:
    where = getattr(leaf, "sharding", None)
    on_mesh = isinstance(where, jax.sharding.NamedSharding)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where if on_mesh else None)


def _key(lowered: jax.stages.Lowered) -> str:
    digest = hashlib.sha256(lowered.as_text().encode())
    digest.update(_environment())
    return digest.hexdigest()[:40]


@functools.cache
def _environment() -> bytes:
    """Versions, flags and device that a compiled program depends on, besides its text."""
    device = jax.devices()[0]
    versions = [importlib.metadata.version(name) for name in ("jax", "jaxlib")]
    facts = [*versions, device.platform, device.device_kind]
    kernels = library().path
    facts += ["" if kernels is None else kernels.name]
    facts += [str(jax.device_count()), os.environ.get("XLA_FLAGS", ""), platform.machine()]
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        facts += [next((line for line in lines if line.startswith("flags")), "")]
    return "\n".join(facts).encode()
