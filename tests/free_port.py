"""A port for a coordinator that a test starts in another process.

Below the ephemeral range, so that no connection made meanwhile can take it, and in a slice of its
own for every test process, so that two of them never hand out the same one.
"""

import itertools
import os
import socket

SLICE = 512
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 16
_RANGE = range(20_000 + _WORKER * SLICE, 20_000 + (_WORKER + 1) * SLICE)
# another run of the tests on this machine begins elsewhere
_CANDIDATES = itertools.cycle([*_RANGE[os.getpid() % SLICE :], *_RANGE[: os.getpid() % SLICE]])


def free_port() -> int:
    """A port of this machine that nobody listens on, not given out before."""
    for port in itertools.islice(_CANDIDATES, SLICE):
        with socket.socket() as probe:
            if probe.connect_ex(("localhost", port)):
                return port
    raise RuntimeError(f"no free port from {_RANGE.start} to {_RANGE.stop - 1}")
