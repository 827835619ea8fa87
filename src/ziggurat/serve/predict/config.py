"""How models of a repository are served: the keys of ``MODEL/model.toml``, and the server's own."""

import itertools
from typing import Annotated, Literal

from pydantic import Discriminator

from ziggurat.core import config


@config.node
class Batching:
    """Settings of joining requests to one model.

    >>> Batching(max_batch_size=12).buckets
    (1, 2, 4, 8, 12)
    """

    max_batch_size: int = 32
    """Most rows of one execution, and of one request."""
    batch_sizes: tuple[int, ...] = ()
    """Numbers of rows that are compiled, the last being max_batch_size; a batch is padded to the
    next. Default: powers of two."""
    max_queue_delay_us: int = 0
    """How long a request may wait for others to join it (microseconds). With 0 a batch holds what
    arrived while the device was busy."""
    max_queue: int = 1024
    """Requests that may wait; more are refused (HTTP 429, gRPC UNAVAILABLE)."""

    def __post_init__(self):
        most, sizes = self.max_batch_size, self.batch_sizes
        config.require(1 <= most <= 2**16, "max_batch_size", most, "1 to 65536")
        good = not sizes or (sizes[0] > 0 and all(a < b for a, b in itertools.pairwise(sizes)))
        config.require(good, "batch_sizes", list(sizes), "rising sizes of one or more")
        good = not sizes or sizes[-1] == most
        config.require(good, "batch_sizes", list(sizes), f"max_batch_size, {most}, as the last")
        delay = self.max_queue_delay_us
        config.require(0 <= delay <= 10**7, "max_queue_delay_us", delay, "0 to 10000000")
        config.require(self.max_queue >= 1, "max_queue", self.max_queue, "1 or more")

    @property
    def buckets(self) -> tuple[int, ...]:
        """Batch sizes that are compiled, ascending."""
        if self.batch_sizes:
            return self.batch_sizes
        most = self.max_batch_size
        return (*(1 << i for i in range(most.bit_length()) if 1 << i < most), most)


@config.node
class Latest:
    """Version policy: serve the newest versions."""

    kind: Literal["latest"] = "latest"
    n: int = 1
    """How many."""

    def __post_init__(self):
        config.require(self.n >= 1, "n", self.n, "1 or more")

    def choose(self, present: list[int]) -> list[int]:
        """Versions to serve of those present."""
        return sorted(present)[-self.n :]


@config.node
class All:
    """Version policy: serve every version."""

    kind: Literal["all"] = "all"

    def choose(self, present: list[int]) -> list[int]:
        """Versions to serve of those present."""
        return sorted(present)


@config.node
class Specific:
    """Version policy: serve the versions named; a missing one is an error."""

    kind: Literal["specific"] = "specific"
    versions: tuple[int, ...]

    def __post_init__(self):
        config.require(bool(self.versions), "versions", [], "one or more")

    def choose(self, present: list[int]) -> list[int]:
        """Versions to serve of those present."""
        return sorted(set(self.versions))


@config.node
class ModelSettings:
    """Settings of one model: ``model.toml`` beside its version directories.

    >>> config.parse(ModelSettings, 'versions = {kind = "latest", n = 2}').value.versions.n
    2
    """

    versions: Annotated[Latest | All | Specific, Discriminator("kind")] = Latest()
    """Which versions are served; the highest of them answers requests that name none."""
    batching: Batching = Batching()


@config.node
class PredictConfig:
    """Settings of the whole bundle server."""

    model_control: Literal["none", "explicit"] = "none"
    """Whether requests may load and unload models."""
    load: tuple[str, ...] = ("*",)
    """Models loaded at start: names, or ``*`` for all."""
    devices: int = 1
    """Devices of this machine that run models; each holds all weights."""
    max_body: int = 64 * 2**20
    """Largest request body, after decompression (bytes)."""
    memory: int = 2**30
    """Bytes of all requests under way, over HTTP and gRPC: what arrived, was decompressed and
    decoded, with the processes that do so. At least twelve times max_body and 32 MiB. Requests
    beyond it are refused (HTTP 429, gRPC UNAVAILABLE)."""
    untrusted: bool = False
    """Whether every bundle is loaded in a child process first. Those that requests load, and those
    that call linear algebra outside XLA, are in any case."""
    custom_calls: tuple[str, ...] = ()
    """Targets of custom calls that bundles may make besides XLA's own, by name or pattern."""

    def __post_init__(self):
        config.require(self.devices >= 1, "devices", self.devices, "1 or more")
        config.require(0 < self.max_body < 2**31, "max_body", self.max_body, "below 2 GiB")
        least = 12 * self.max_body + 2**25
        config.require(self.memory >= least, "memory", self.memory, f"{least} or more")
