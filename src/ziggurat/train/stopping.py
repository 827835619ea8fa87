"""Stopping when asked: SIGTERM and Ctrl-C end the run after the step under way, on all processes
after the same one."""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator

from ziggurat.mesh import Processes

_log = logging.getLogger(__name__)
LATE = 3
"""Exit code of a run that could not save within its time."""


class StopRequest:
    """Request to stop, set by a signal and read by the loop between steps.

    With several processes JAX's preemption service carries a SIGTERM of any of them to all, and
    names one step after which all stop.

    Args:
        within_s: time from the request to the end of the run, after which the process is ended
            with exit code 3 and what was saved before stays; None waits without end (seconds).
        processes: those that train together.

    >>> stop = StopRequest()
    >>> stop.after(7)
    False
    """

    def __init__(self, within_s: float | None = None, processes: Processes | None = None):
        self.signal: signal.Signals | None = None
        self._within_s = within_s
        self._processes = processes or Processes()
        self._timer: threading.Timer | None = None

    def after(self, step: int) -> bool:
        """Whether the run is to end after ``step`` steps; all processes agree."""
        if self.signal is None and self._processes.count > 1:
            from jax.experimental import multihost_utils

            if multihost_utils.reached_preemption_sync_point(step):
                self._ask(signal.SIGTERM)
        return self.signal is not None

    @contextlib.contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Catch SIGTERM and SIGINT in this block; a second SIGINT interrupts at once.

        Outside the main thread nothing is caught, since Python allows handlers only there.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        # Among several processes SIGTERM belongs to JAX' preemption service.
        caught = [signal.SIGINT] + ([signal.SIGTERM] if self._processes.count == 1 else [])
        old = {number: signal.signal(number, self._receive) for number in caught}
        try:
            yield self
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
            if self._timer is not None:
                self._timer.cancel()

    def _receive(self, number: int, _: object) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self._processes.count > 1:
            signal.raise_signal(signal.SIGTERM)
        else:
            self._ask(signal.Signals(number))

    def _ask(self, number: signal.Signals) -> None:
        if self._within_s is not None and self._timer is None:
            self._timer = threading.Timer(self._within_s, self._give_up)
            self._timer.daemon = True
            self._timer.start()
        self.signal = number

    def _give_up(self) -> None:
        _log.error(
            "not saved within %g s of the request to stop; ended, earlier checkpoints stay",
            self._within_s,
        )
        logging.shutdown()
        os._exit(LATE)
