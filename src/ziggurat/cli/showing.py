"""What commands that show the others need: the recipes, and a server of their own on loopback."""

import socket
import urllib.request
from pathlib import Path


def recipes() -> Path:
    """The run files, from the installed package or from the checkout."""
    package = Path(__file__).parents[1]
    places = [package / "recipes", package.parents[1] / "recipes"]
    return next(place for place in places if place.is_dir())


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
