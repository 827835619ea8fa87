"""Statistics of a model version's requests: counts and nanoseconds that add up.

Every request ends once, as a success or as a failure with a reason. Rows of the successful are
``inference_count``; executions by batch size sum to ``execution_count``. All is written and read on
the server's event loop, so no lock is needed.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import Metric
from prometheus_client.registry import Collector

from ziggurat.core.json_types import JsonObject

REASONS = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
"""Triton's reasons: the queue refused it, the client left, the program failed, it was invalid."""


@dataclasses.dataclass(slots=True)
class Duration:
    """Number of events and their total time in nanoseconds."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int, count: int = 1) -> None:
        """Count ``count`` events that took ``ns`` nanoseconds together."""
        self.count += count
        self.ns += ns

    def plain(self) -> dict[str, int]:
        """The duration as JSON values."""
        return {"count": self.count, "ns": self.ns}


@dataclasses.dataclass(slots=True)
class BatchTimes:
    """Time spent on batches of one size: reading inputs, computing, writing outputs."""

    compute_input: Duration = dataclasses.field(default_factory=Duration)
    compute_infer: Duration = dataclasses.field(default_factory=Duration)
    compute_output: Duration = dataclasses.field(default_factory=Duration)


@dataclasses.dataclass(frozen=True, slots=True)
class Execution:
    """Times of one execution (nanoseconds), measured on the device's thread."""

    rows: int
    input_ns: int
    infer_ns: int
    output_ns: int


class Statistics:
    """Counters of one model version.

    >>> statistics = Statistics()
    >>> statistics.executed(Execution(3, 10, 100, 5), requests=2)
    >>> statistics.succeeded(rows=1, duration_ns=200, queue_ns=20)
    >>> statistics.succeeded(rows=2, duration_ns=300, queue_ns=30)
    >>> statistics.inference_count, statistics.execution_count, statistics.parts["queue"].ns
    (3, 1, 50)
    """

    def __init__(self):
        self.last_inference_ms = 0
        self.inference_count = 0
        self.execution_count = 0
        names = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
        self.parts = {name: Duration() for name in (*names, "cache_hit", "cache_miss")}
        self.failures: dict[str, int] = dict.fromkeys(REASONS, 0)
        self.batches: dict[int, BatchTimes] = {}

    def executed(self, times: Execution, requests: int) -> None:
        """Count an execution; each of its requests took its whole time."""
        self.execution_count += 1
        batch = self.batches.setdefault(times.rows, BatchTimes())
        for name, ns in (
            ("compute_input", times.input_ns),
            ("compute_infer", times.infer_ns),
            ("compute_output", times.output_ns),
        ):
            getattr(batch, name).add(ns)
            self.parts[name].add(ns * requests, requests)

    def succeeded(self, rows: int, duration_ns: int, queue_ns: int) -> None:
        """Count an answered request."""
        self.inference_count += rows
        self.parts["success"].add(duration_ns)
        self.parts["queue"].add(queue_ns)
        self.last_inference_ms = int(time.time() * 1000)

    def failed(self, reason: str, duration_ns: int) -> None:
        """Count a refused or lost request; ``reason`` is one of :data:`REASONS`."""
        self.failures[reason] += 1
        self.parts["fail"].add(duration_ns)

    def plain(self) -> JsonObject:
        """The statistics extension's form, without name and version."""
        return {
            "last_inference": self.last_inference_ms,
            "inference_count": self.inference_count,
            "execution_count": self.execution_count,
            "inference_stats": {name: part.plain() for name, part in self.parts.items()},
            "batch_stats": [
                {
                    "batch_size": size,
                    "compute_input": batch.compute_input.plain(),
                    "compute_infer": batch.compute_infer.plain(),
                    "compute_output": batch.compute_output.plain(),
                }
                for size, batch in sorted(self.batches.items())
            ],
        }


class Exposed(Collector):
    """Prometheus collector of all versions' statistics, under Triton's names.

    Triton's counters lack the suffix ``_total`` that the client library gives every counter, so
    they are of no declared type here; ``rate`` works on them all the same.

    Args:
        read: gives (model, version, statistics, requests waiting) of each version served.
    """

    def __init__(self, read: Callable[[], Iterable[tuple[str, str, Statistics, int]]]):
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """The metric families."""
        served = [({"model": m, "version": v}, s, n) for m, v, s, n in self._read()]

        def family(name: str, text: str, kind: str = "unknown") -> Metric:
            return Metric(f"nv_inference_{name}", text, kind)

        plain: list[tuple[str, str, Callable[[Statistics], float]]] = [
            ("request_success", "Requests answered.", lambda s: s.parts["success"].count),
            ("count", "Rows answered.", lambda s: s.inference_count),
            ("exec_count", "Executions of the program.", lambda s: s.execution_count),
            (
                "request_duration_us",
                "From arrival to answer.",
                lambda s: s.parts["success"].ns / 1e3,
            ),
        ]
        for part, text in (
            ("queue", "In the queue."),
            ("compute_input", "Joining inputs."),
            ("compute_infer", "Running the program."),
            ("compute_output", "Parting outputs."),
        ):
            plain.append((f"{part}_duration_us", text, lambda s, part=part: s.parts[part].ns / 1e3))
        for name, text, value in plain:
            metric = family(name, text)
            for labels, statistics, _ in served:
                metric.add_sample(metric.name, labels, value(statistics))
            yield metric
        failures = family("request_failure", "Requests refused or lost, by reason.")
        pending = family("pending_request_count", "Requests waiting.", "gauge")
        for labels, statistics, waiting in served:
            for reason, count in statistics.failures.items():
                failures.add_sample(failures.name, {**labels, "reason": reason}, count)
            pending.add_sample(pending.name, labels, waiting)
        yield from (failures, pending)
