"""Stopping when asked: SIGTERM and Ctrl-C end the run after the step under way."""

import contextlib
import signal
import threading
from collections.abc import Iterator


class StopRequest:
    """Set by a signal, read by the loop between steps.

    >>> stop = StopRequest()
    >>> stop.asked
    False
    """

    def __init__(self):
        self.signal: signal.Signals | None = None

    @property
    def asked(self) -> bool:
        """Whether somebody wants the run to end."""
        return self.signal is not None

    @contextlib.contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Catch SIGTERM and SIGINT in this block; a second SIGINT interrupts at once.

        Outside the main thread nothing is caught, since Python allows handlers only there.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        old = {s: signal.signal(s, self._receive) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def _receive(self, number: int, _: object) -> None:
        if self.signal is signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
