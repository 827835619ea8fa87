"""Processes that make parts of a token store, each one unit of work at a time."""

import contextlib
import pickle
import socket
import subprocess
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ziggurat.core.errors import DataError
from ziggurat.core.protocols import Tokenizer
from ziggurat.data import interpreter
from ziggurat.data.encode import DocumentEncoder
from ziggurat.data.parts import StorePart, write_part
from ziggurat.data.sources import Source
from ziggurat.data.sources.reading import Unit


class PrepareWorker:
    """A worker process that tokenises, as its parent sees it.

    Args:
        job: what :func:`packed` made.
    """

    def __init__(self, job: bytes):
        ours, theirs = socket.socketpair()
        self.connection = Connection(ours.detach())
        with theirs:
            self.process = interpreter.start(
                f"from ziggurat.data.prepare_worker import main; main({theirs.fileno()})",
                [theirs.fileno()],
                # Each worker is one of many: the tokenizer's own threads would only add to them.
                TOKENIZERS_PARALLELISM="false",
                RAYON_NUM_THREADS="1",
            )
        self.number = -1
        with contextlib.suppress(OSError):
            self.connection.send_bytes(job)

    def give(self, number: int, source: Source, unit: Unit, path: Path) -> None:
        """Order the part of one unit; if the process is dead, receiving reports it."""
        self.number = number
        with contextlib.suppress(OSError):
            self.connection.send((source, unit, path))

    def end(self, patience: float = 0.0) -> int:
        """End the process; returns its exit code, minus the signal that killed it.

        Args:
            patience: seconds to let it end by itself.
        """
        self.connection.close()
        try:
            return self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def packed(tokenizer: Tokenizer, learn: bool) -> bytes:
    """Pickle the settings that a worker receives first.

    Raises:
        DataError: the tokenizer cannot be sent to a process.
    """
    try:
        return pickle.dumps((tokenizer, learn))
    except Exception as error:  # pickling runs the object's own code
        raise DataError(
            f"tokenizer {type(tokenizer).__name__}",
            found=f"{type(error).__name__}: {error}",
            expected="one that can be pickled",
            fix="or use no worker processes",
        ) from None


def main(descriptor: int) -> None:
    """Run a worker process: make parts until the parent closes the connection."""
    connection = Connection(descriptor)
    # A closed connection: whoever wanted the parts is gone.
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        encoder, learn = _first(connection)
        while encoder is not None:
            source, unit, path = connection.recv()
            connection.send(_make(connection, source, unit, path, encoder, learn))


def _first(connection: Connection) -> tuple[DocumentEncoder | None, bool]:
    content = connection.recv_bytes()
    try:
        tokenizer, learn = pickle.loads(content)
    except Exception as error:
        what = f"tokenizer in a worker process: found {type(error).__name__}: {error}"
        fix = "define its class in a module, or use no worker processes"
        connection.send(("failed", DataError(what, expected="one that can be loaded", fix=fix)))
        return None, False
    return DocumentEncoder(tokenizer), learn


def _make(
    connection: Connection,
    source: Source,
    unit: Unit,
    path: Path,
    encoder: DocumentEncoder,
    learn: bool,
) -> tuple[str, Any]:
    def tell(documents: int, tokens: int) -> None:
        connection.send(("told", (documents, tokens)))

    try:
        part: StorePart = write_part(source, unit, path, encoder, learn, tell)
    except (BrokenPipeError, ConnectionResetError):
        raise
    except Exception as error:
        return "failed", error
    return "made", part
