"""Where metrics go: JSON lines that survive a kill, TensorBoard, or several sinks at once.

Every sink satisfies ``core.protocols.MetricSink``: ``write(step, metrics)`` and ``close()``. Names
carry their unit; the loop, the progress line and the report agree on ``loss``, ``eval_loss``,
``learning_rate``, ``grad_norm``, ``tokens_per_s``, ``step_time_s``, ``mfu`` (a fraction),
``host_rss_bytes`` and ``device_bytes_in_use``. Any other name is recorded all the same. Values are
read with ``float()``, which waits for the step that makes a JAX scalar; a loop that must not wait
hands over the metrics of an earlier step.

The JSON-lines file is the truth of a run: one line per :meth:`JsonLinesSink.write`, handed to the
system in one piece, so that ``kill -9`` can tear only the last line::

    {"step": 3, "time_unix_s": 1790000000.0, "loss": 2.31, "grad_norm": null,
     "nonfinite": {"grad_norm": "nan"}}
"""

import abc
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, SupportsFloat, TypeVar

from ziggurat.core import atomic, json_lines
from ziggurat.core.errors import TrainError
from ziggurat.core.json_types import JsonMapping
from ziggurat.core.protocols import MetricSink

if TYPE_CHECKING:
    from ziggurat.train.config import RunConfig

logger = logging.getLogger(__name__)

Row = dict[str, Any]
"""One line of a metrics file: ``step`` (int), ``time_unix_s`` and the metrics (floats)."""

_OWN = ("step", "time_unix_s", "nonfinite")


C = TypeVar("C", bound="_Closing")


class _Closing(abc.ABC):
    """A sink as a context manager."""

    def __enter__(self: C) -> C:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @abc.abstractmethod
    def close(self) -> None:
        """Release what the sink holds."""


