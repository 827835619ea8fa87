"""Directory of a controller: its address, its events, and the ledger of its time.

::

    cluster/
      controller.json   address and secret of the living controller; for its user alone
      lock              held by it
      events.jsonl      one line for each thing that happened, over all controllers
      ledger.jsonl      see ziggurat.cluster.ledger
"""

import fcntl
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

from ziggurat.cluster import messages
from ziggurat.cluster.channel import ChannelClosed, connect
from ziggurat.core import json_lines
from ziggurat.core.errors import ClusterError
from ziggurat.core.json_types import Json, JsonObject

_log = logging.getLogger(__name__)


class ClusterRecord:
    """Files of a controller in a run's directory: events, ledger and address; with ``None`` nothing
    is written.

    Raises:
        ClusterError: another controller that lives has it.
    """

    def __init__(self, directory: Path | None):
        self.directory = directory
        self._lock: int | None = None
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = _take(directory)

    @property
    def ledger(self) -> Path | None:
        """Path of the ledger's file."""
        return None if self.directory is None else self.directory / "ledger.jsonl"

    def reachable(self, address: tuple[str, int], secret: bytes) -> None:
        """Write the address at which commands reach this controller."""
        if self.directory is None:
            return
        content = {"address": address, "secret": secret.hex(), "pid": os.getpid()}
        path = self.directory / "controller.json"
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(content, file)

    def note(self, event: str, **facts: Json) -> None:
        """Append an event."""
        if self.directory is not None:
            line = json.dumps({"time_unix_s": time.time(), "event": event, **facts})
            with open(self.directory / "events.jsonl", "a", encoding="utf-8") as file:
                file.write(line + "\n")

    def close(self) -> None:
        """Release the directory's lock."""
        if self.directory is not None and self._lock is not None:
            (self.directory / "controller.json").unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None


def ask(directory: Path, do: str, **arguments: Any) -> Any:
    """Send a command to the controller that writes ``directory``, and return its answer.

    Raises:
        ClusterError: none lives there, or it refuses.
    """
    try:
        found = json.loads((directory / "controller.json").read_text(encoding="utf-8"))
        host, port = found["address"]
        channel = connect((host, port), bytes.fromhex(found["secret"]))
    except (FileNotFoundError, ClusterError) as error:
        raise ClusterError(
            f"cluster of {directory.parent}",
            found="no controller that answers",
            expected="one that runs on this machine",
            fix="start it: ziggurat cluster run RUN.toml",
        ) from error
    with channel:
        try:
            channel.send(messages.Caller(do, arguments))
            answer = channel.receive()
        except ChannelClosed as error:
            raise ClusterError(
                f"cluster of {directory.parent}", found="a controller that just ended"
            ) from error
    if isinstance(answer, ClusterError):
        raise answer
    return answer


def read_events(directory: Path) -> list[JsonObject]:
    """Read all events in order; a line torn by a kill is left out.

    >>> read_events(Path("nowhere"))
    []
    """
    return json_lines.read_log(directory / "events.jsonl")


def _take(directory: Path) -> int:
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ClusterError(
            f"cluster of {directory.parent}",
            found="another controller that is at work there",
            expected="one",
            fix="look at it with ziggurat cluster status, or end it",
        ) from None
    except OSError as error:
        _log.debug("%s is on a file system without locks: %s", directory, error)
    return descriptor
