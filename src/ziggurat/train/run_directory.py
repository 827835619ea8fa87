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
      report.html        written at the end
"""

import dataclasses
import json
import time
import uuid
from pathlib import Path
from typing import Any

from ziggurat.core import atomic, config, json_lines
from ziggurat.core.config import Resolved
from ziggurat.train.config import RunConfig, check_same_run


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """Paths inside a run's directory."""

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

    def open(self, run: Resolved[RunConfig]) -> str:
        """Make the directory and write the run file, or check that it is the same run.

        Returns:
            What tells this run from another one in a directory of the same name.

        Raises:
            ConfigError: the directory holds a run with other deciding settings.
        """
        if self.run_file.exists():
            check_same_run(config.load(RunConfig, self.run_file).value, run.value)
        self.path.mkdir(parents=True, exist_ok=True)
        atomic.write_file(self.run_file, config.to_toml(run.value))
        sources = {key: source for key, _, source in run.table()}
        atomic.write_file(self.provenance, json.dumps(sources, indent=1))
        if not self.identity_file.exists():
            atomic.write_file(self.identity_file, uuid.uuid4().hex)
        return self.identity_file.read_text(encoding="utf-8")

    def start_session(self, step: int) -> None:
        """Note that the run was started, or resumed at ``step``."""
        line = json.dumps({"step": step, "time": time.strftime("%Y-%m-%d %H:%M:%S %Z")})
        with open(self.sessions, "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def read_sessions(self) -> list[dict[str, Any]]:
        """All starts so far; a line torn by a kill is passed over."""
        return json_lines.read_log(self.sessions)
