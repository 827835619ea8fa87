"""Which run a checkpoint directory belongs to, for what is kept of it elsewhere.

Snapshots in memory are found by the path of the directory. A snapshot that outlived its run must
not be taken for one of the next run in a directory of the same name. What the caller says of the
run is therefore joined with a name that is drawn in the directory: a directory removed and made
anew forgets its snapshots, even if the run file is the same.

The name is drawn anew when the number of processes is another than before. Snapshots of two
processes may outlive a spell with one, which went back to an older step on disk and on from there;
taken up again by two, they would leave out the steps that the one has not come to.
"""

import uuid
from collections.abc import Callable
from pathlib import Path

import xxhash

from ziggurat.core import atomic
from ziggurat.core.errors import CheckpointError
from ziggurat.mesh import Processes

NAME = ".identity"
"""The file that holds the drawn name."""


def run_identity(
    directory: Path, given: str | None, processes: Processes, claim: Callable[[], None]
) -> str:
    """Digest of the caller's facts about the run and of the random name drawn in its directory.

    Args:
        directory: of the checkpoints; made if it is not there.
        given: tells this run from others, for instance by the digest of its run file.
        processes: those that train together; the first draws the name.
        claim: makes the first process the writer of the directory, so that no other one sweeps the
            file while it is being written.

    Raises:
        CheckpointError: nothing was given, the directory cannot be written to, or another run is
            saving there.
    """
    if not given:
        raise CheckpointError(
            "snapshots in memory",
            found="no identity of the run",
            expected="a text that no other run in this directory has",
            fix="pass identity=...",
        )

    def drawn() -> str:
        path = directory / NAME
        try:
            claim()
            known = path.read_text(encoding="utf-8") if path.exists() else ""
            if known.partition(" ")[2] != str(processes.count):
                known = f"{uuid.uuid4().hex} {processes.count}"
                atomic.write_file(path, known)
            return known
        except OSError as error:
            raise CheckpointError(
                f"checkpoint directory {directory}", found=error, expected="a writable directory"
            ) from error

    name = processes.once("checkpoint identity", drawn)
    return xxhash.xxh3_128_hexdigest(f"{given}\0{name}".encode())
