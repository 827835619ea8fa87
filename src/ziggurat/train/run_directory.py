"""The files of a run, by name.

::

    runs/NAME/
      run.toml           the resolved configuration
      identity           drawn when the directory was made; what belongs to this run carries it
      provenance.json    where each of its values came from
      checkpoints/       step_00000100/ ...
      metrics.jsonl      one line a step
      ledger.jsonl       where the time went, a line a second
      traces/            the newest traced step
      tensorboard/       the same for TensorBoard
      sessions.jsonl     one line each time the run was started or resumed
      saved.json         the newest step known to be saved: a run without it starts at step 0
      report.html        written at the end
      earlier-1/         all of the above of an attempt that ``--restart`` set aside

Nothing is written before the settings and the data are checked, and a run that never made a step
takes any settings.
"""

import contextlib
import dataclasses
import errno
import itertools
import json
import os
import time
import uuid
from pathlib import Path

from ziggurat.core import atomic, config, json_lines
from ziggurat.core.config import Resolved
from ziggurat.core.errors import TrainError
from ziggurat.core.json_types import JsonObject
from ziggurat.core.storage import storage_error
from ziggurat.train.config import RunConfig
from ziggurat.train.resuming import check_same_run


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """Files of a run: run file, metrics, sessions, report and checkpoints."""

    path: Path

    @property
    def run_file(self) -> Path:
        return self.path / "run.toml"

    @property
    def identity_file(self) -> Path:
        return self.path / "identity"

    @property
    def provenance(self) -> Path:
        return self.path / "provenance.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def ledger(self) -> Path:
        return self.path / "ledger.jsonl"

    @property
    def traces(self) -> Path:
        return self.path / "traces"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def sessions(self) -> Path:
        return self.path / "sessions.jsonl"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def saved(self) -> Path:
        return self.path / "saved.json"

    def has_steps(self) -> bool:
        """Whether the run has made a step, by the files in its directory."""
        with contextlib.suppress(FileNotFoundError):
            if b"\n" in self.metrics.read_bytes():
                return True
        steps = self.checkpoints.glob("step_*") if self.checkpoints.is_dir() else ()
        return self.saved.exists() or any(steps)

    def check(self, run: Resolved[RunConfig]) -> str:
        """Refuse settings that differ in result from those of the steps already made; writes
        nothing.

        Returns:
            The run file under which its steps were made, as TOML; empty if it has none.

        Raises:
            ConfigError: the directory holds a run with other deciding settings.
            StorageError: the directory cannot be made or read.
        """
        before = ""
        if self.run_file.exists() and self.has_steps():
            check_same_run(config.load(RunConfig, self.run_file).value, run.value)
            before = self.run_file.read_text(encoding="utf-8")
        existing = next(place for place in (self.path, *self.path.parents) if place.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            number = errno.EACCES if existing.is_dir() else errno.ENOTDIR
            refused = OSError(number, os.strerror(number), str(existing))
            raise storage_error(f"run directory {self.path}", refused)
        return before

    def identify(self) -> str:
        """Create the directory and return an identifier that tells this run from an earlier one of
        the same name.

        Raises:
            OSError: the directory cannot be made or written to.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if not self.identity_file.exists():
            atomic.write_file(self.identity_file, uuid.uuid4().hex)
        return self.identity_file.read_text(encoding="utf-8")

    def publish(self, run: Resolved[RunConfig], step: int) -> None:
        """Write the run file and record the start, or the resumption at ``step``; called after
        everything is checked."""
        sources = {key: source for key, _, source in run.table()}
        atomic.write_file(self.provenance, json.dumps(sources, indent=1))
        atomic.write_file(self.run_file, config.to_toml(run.value))
        self.start_session(step)

    def check_saved(self, newest: int | None) -> None:
        """Refuse to start at step 0 when a checkpoint was saved and none is left.

        Args:
            newest: the newest step that any tier has; None for none.

        Raises:
            TrainError: the checkpoints are gone.
        """
        if newest is not None or not self.saved.exists():
            return
        raise TrainError(
            f"run {self.path} cannot be resumed",
            found=f"no checkpoint, though step {_saved_step(self.saved)} was saved",
            expected=f"it in {self.checkpoints} or in the persistent store",
            fix="bring the checkpoints back (is a disk not mounted?); or begin anew under another "
            "name, or with --restart, which keeps the files of this attempt in earlier-1",
        )

    def note_saved(self, step: int) -> None:
        """Record that a checkpoint of ``step`` is saved."""
        if _saved_step(self.saved) != step:
            atomic.write_file(self.saved, json.dumps({"step": step}))

    def set_aside(self) -> Path | None:
        """Move the files of this attempt into ``earlier-N/``; returns it, None if there are none.

        What tells that the run was saved goes last: killed midway, the next start is refused, or
        sets the rest aside.
        """
        rest = (self.run_file, self.provenance, self.ledger, self.traces, self.tensorboard)
        moved = (self.metrics, *rest, self.sessions, self.report, self.identity_file, self.saved)
        there = [path for path in moved if path.exists()]
        if not there:
            return None
        taken = (self.path / f"earlier-{number}" for number in itertools.count(1))
        target = next(path for path in taken if not path.exists())
        target.mkdir()
        for path in there:
            os.rename(path, target / path.name)
        return target

    def start_session(self, step: int) -> None:
        """Record that the run was started, or resumed at ``step``."""
        line = json.dumps({"step": step, "time": time.strftime("%Y-%m-%d %H:%M:%S %Z")})
        with open(self.sessions, "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def read_sessions(self) -> list[JsonObject]:
        """Read all recorded starts; a line torn by a kill is left out."""
        return json_lines.read_log(self.sessions)


def _saved_step(file: Path) -> int | None:
    try:
        return json.loads(file.read_text(encoding="utf-8"))["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
