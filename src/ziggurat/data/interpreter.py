"""Fresh interpreters for worker processes.

A worker imports the data package and what it is sent, never the caller's main module: a script
needs no ``if __name__ == "__main__"``, and a worker does not load JAX because its parent did.
"""

import os
import subprocess
import sys
from collections.abc import Sequence

_PROLOGUE = (  # the parent decides when to stop: a worker ends with it
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "signal.signal(signal.SIGTERM, signal.SIG_IGN); "
)


def start(program: str, descriptors: Sequence[int], **environment: str) -> subprocess.Popen:
    """Run ``program`` in a new interpreter with this one's path.

    Args:
        program: Python; it must end when the connection to this process does.
        descriptors: open files that it has too, under the same numbers.
        environment: variables to set in it.
    """
    ours = {
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        "JAX_PLATFORMS": "cpu",  # what does import JAX must not take the accelerator
    }
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _PROLOGUE + program],
        stdin=subprocess.DEVNULL,
        pass_fds=tuple(descriptors),
        env=os.environ | ours | environment,
        process_group=0,  # the terminal's Ctrl-C goes to the parent alone
    )
