"""Training as a program of :class:`ziggurat.cluster.Cluster`: it leaves when asked to, and
continues in any other world of hosts with the same global batch.

``Cluster.train("ziggurat.train.elastic:train_on", ...)`` calls :func:`train_on` on every host of a
world. A world with fewer hosts than wanted takes more micro-batches a step, so that a device holds
about as many rows at a time as before; which numbers of hosts are possible says :func:`usable`.
"""

import contextlib
import dataclasses
import hashlib
import logging
import math
import pickle
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax

from ziggurat import mesh as mesh_
from ziggurat.core import config
from ziggurat.core.compile_cache import keeping_compiled
from ziggurat.core.errors import ConfigError, ShardingError
from ziggurat.core.json_types import JsonObject
from ziggurat.mesh import MeshConfig
from ziggurat.profile.timers import StepTimer
from ziggurat.train.config import RunConfig
from ziggurat.train.derived import attempt
from ziggurat.train.experiment import check_mesh
from ziggurat.train.loop import train
from ziggurat.train.parts import kind_of
from ziggurat.train.stopping import StopRequest
from ziggurat.train.summary import report

_log = logging.getLogger(__name__)


@runtime_checkable
class ElasticWorld(Protocol):
    """Interface that training needs of :class:`ziggurat.cluster.World`."""

    index: int
    count: int

    def after(self, step: int) -> bool:
        """Whether the program is to leave now."""
        ...

    def report(self, step: int, ledger_s: Mapping[str, float], *, now: bool = False) -> None:
        """Report progress to the controller."""

    def keep(self, name: str, content: bytes) -> None:
        """Keep content for hosts of later worlds."""

    def fetch(self, name: str) -> bytes | None:
        """Fetch content that was kept under a name."""


class LeaveRequest(StopRequest):
    """Stop request of a controller, honoured by all processes after the same step."""

    def __init__(self, world: ElasticWorld, timer: StepTimer, within_s: float | None):
        super().__init__(within_s)
        self._world, self._account = world, timer

    def after(self, step: int) -> bool:
        """Whether the run is to end now, with ``step`` steps done."""
        self._world.report(step, self._account.ledger())
        if self.signal is None and self._world.after(step):
            self._ask(signal.SIGTERM)
        return self.signal is not None

    @contextlib.contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Leave signals alone: they go to the controller or to the host's own process."""
        try:
            yield self
        finally:
            if self._timer is not None:
                self._timer.cancel()


def train_on(
    world: ElasticWorld,
    text: str,
    source: str,
    overrides: Sequence[str],
    wanted: int,
) -> JsonObject:
    """Train a run in this world, from its newest checkpoint to its end or until asked to leave.

    Args:
        world: the hosts that train together, and who asks.
        text: the run file.
        source: its name, for messages.
        overrides: changes to it, ``"key=value"``.
        wanted: hosts for which ``train.accumulate`` of the run file is meant.

    Returns:
        ``status``, ``step`` and ``directory``.

    Raises:
        ZigguratError: as :func:`ziggurat.train.loop.train`.
    """
    timer = StepTimer()
    run = config.parse(RunConfig, text, overrides, source=source)
    fitted = fit(run.value, world.count, jax.local_device_count(), wanted)
    run = dataclasses.replace(run, value=fitted)
    stop = LeaveRequest(world, timer, fitted.train.stop_within_s)
    kept = None if fitted.train.compile_cache else fitted.output / "cache" / "compiled"
    with keeping_compiled(kept, least_s=0.0):
        step = StepCache(world, fitted)
        outcome = train(run, stop=stop, timer=timer, compiled_step=step)
    done = int(outcome.state.step)
    world.report(done, timer.ledger(), now=True)
    if world.index == 0:
        attempt("the report", lambda: report(outcome))
    return {"status": outcome.status, "step": done, "directory": str(fitted.directory)}


class _CacheHits:
    """How many programs this process has found in the compile cache."""

    count = 0

    @classmethod
    def listen(cls, event: str, **_: Any) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            cls.count += 1


jax.monitoring.register_event_listener(_CacheHits.listen)


