"""Servers on loopback for the commands that show the others, ``demo`` and ``tour``."""

import socket
import urllib.request


def free_port() -> int:
    """A port of loopback that nobody uses just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def is_ready(address: str) -> bool:
    """Whether the server there says that it is ready."""
    try:
        with urllib.request.urlopen(f"{address}/ready", timeout=2) as response:
            return response.status == 200
    except OSError:
        return False
