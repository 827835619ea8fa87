"""The progress line of a run: live on a terminal, plain lines now and then elsewhere.

On a terminal one line is redrawn in place::

    tiny  1200/5000  24%  loss 2.318  lr 2.9e-04  grad 0.81  41.2k tok/s  MFU 43.1%  ETA 0:12:40

Elsewhere (a file, a pipe, a job's log) the same facts are printed as a line every ``every_s``
seconds or ``every_steps`` steps, whichever comes first, and at the end.
"""

import collections
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import SupportsFloat

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from ziggurat.profile.quantities import duration, short

_SHOWN: tuple[tuple[str, Callable[[float], str]], ...] = (
    ("loss", lambda v: f"loss {v:.4g}"),
    ("eval_loss", lambda v: f"eval {v:.4g}"),
    ("learning_rate", lambda v: f"lr {v:.1e}"),
    ("grad_norm", lambda v: f"grad {v:.3g}"),
    ("tokens_per_s", lambda v: f"{short(v)} tok/s"),
    ("mfu", lambda v: f"MFU {v:.1%}"),
)


class TrainProgress:
    """Progress line of a run, on a terminal or in a log. It is a metric sink.

    Shown when present: ``loss``, ``eval_loss``, ``learning_rate``, ``grad_norm``, ``tokens_per_s``,
    ``mfu``; each keeps its last value until the next. Other metrics are left to other sinks. The
    time left comes from the pace of the last 50 writes.

    Args:
        total_steps: steps of the whole run.
        start_step: steps done before (a resumed run).
        name: what the line is labelled with.
        console: where to draw; standard error by default.
        every_s: off a terminal, seconds between lines.
        every_steps: off a terminal, print also when this many steps have passed.
        clock: seconds from a monotonic clock.

    >>> import io
    >>> out = Console(file=io.StringIO(), width=200)
    >>> with TrainProgress(10, name="tiny", console=out, every_steps=1, clock=lambda: 0.0) as line:
    ...     line.write(0, {"loss": 2.5, "learning_rate": 1e-3})
    >>> out.file.getvalue().strip()
    'tiny  1/10  10%  loss 2.5  lr 1.0e-03'
    """

    def __init__(
        self,
        total_steps: int,
        *,
        start_step: int = 0,
        name: str = "train",
        console: Console | None = None,
        every_s: float | int = 30.0,
        every_steps: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        if every_steps is not None and every_steps < 1:
            raise ValueError(f"every_steps: found {every_steps}, expected at least 1")
        self._total, self._done, self._name = total_steps, start_step, name
        self._console = console if console is not None else Console(stderr=True)
        self._every_s, self._every_steps, self._clock = every_s, every_steps, clock
        self._values: dict[str, float] = {}
        self._saving = ""
        self._pace: collections.deque[tuple[float, int]] = collections.deque(maxlen=50)
        self._pace.append((clock(), start_step))
        self._printed_at, self._printed_step = clock(), start_step
        self._live: Progress | None = None

    def __enter__(self) -> "TrainProgress":
        if self._console.is_terminal:
            self._live = Progress(
                TextColumn("{task.description}", style="bold", markup=False),
                BarColumn(bar_width=16),
                _Facts(),
                console=self._console,
                refresh_per_second=4,
            )
            self._task = self._live.add_task(
                self._name, total=max(self._total, 1), completed=self._done, facts=""
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def write(self, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
        """Take over the metrics of step ``step``, counted from 0."""
        done = step + 1
        if done > self._done:
            self._pace.append((self._clock(), done))
        self._done = done
        for name, _ in _SHOWN:
            if name in metrics:
                self._values[name] = float(metrics[name])
        if self._live is not None:
            self._redraw()
        elif self._due():
            self._print_line()

    def note(self, text: str) -> None:
        """Print a line above the progress line."""
        self._console.print(Text(text), soft_wrap=True)

    def resumed(self, step: int, source: object) -> None:
        """Say that the run continues at ``step`` from the checkpoint ``source``."""
        self.note(f"{self._name}  resumed at step {step} from {source}")

    @contextlib.contextmanager
    def saving(self, step: int, target: object) -> Iterator[None]:
        """Show that the checkpoint of ``step`` is being saved to ``target``; then how long it took,
        or that it failed."""
        self._saving = f"saving step {step}"
        self._redraw()
        began = self._clock()
        try:
            yield
        except BaseException:
            self.note(f"{self._name}  checkpoint of step {step} failed: {target}")
            raise
        finally:
            self._saving = ""
            self._redraw()
        took = self._clock() - began
        self.note(f"{self._name}  saved step {step} to {target} in {took:.1f} s")

    def close(self) -> None:
        """Stop drawing; off a terminal print the last line if it has not been printed."""
        if self._live is not None:
            self._redraw()
            self._live.stop()
            self._live = None
        elif not self._console.is_terminal and self._done != self._printed_step:
            self._print_line()

    def line(self) -> str:
        """The facts as one line of plain text."""
        share = f"{100 * self._done // max(self._total, 1)}%"
        return "  ".join([self._name, f"{self._done}/{self._total}", share, *self._facts()])

    def eta_s(self) -> float | None:
        """Seconds left at the recent pace; None before two writes."""
        (began, first), (now, last) = self._pace[0], self._pace[-1]
        if last <= first or now <= began:
            return None
        return max(self._total - self._done, 0) * (now - began) / (last - first)

    def _facts(self) -> list[str]:
        facts = [show(self._values[name]) for name, show in _SHOWN if name in self._values]
        left = self.eta_s()
        if left is not None and self._done < self._total:
            facts.append(f"ETA {duration(left)}")
        return facts + ([self._saving] if self._saving else [])

    def _due(self) -> bool:
        steps = self._done - self._printed_step
        if self._done >= self._total or (self._every_steps and steps >= self._every_steps):
            return steps != 0
        return self._clock() - self._printed_at >= self._every_s

    def _print_line(self) -> None:
        self.note(self.line())
        self._printed_at, self._printed_step = self._clock(), self._done

    def _redraw(self) -> None:
        if self._live is not None:
            position = f"{self._done}/{self._total}"
            facts = "  ".join([position, *self._facts()])
            self._live.update(self._task, completed=self._done, facts=facts)


class _Facts(ProgressColumn):
    """The run's facts; cut, not wrapped, where the terminal is narrow."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["facts"], no_wrap=True, overflow="ellipsis")
