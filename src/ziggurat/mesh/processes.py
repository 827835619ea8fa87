"""The processes of a run, and how they agree on something without touching a device.

Background work (a checkpoint being written, a worker that failed) must not use collectives: they
would meet those of the training step in another order on each process. What stands here goes
through the key-value store of ``jax.distributed`` instead and may be called from any thread. With
one process every call returns at once.

>>> everyone = Processes()
>>> everyone.gather("epoch-3/rows", {"rows": 8})
[{'rows': 8}]
"""

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import jax

from ziggurat.core import jax_private
from ziggurat.core.errors import EnvironmentError, ZigguratError
from ziggurat.core.json_types import Json, JsonObject
from ziggurat.core.storage import storage_error

PATIENCE_S = 600.0
"""How long a process waits for the others before it calls the run broken."""

_calls: dict[str, int] = {}
"""Calls so far by name, in this process: a key of the store serves once."""
_counting = threading.Lock()
_LOOK_MS = 250
"""How often a process that waits for others looks whether :func:`interrupt` was called."""
_interrupted: list[str] = []
"""Reason that no process need wait any more, once one has said so."""


class PeerLostError(EnvironmentError):
    """Error: another process of the run is gone, or did not answer in time."""


def join(coordinator: str, count: int | None = None, index: int | None = None) -> None:
    """Make this process one of several that train together; call it before anything uses a device.

    Args:
        coordinator: ``host:port`` of process 0; or ``auto``, and JAX finds all three from Slurm,
            Open MPI, Kubernetes or a TPU pod.
        count: all processes.
        index: this one, from 0.

    Raises:
        EnvironmentError: the three do not fit together, or the others cannot be reached.
    """
    given = {"--processes": count, "--process": index}
    missing = [name for name, value in given.items() if value is None]
    if coordinator != "auto" and (missing or not coordinator.rpartition(":")[2].isdigit()):
        raise EnvironmentError(
            f"--coordinator {coordinator}",
            found=f"no {' and no '.join(missing)}" if missing else "no port",
            expected="HOST:PORT, --processes and --process; or auto",
        )
    if count is not None and index is not None and not 0 <= index < count:
        raise EnvironmentError("--process", found=index, expected=f"0 to {count - 1}")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    address = None if coordinator == "auto" else coordinator
    try:
        jax.distributed.initialize(address, count, index)
    except (RuntimeError, ValueError) as error:
        line = str(error).strip().partition("\n")[0][:200]
        raise EnvironmentError(
            f"joining the run at {coordinator}",
            found=line,
            expected="all processes",
            fix="start every process with the same --coordinator and --processes",
        ) from error


def interrupt(reason: str) -> None:
    """Let every wait of this process for others fail, now and until :func:`begin`.

    For who knows that one of them is gone; called from another thread.
    """
    _interrupted.append(reason)


def begin() -> None:
    """Start counting for a new set of processes, after :func:`interrupt` or at the start."""
    with _counting:
        _calls.clear()
    _interrupted.clear()


class Processes:
    """Process group of ``jax.distributed``, as one of its processes sees it.

    Every process must make the same calls with the same names; a name may be used again, as the
    calls under it are counted.

    Args:
        patience_s: how long a call waits for the others (seconds).
    """

    def __init__(self, patience_s: float = PATIENCE_S):
        self._patience_ms = int(patience_s * 1000)

    @property
    def index(self) -> int:
        """Index of this process, from 0."""
        return jax.process_index()

    @property
    def count(self) -> int:
        """Number of processes."""
        return jax.process_count()

    @property
    def first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.index == 0

    def gather(self, name: str, value: Json) -> list[Json]:
        """Collect each process's ``value`` (JSON), in their order.

        Raises:
            PeerLostError: a process did not answer in time.
        """
        own = json.dumps(value)
        if self.count == 1:
            return [json.loads(own)]
        key, client = self._key(name), self._client()
        try:
            client.key_value_set(f"{key}/{self.index}", own)
            answers = [self._wait(client, f"{key}/{index}") for index in range(self.count)]
            client.key_value_set(f"{key}/read/{self.index}", "yes")
            if self.first:
                for index in range(1, self.count):
                    self._wait(client, f"{key}/read/{index}")
                client.key_value_delete(key)
        except (RuntimeError, InterruptedError) as error:  # jaxlib's are of the first kind
            raise self._lost(name, error) from error
        return [json.loads(answer) for answer in answers]

    def agree(self, name: str, value: Json = None) -> Json:
        """Send the first process's value to all and return it.

        Raises:
            PeerLostError: a process did not answer in time.
        """
        return self.gather(name, value if self.first else None)[0]

    def once(self, name: str, call: Callable[[], Json]) -> Json:
        """Run ``call`` on the first process alone and send its result (JSON) to all.

        Raises:
            ZigguratError: what ``call`` raised, on all of them; an ``OSError`` as ``StorageError``.
            PeerLostError: the first process did not answer in time.
        """
        answer: JsonObject = {}
        error: ZigguratError | None = None
        if self.first:
            try:
                answer = {"value": call()}
            except (ZigguratError, OSError) as caught:
                error = storage_error(name, caught) if isinstance(caught, OSError) else caught
                answer = {"error": str(error)}
        answer = self.agree(name, answer)
        if error is not None:
            raise error
        if "error" in answer:
            raise ZigguratError(f"process 0: {answer['error']}")
        return answer["value"]

    def barrier(self, name: str) -> None:
        """Wait until every process has called this.

        Raises:
            PeerLostError: a process did not come in time.
        """
        if self.count > 1:
            self.gather(name, None)

    def _wait(self, client: Any, key: str) -> str:
        """The value of a key, once it is there."""
        deadline = time.monotonic() + self._patience_ms / 1000
        while not _interrupted:
            left_ms = int(1000 * (deadline - time.monotonic()))
            try:
                return client.blocking_key_value_get(key, max(min(left_ms, _LOOK_MS), 1))
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error) or left_ms <= _LOOK_MS:
                    raise
        raise InterruptedError(_interrupted[0])

    def _key(self, name: str) -> str:
        with _counting:
            number = _calls[name] = _calls.get(name, 0) + 1
        return f"ziggurat/{name}/{number}"

    def _client(self) -> Any:
        return jax_private.distributed_state().client

    def _lost(self, name: str, error: Exception) -> PeerLostError:
        line = str(error).strip().partition("\n")[0][:200]
        return PeerLostError(
            f"process {self.index} of {self.count}, waiting for the others at {name}",
            found=line,
            expected=f"all of them within {self._patience_ms / 1000:.0f} s",
            fix="look at the log of the process that ended, and start all of them again",
        )
