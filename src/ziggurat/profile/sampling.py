"""When a running job traces a step: rarely enough to cost nothing that shows."""

import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from ziggurat.core import atomic, config
from ziggurat.profile.timers import StepTimer
from ziggurat.profile.trace import can_trace, origins, tracing

_log = logging.getLogger(__name__)

MODULES = "modules.json"
"""File beside the traces: the named scope of every instruction of the step's program."""


@config.node
class ProfileConfig:
    """Settings of tracing one step now and then; the rest of profiling is always on."""

    trace: bool = True
    """Whether to take any."""
    trace_after_s: float = 30.0
    """Seconds of stepping before the first."""
    trace_every_s: float = 600.0
    """Seconds between two: one takes about a quarter of a second."""

    def __post_init__(self):
        for name in ("trace_after_s", "trace_every_s"):
            config.require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")


class TraceSampler:
    """Sampler that traces a step now and then.

    Args:
        settings: when.
        directory: where traces go; the newest replaces the one before.
        timer: tells the time; a trace's own cost is its phase ``trace``.
        program: text of the compiled step, asked for once.
    """

    def __init__(
        self,
        settings: ProfileConfig,
        directory: Path,
        timer: StepTimer,
        program: Callable[[], str],
    ):
        self._settings, self._directory = settings, directory
        self._timer, self._program = timer, program
        self._due_s = timer.wall_s() + settings.trace_after_s
        self._wanted = settings.trace

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Trace this block, one step from its launch to its results, if a trace is due."""
        if not self._wanted or self._timer.wall_s() < self._due_s:
            yield
            return
        with self._timer.phase("trace"):
            recording = self._begin()
        try:
            yield
        finally:
            with self._timer.phase("trace"):
                recording.close()
            self._due_s = self._timer.wall_s() + self._settings.trace_every_s

    def _begin(self) -> contextlib.ExitStack:
        """A trace that has begun, or nothing where none can be taken: that stops no training."""
        recording = contextlib.ExitStack()
        try:
            if not can_trace():
                raise RuntimeError("libtpu is loaded, and there is no TPU")
            self._directory.mkdir(parents=True, exist_ok=True)
            modules = json.dumps(origins(self._program()))
            atomic.write_file(self._directory / MODULES, modules)
            recording.enter_context(tracing(self._directory))
        except (OSError, RuntimeError) as error:  # e.g. someone else is tracing this process
            _log.warning("no trace of a step can be taken: %s", error)
            self._wanted = False
        return recording
