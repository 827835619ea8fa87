"""A bundle in memory: verified byte by byte, compiled, and proved by its own golden pairs.

Loading parses JSON, safetensors and StableHLO and runs nothing but XLA: no pickle, no import of the
code that made the bundle, and no custom call but those of
:mod:`~ziggurat.serve.predict.custom_calls`.
"""

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Shaped

from ziggurat.core.errors import CheckpointError
from ziggurat.core.protocols import Device
from ziggurat.formats.safetensors_files import SafetensorsDirectory
from ziggurat.serve.predict import custom_calls as checks
from ziggurat.serve.predict import manifest as manifests
from ziggurat.serve.predict import trial
from ziggurat.serve.predict.manifest import BundleError, BundleManifest, Golden
from ziggurat.serve.predict.program import Arrays, BundleProgram


class LoadedBundle:
    """A loaded bundle that can be called; made by :meth:`load`.

    >>> import tempfile
    >>> from ziggurat.serve.predict import export
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = export(lambda x: 2 * x, None, "x:FP32[b,2] -> y", Path(folder) / "double")
    ...     bundle = LoadedBundle.load(path)
    >>> bundle({"x": np.ones((3, 2), np.float32)})["y"].tolist()
    [[2.0, 2.0], [2.0, 2.0], [2.0, 2.0]]
    """

    def __init__(
        self, path: Path, manifest: BundleManifest, digest: str, programs: Sequence[BundleProgram]
    ):
        self.path, self.manifest, self.digest = path, manifest, digest
        self.programs = tuple(programs)
        """One for each device."""
        self.told = ""
        """Outcome of loading, as a sentence for a log."""

    @classmethod
    def load(
        cls,
        path: Path,
        devices: Sequence[Device] = (),
        batch_sizes: Sequence[int] = (),
        *,
        custom_calls: Sequence[str] = (),
        isolated: bool | None = False,
    ) -> "LoadedBundle":
        """Verify, compile every bucket and replay the golden pairs.

        Args:
            path: the bundle's directory.
            devices: where it shall run; default the first of this process.
            batch_sizes: numbers of rows to compile, ascending; empty: any, compiled when it comes.
            custom_calls: targets of custom calls, by name or pattern, that may be called besides
                XLA's own linear algebra.
            isolated: whether to load it in a child process first, so that a crash ends that one;
                None: if it makes custom calls.

        Raises:
            BundleError: a byte differs, the program does not run here, calls what it may not, or a
                golden pair is not reproduced.
        """
        path, start = Path(path), time.monotonic()
        manifest, digest = manifests.verify(path)
        chosen = list(devices) or jax.local_devices()[:1]
        platform = chosen[0].platform
        here = "cuda" if platform == "gpu" else platform
        if here not in manifest.platforms:
            raise BundleError(
                f"bundle {path}",
                found=f"a program for {', '.join(manifest.platforms)}",
                expected=f"one for this machine's {here}",
                fix=f"export it with {here} among the platforms",
            )
        if isolated:
            trial.load(path, manifest, batch_sizes, custom_calls)
        exported = _program(path)
        called = checks.check(exported, path, custom_calls)
        if called and isolated is None:
            trial.load(path, manifest, batch_sizes, custom_calls)
        weights = _weights(path, manifest)
        programs = [BundleProgram(exported, manifest, weights, d, batch_sizes) for d in chosen]
        made = cls(path, manifest, digest, programs)
        compiled = made._warm_up()
        for program in programs:
            made._replay(program, here)
        made.told = (
            f"{len(manifest.files) + 1} files verified, {compiled} programs compiled, "
            f"{manifest.golden.cases} golden pairs reproduced in {time.monotonic() - start:.1f} s"
        )
        return made

    def __call__(self, inputs: Arrays) -> dict[str, Shaped[np.ndarray, "..."]]:
        """Outputs by name for one set of inputs, on the first device.

        Raises:
            ServeError: a shape does not fit the signature.
        """
        return self.programs[0].run(inputs)

    def _warm_up(self) -> int:
        work = [(program, sizes) for program in self.programs for sizes in program.buckets()]
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1), "compile") as pool:
            for _ in pool.map(lambda pair: pair[0].compile(pair[1]), work):
                pass
        return len(work)

    def _replay(self, program: BundleProgram, platform: str) -> None:
        golden, signature = self.manifest.golden, self.manifest.signature
        for number in range(golden.cases):
            inputs, outputs = read_case(self.path, number)
            if set(inputs) != {t.name for t in signature.inputs}:
                raise BundleError(
                    f"bundle {self.path}: golden pair {number}",
                    found=f"inputs {', '.join(inputs)}",
                    expected="those of the signature",
                )
            actual = program.run(inputs)
            for name, wanted in outputs.items():
                compare(
                    actual[name],
                    wanted,
                    golden,
                    platform,
                    f"bundle {self.path}: golden pair {number}: output {name}",
                )