class StepCache:
    """Compiled steps of earlier worlds, and of the next one of equal shape, kept with the
    controller.

    Backends and their programs end with a world. Serialised ones do not: the controller keeps them,
    and a host that enters a world of a size that was there before, even a new host, loads the step
    in milliseconds, where tracing and lowering take seconds that no compile cache saves. What came
    out of that cache is not kept: XLA:CPU writes such a program without its functions.

    Args:
        world: the hosts.
        run: its settings; where it lives does not matter.
    """

    def __init__(self, world: ElasticWorld, run: RunConfig):
        self._world = world
        self._run = config.to_toml(dataclasses.replace(run, name="any", output=Path()))

    def __call__(self, step: Any, arguments: tuple[Any, ...]) -> Any:
        """The compiled step."""
        from jax.experimental import serialize_executable

        name = self._name(arguments)
        content = self._world.fetch(name)
        if content is not None:
            try:
                program, *trees = pickle.loads(content)  # of the controller, which proved itself
                structures = map(jax.tree.structure, trees)
                return serialize_executable.deserialize_and_load(program, *structures)
            except Exception as error:  # a backend that cannot: compile as if for the first time
                _log.debug("loading a step compiled before: %s", error)
        before = _CacheHits.count
        compiled = step.lower(*arguments).compile()
        if self._world.index == 0 and _CacheHits.count == before:
            try:
                program, *structures = serialize_executable.serialize(compiled)
                trees = [one.unflatten([0] * one.num_leaves) for one in structures]
                self._world.keep(name, pickle.dumps((program, *trees)))
            except Exception as error:
                _log.debug("keeping a compiled step: %s", error)
        return compiled

    def _name(self, arguments: tuple[Any, ...]) -> str:
        """Name of the program: the same for equal settings, world size and shapes."""
        leaves, structure = jax.tree.flatten(arguments)
        shapes = [(leaf.shape, str(leaf.dtype)) for leaf in leaves]
        text = f"{self._run}{self._world.count}{jax.device_count()}{structure}{shapes}"
        return hashlib.sha256(text.encode()).hexdigest()


def fit(run: RunConfig, hosts: int, devices: int, wanted: int) -> RunConfig:
    """Adapt a run to a number of hosts: the global batch stays, cut into more micro-batches if
    there are fewer hosts than wanted.

    Args:
        run: the run as its file says.
        hosts: hosts there are.
        devices: of each host.
        wanted: hosts for which the file was written.

    Raises:
        ShardingError, ConfigError: the batch does not divide over their devices, however cut.

    >>> from ziggurat.core import config
    >>> run = config.parse(RunConfig, '''
    ... name = "tiny"
    ... model = { kind = "llama", vocab_size = 64, d_model = 32, n_layers = 2, n_heads = 2 }
    ... data = { sources = [{ kind = "text", path = "." }], sequence_length = 16, batch_size = 8 }
    ... optimizer = { kind = "adamw", lr = 1e-3 }
    ... train = { steps = 10 }
    ... ''').value
    >>> [fit(run, hosts, 1, wanted=4).train.accumulate for hosts in (4, 2, 1)]
    [1, 2, 4]
    """
    layout = mesh_.abstract(run.mesh, hosts * devices)
    least, rows = math.ceil(wanted / hosts), run.data.batch_size // run.train.accumulate
    ways = layout.ways("batch")
    factors = (least * further for further in range(1, rows + 1))
    factor = next((f for f in factors if rows % f == 0 and rows // f % ways == 0), 1)
    train_config = dataclasses.replace(run.train, accumulate=run.train.accumulate * factor)
    fitted = dataclasses.replace(run, train=train_config)
    check_mesh(fitted, layout)
    return fitted


def usable(run: RunConfig, devices: int, wanted: int) -> Callable[[int], str]:
    """Reason why a run cannot use a number of hosts; empty if it can.

    Args:
        run: the run as its file says.
        devices: of each host.
        wanted: hosts for which it was written.
    """
    here = dataclasses.replace(run, mesh=MeshConfig())  # sizes are all that counts
    layout = mesh_.build(here.mesh, jax.devices()[:1])
    try:
        model = kind_of(run).program(here, layout).model
    except ConfigError:  # only the weights know its sizes
        model = None

    def why_not(hosts: int) -> str:
        try:
            fit(run, hosts, devices, wanted)
            if model is not None:
                model.shardings(mesh_.abstract(run.mesh, hosts * devices))
        except (ShardingError, ConfigError) as error:
            return str(error)
        return ""

    return why_not
