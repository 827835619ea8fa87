"""Loading a bundle in a child process first, so that a crash there is an error here.

XLA's compiler and the libraries that a program calls are native code; what a bundle's author has
made them do shows in the child. It loads the bundle as the server would, on the CPU, with the same
sizes.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from ziggurat.serve import turns
from ziggurat.serve.predict.manifest import BundleError, BundleManifest

SECONDS = 600
"""How long loading may take in the child."""
REFUSED = 2
"""Exit code of a child that refused the bundle; the last line of its stderr says why."""
_turn = threading.Lock()
"""One child at a time: each takes a core, and the memory of a runtime and of the bundle."""
_NICE = 19
"""Niceness of the child: below the server and the gRPC front."""
CHILD = "ziggurat.serve.predict.trial_child"
"""The child's program. It loads bundles, so it stands above the module that calls this one."""


def load(
    path: Path, manifest: BundleManifest, batch_sizes: Sequence[int], allowed: Sequence[str] = ()
) -> None:
    """Load a bundle in a child process; without a program for the CPU nothing is tried.

    Raises:
        BundleError: the child refused it, crashed, or did not end.
    """
    if "cpu" not in manifest.platforms:
        return
    asked = json.dumps([str(path), list(batch_sizes), list(allowed)])
    command = [sys.executable, "-m", CHILD, asked]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    try:
        with _turn:
            code, said = _run(command, environment)
    except subprocess.TimeoutExpired:
        raise BundleError(
            f"bundle {path}", found=f"no end of loading in {SECONDS} s", expected="a smaller one"
        ) from None
    except OSError as error:
        raise BundleError(
            f"bundle {path}",
            found=f"no child process to try it in: {error.strerror}",
            expected="one",
            fix="try again later",
        ) from None
    if code == 0:
        return
    lines = said.decode("utf-8", "replace").strip().splitlines()
    last = lines[-1][:500] if lines else ""
    if code == REFUSED:
        raise BundleError(last)
    ended = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    raise BundleError(
        f"bundle {path}",
        found=f"the process that tried it ended with {ended}",
        expected="a bundle that loads",
        fix="do not serve it",
    )


def _run(command: Sequence[str], environment: Mapping[str, str]) -> tuple[int, bytes]:
    """Exit code of a child and what it wrote to stderr."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, env=environment) as child:
        turns.raise_nice(child.pid, _NICE)
        try:
            _, said = child.communicate(timeout=SECONDS)
        except BaseException:
            child.kill()
            raise
    return child.returncode, said