def compare(
    actual: Shaped[np.ndarray, "..."],
    wanted: Shaped[np.ndarray, "..."],
    golden: Golden,
    platform: str,
    what: str,
) -> None:
    """Raise a :class:`BundleError` unless an output is within the tolerance of :class:`Golden`."""
    if actual.shape != wanted.shape or actual.dtype != wanted.dtype:
        raise BundleError(
            what,
            found=f"{actual.dtype}{list(actual.shape)}",
            expected=f"{wanted.dtype}{list(wanted.shape)}",
        )
    if wanted.dtype.kind in "biu":
        different = int(np.sum(actual != wanted))
        if different:
            raise BundleError(
                what, found=f"{different} of {wanted.size} values differ", expected="equal values"
            )
        return
    a, b = actual.astype(np.float64), wanted.astype(np.float64)
    finite = np.isfinite(b)
    scale = float(np.max(np.abs(b[finite]), initial=0.0))
    allowed = golden.atol + golden.rtol * scale
    allowed *= 1.0 if platform == golden.platform else golden.elsewhere
    same = np.array_equal(np.where(finite, 0, b), np.where(np.isfinite(a), 0, a), equal_nan=True)
    error = float(np.max(np.abs(np.where(finite, a - b, 0)), initial=0.0)) if same else np.inf
    if not error <= allowed:
        raise BundleError(
            what,
            found=f"a difference of {error:.2e}",
            expected=f"at most {allowed:.2e}",
            fix="the program does not compute here what it computed when exported",
        )


def read_case(path: Path, number: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Read inputs and outputs of one golden pair.

    Raises:
        BundleError: it is not there or not readable.
    """
    try:
        stored = SafetensorsDirectory(path / manifests.GOLDEN, stem=f"case-{number}")
    except CheckpointError as error:
        raise BundleError(f"bundle {path}: golden pair {number}: {error}") from None
    sides: dict[str, dict[str, np.ndarray]] = {"inputs": {}, "outputs": {}}
    for name in stored:
        side, _, tensor = name.partition("/")
        if side not in sides:
            raise BundleError(
                f"bundle {path}: golden pair {number}",
                found=f"tensor {name}",
                expected="inputs/NAME or outputs/NAME",
            )
        sides[side][tensor] = stored.read(name)
    return sides["inputs"], sides["outputs"]


def _program(path: Path) -> Any:
    from jax import export

    blob = bytearray((path / manifests.PROGRAM).read_bytes())
    try:
        return export.deserialize(blob)
    except Exception as error:  # the parser tells a newer format by many kinds
        raise BundleError(
            f"bundle {path}: {manifests.PROGRAM}",
            found=f"{type(error).__name__}: {error}",
            expected=f"a program that jax {jax.__version__} reads",
            fix="install a newer jax",
        ) from None


def _weights(path: Path, manifest: BundleManifest) -> dict[str, np.ndarray]:
    """Weights copied out of the mapped files: the bytes that were verified stay what they are even
    if somebody writes to the file of a bundle that serves."""
    if not manifest.weights:
        return {}
    try:
        stored = SafetensorsDirectory(path / manifests.WEIGHTS)
        arrays = {entry.name: np.array(stored.read(entry.name)) for entry in manifest.weights}
    except CheckpointError as error:
        raise BundleError(f"bundle {path}: {error}") from None
    for entry in manifest.weights:
        array = arrays[entry.name]
        if (str(array.dtype), array.shape) != (entry.dtype, entry.shape):
            raise BundleError(
                f"bundle {path}: weight {entry.name}",
                found=f"{array.dtype}{list(array.shape)}",
                expected=f"{entry.dtype}{list(entry.shape)}",
            )
    return arrays