class JsonLinesSink(_Closing):
    """Metric sink that appends to a file, one JSON object per line.

    Opening an existing file drops a last line that a kill tore. When a run resumes, give
    ``resume_step``: lines of that step and later are removed, so the curve has each step once.

    NaN and infinities are written as ``null``, with the kind under ``nonfinite``: the file is valid
    JSON, and :func:`read_metrics` gives the value back.

    Args:
        path: file; its directory is made if need be.
        resume_step: first step that will be written again. None: keep every whole line.
        clock: seconds since the epoch.

    Raises:
        TrainError: the file cannot be written, or a line other than the last is damaged.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "metrics.jsonl")
    >>> with JsonLinesSink(path) as sink:
    ...     sink.write(0, {"loss": 2.5})
    ...     sink.write(1, {"loss": float("nan")})
    >>> [(row["step"], row["loss"]) for row in read_metrics(path)]
    [(0, 2.5), (1, nan)]
    >>> with JsonLinesSink(path, resume_step=1) as sink:
    ...     sink.write(1, {"loss": 2.25})
    >>> curve(read_metrics(path), "loss")
    [(0, 2.5), (1, 2.25)]
    """

    def __init__(
        self,
        path: Path,
        *,
        resume_step: int | None = None,
        clock: Callable[[], float] = time.time,
    ):
        self._path, self._clock = Path(path), clock
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._path.exists():
                _repair(self._path, resume_step)
            # Unbuffered: a line is one write to the system and out of this process's hands.
            self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise self._unwritable(error) from error

    def write(self, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
        """Append one line.

        Raises:
            TrainError: the disk is full or gone, or the sink is closed.
            ValueError: a metric is called ``step``, ``time_unix_s`` or ``nonfinite``.
        """
        taken = [name for name in metrics if name in _OWN]
        if taken:
            raise ValueError(f"metric names {taken} are taken by the file format")
        line = _encode({"step": int(step), "time_unix_s": round(self._clock(), 3)}, metrics)
        try:
            left = memoryview(line)
            while left:
                left = left[self._file.write(left) :]
        except (OSError, ValueError) as error:
            raise self._unwritable(error) from error

    def close(self) -> None:
        """Sync to disk and close; closing twice is fine."""
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()

    def _unwritable(self, error: Exception) -> TrainError:
        return TrainError(
            f"metrics file {self._path}",
            found=error,
            expected="a file that can be appended to",
            fix="free disk space or choose another run directory",
        )


class TensorBoardSink(_Closing):
    """Metric sink that writes scalars as TensorBoard event files.

    Events reach the disk every ``flush_s`` seconds, so a kill may lose the last of them; the
    JSON-lines file loses none.

    Args:
        directory: TensorBoard's log directory of this run.
        resume_step: TensorBoard is told to forget events of this step and later.
        flush_s: seconds between flushes.
    """

    def __init__(self, directory: Path, *, resume_step: int | None = None, flush_s: int = 10):
        from tensorboardX import SummaryWriter

        try:
            # The suffix sets apart, and orders, two starts within a second: the name alone has
            # whole seconds, and the second start would overwrite the first one's events.
            self._writer = SummaryWriter(
                str(directory),
                purge_step=resume_step,
                flush_secs=flush_s,
                filename_suffix=f".{time.time_ns()}",
            )
        except OSError as error:
            raise TrainError(
                f"TensorBoard directory {directory}",
                found=error,
                expected="a directory that can be written",
            ) from error

    def write(self, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
        """Add one event with all metrics of a step."""
        from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore

        values = [
            Summary.Value(tag=name, simple_value=float(value)) for name, value in metrics.items()
        ]
        events = self._writer.file_writer
        assert events is not None, "written after closing"
        events.add_summary(Summary(value=values), step)

    def close(self) -> None:
        """Flush and close; closing twice is fine."""
        self._writer.close()


class DerivedSink(_Closing):
    """Metric sink whose failure does not fail the run: after the first one it gets no more rows,
    and the log says so.

    Args:
        name: of what it writes, for that line.
        make: makes the sink.

    >>> with DerivedSink("plots", lambda: open("/nowhere/plots")) as sink:
    ...     sink.write(0, {"loss": 1.0})
    """

    def __init__(self, name: str, make: Callable[[], MetricSink]):
        self._name = name
        self._sink: MetricSink | None = None
        self._sink = self._try(make)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Give a row to the sink, if it still works."""
        if (sink := self._sink) is not None:
            row = {name: float(value) for name, value in metrics.items()}
            self._try(lambda: sink.write(step, row))

    def close(self) -> None:
        """Close the sink; a failure is a line in the log too."""
        if (sink := self._sink) is not None:
            self._try(sink.close)

    def _try(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:
            self._sink = None
            logger.warning("%s left out from here on: %s", self._name, error)


def json_lines_sink(run: "RunConfig", resume_step: int) -> JsonLinesSink:
    """Open the sink that writes a run's ``metrics.jsonl``."""
    return JsonLinesSink(run.directory / "metrics.jsonl", resume_step=resume_step)


def tensorboard_sink(run: "RunConfig", resume_step: int) -> TensorBoardSink:
    """Open the sink that writes a run's TensorBoard event files."""
    return TensorBoardSink(run.directory / "tensorboard", resume_step=resume_step)


class Sinks(_Closing):
    """Several metric sinks as one. Each gets every row in order, even if an earlier one fails; then
    the first failure is raised.

    >>> with Sinks() as sinks:
    ...     sinks.write(0, {"loss": 1.0})
    """

    def __init__(self, *sinks: MetricSink):
        self._sinks = sinks

    def write(self, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
        """Give one row to every sink."""
        row = {name: float(value) for name, value in metrics.items()}
        self._each(lambda sink: sink.write(step, row))

    def close(self) -> None:
        """Close every sink."""
        self._each(lambda sink: sink.close())

    def _each(self, call: Callable[[MetricSink], None]) -> None:
        failures: list[Exception] = []
        for sink in self._sinks:
            try:
                call(sink)
            except Exception as error:
                failures.append(error)
        for other in failures[1:]:
            logger.error("a further metric sink failed: %s", other)
        if failures:
            raise failures[0]


def read_metrics(path: Path) -> list[Row]:
    """Read a metrics file, also one that is being written: a torn last line is left out.

    Returns:
        One dict per line, in file order, with NaN and infinities restored.

    Raises:
        TrainError: no such file, or a line other than the last is not a metrics line.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except FileNotFoundError:
        raise TrainError(
            f"metrics file {path}", found="no such file", expected="metrics of a run"
        ) from None
    return [row for row, _ in _whole_rows(path, lines)]


def curve(rows: Iterable[JsonMapping], name: str) -> list[tuple[int, float]]:
    """The points (step, value) of one metric, leaving out rows without it.

    >>> curve([{"step": 0, "loss": 2.0}, {"step": 1, "eval_loss": 3.0}], "loss")
    [(0, 2.0)]
    """
    return [(row["step"], row[name]) for row in rows if name in row]


def _encode(head: Row, metrics: Mapping[str, SupportsFloat]) -> bytes:
    row, odd = dict(head), {}
    for name, value in metrics.items():
        number = float(value)
        row[name] = number if math.isfinite(number) else None
        if not math.isfinite(number):
            odd[name] = str(number)
    if odd:
        row["nonfinite"] = odd
    return json.dumps(row, allow_nan=False).encode() + b"\n"


def _decode(line: bytes) -> Row | None:
    """A row, or None when the line is not a whole metrics line."""
    try:
        row = json_lines.parse(line)
    except json_lines.NotAnObject:
        return None
    if not isinstance(row.get("step"), int):
        return None
    odd = row.pop("nonfinite", {})
    return row | {name: float(kind) for name, kind in odd.items()}


def _whole_rows(path: Path, lines: list[bytes]) -> list[tuple[Row, bytes]]:
    """Rows with their text; ``lines`` is the file split at newlines, its last entry the rest."""
    rows = [(number, _decode(line), line) for number, line in json_lines.numbered(lines)]
    if rows and rows[-1][1] is None:
        rows = rows[:-1]
    for number, row, line in rows:
        if row is None:
            raise TrainError(
                f"metrics file {path}, line {number}",
                found=repr(line[:40].decode(errors="replace")),
                expected="a JSON object with an integer step",
                fix="remove that line",
            )
    return [(row, line) for _, row, line in rows if row is not None]


def _repair(path: Path, resume_step: int | None) -> None:
    """Drop a torn last line and lines of ``resume_step`` and later, atomically."""
    content = path.read_bytes()
    kept = [
        line
        for row, line in _whole_rows(path, content.split(b"\n"))
        if resume_step is None or row["step"] < resume_step
    ]
    repaired = b"".join(line + b"\n" for line in kept)
    if repaired != content:
        logger.info("%s: kept %d lines", path, len(kept))
        atomic.write_file(path, repaired)
