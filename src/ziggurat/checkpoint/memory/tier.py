"""Tier 1: snapshots in memory that outlives the trainer, on this host and on a neighbour's.

A save copies this process's part of the state into a slot of its keeper and returns. In the
background the part gets its digests, is committed, and goes to the neighbour's keeper; then all
processes tell each other whether that worked. A step is *complete* when every part of it is held by
some living keeper. The newest complete step is never overwritten before a newer one is complete:
hence two slots for each part, and another save waits for the one before.
"""

import dataclasses
import logging
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtyping import PyTree

from ziggurat.checkpoint.config import MemoryTier
from ziggurat.checkpoint.manifest import DamagedError
from ziggurat.checkpoint.memory import frames, peer, snapshot
from ziggurat.checkpoint.memory.peer import Address, KeeperLink, KeptError
from ziggurat.checkpoint.tier import ConfiguredTier, TierContext, UnsuitableError
from ziggurat.core import jax_private
from ziggurat.core.errors import CheckpointError, EnvironmentError
from ziggurat.core.json_types import Json, JsonMapping, JsonObject
from ziggurat.mesh import Processes

_log = logging.getLogger(__name__)
_CLOSING_S = 10.0


class MemorySnapshots(ConfiguredTier):
    """Memory snapshots of one run. All processes make the same calls.

    Args:
        directory: of the run's checkpoints; with the process's index it names the keeper.
        config: interval, and how long snapshots outlive their trainer.
        identity: tells this run from another one in a directory of the same name. Snapshots under
            another identity are dropped unseen.
        processes: those that train together.

    Raises:
        EnvironmentError: the operating system has no memory files (it is not Linux).
    """

    name = "memory"
    lasting = False

    def __init__(self, directory: Path, config: MemoryTier, identity: str, processes: Processes):
        if not hasattr(os, "memfd_create"):
            raise EnvironmentError(
                "checkpoint.memory",
                found="an operating system without memory files",
                expected="Linux",
                fix="leave out [checkpoint.memory]",
            )
        self.directory, self.config, self.identity = Path(directory), config, identity
        self.processes = processes
        self._error: CheckpointError | None = None
        self.steps: list[int] = []
        """Complete steps, oldest first, as all processes know them."""
        self.keeper: int | None = None
        """Process id of the keeper, once it is known."""
        self._link: KeeperLink | None = None
        self._ring: list[Address] = []
        self._holders: dict[tuple[int, int], list[int]] = {}
        self._thread: threading.Thread | None = None
        self._patience_s = peer.CONNECT_S
        self._place()
        self.refresh()

    @classmethod
    def open(cls, config: MemoryTier, context: TierContext) -> "MemorySnapshots":
        return cls(context.directory, config, context.identity(), context.processes)

    @property
    def error(self) -> CheckpointError | None:
        """Error of the newest snapshot; None when it was made."""
        return self._error

    def due(self, step: int) -> bool:
        return step > 0 and step % self.config.every == 0

    def refresh(self) -> list[int]:
        """Read again which snapshots the keepers hold; none is started for it."""
        self.wait()
        found: list[Any] = []
        try:
            if self._link is None:
                self._link = peer.find_keeper(self.directory, self.processes.index)
            found = self._hello()
        except (CheckpointError, OSError) as error:
            self._lose(error)
        answers = self._exchange("snapshots held", found)
        self._holders = {}
        for keeper, parts in enumerate(answers):
            for owner, step in parts:
                self._holders.setdefault((step, owner), []).append(keeper)
        self.steps = sorted(
            step
            for step in {step for step, _ in self._holders}
            if all((step, owner) in self._holders for owner in range(self.processes.count))
        )
        return self.steps

    def save(
        self,
        step: int,
        arrays: Mapping[str, PyTree],
        records: JsonMapping,
        files: Mapping[str, bytes | Path] | None = None,
        *,
        metrics: Mapping[str, float] | None = None,
        final: bool = False,
    ) -> bool:
        """Take a snapshot; on return the arrays may be donated or changed.

        What goes wrong with keepers or memory is logged, stays in :attr:`error`, and does not hold
        training up.

        Files and metrics are for tiers that others read, and are left out.

        Returns:
            True; False for the last step of a run, which the disk takes.

        Raises:
            CheckpointError: something in the trees cannot be stored.
        """
        if final:
            return False
        self.wait()
        header, sources = snapshot.describe(arrays, records)
        header |= {
            "identity": self.identity,
            "count": self.processes.count,
            "process": self.processes.index,
            "step": step,
            "created": time.time(),
        }
        self.steps = [complete for complete in self.steps if complete < step]
        keep = self.steps[-1] if self.steps else None
        problem: CheckpointError | None = None
        slot, view = -1, memoryview(b"")
        try:
            slot, view = self._begin(header, keep)
            snapshot.copy_into(view, sources)
        except (CheckpointError, OSError) as error:
            problem = _as_error(step, error)
        del sources
        self._thread = threading.Thread(
            target=self._complete,
            args=(header, slot, view, keep, problem),
            name=f"snapshot-{step}",
            daemon=True,
        )
        self._thread.start()
        return True

    def wait(self, *, strict: bool = True) -> None:
        """Wait until the snapshot under way is complete, or has failed."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()

    def restore(
        self,
        step: int,
        like: Mapping[str, PyTree],
        *,
        cast: bool = False,
        partial: bool = False,
    ) -> tuple[dict[str, PyTree], JsonObject]:
        """Arrays as ``like`` asks for, and records, of a complete step; on all processes or none.

        Raises:
            DamagedError: a part does not match its digests, or its keeper is gone.
            UnsuitableError: it does not suit ``like``.
        """
        arrays, records, problem = {}, {}, None
        try:
            header, content = self._part(step)
            arrays = snapshot.assemble(header, content, like, cast=cast, partial=partial)
            records = header["records"]
        except CheckpointError as error:
            problem = error
        lost = not isinstance(problem, UnsuitableError)
        said = self.processes.gather(
            "snapshot restored", None if problem is None else [str(problem), lost]
        )
        told = [answer for answer in said if answer is not None]
        if told:
            kind = DamagedError if any(lost for _, lost in told) else UnsuitableError
            raise kind(told[0][0]) from problem
        return arrays, records

    def discard_after(self, step: int) -> list[int]:
        """Drop newer snapshots; returns their steps."""
        self.wait()
        gone = [complete for complete in self.steps if complete > step]
        self.steps = [complete for complete in self.steps if complete <= step]
        if self._link is not None:
            try:
                self._link.ask("discard", after=step)
            except KeptError as error:
                self._lose(error)
        self.processes.barrier("snapshots discarded")
        return gone

    def holds_newer(self, step: int) -> bool:
        self.wait()
        return bool(self.steps) and self.steps[-1] > step

    def close(self, finished: bool) -> None:
        """Release the keeper: it ends now if the run has finished, else some time later."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(None if finished else _CLOSING_S)
        link, self._link = self._link, None
        if link is not None:
            if finished:
                link.finish()
            else:
                link.close()

    def _place(self) -> None:
        """Find out where the processes are, and to whom each sends its part."""
        machines = self.processes.gather("machines", peer.this_machine())
        host = peer.own_host(machines, _coordinator()) if len(machines) > 1 else None
        self._address = Address(machines[self.processes.index], host)
        self._neighbour = peer.neighbours(machines)[self.processes.index]
        if len(machines) > 1 and host is None:
            _log.warning(
                "no address by which other hosts reach this one: snapshots stay on their host; "
                "give the coordinator by an address of the network between the hosts"
            )

    def _hello(self) -> list[Any]:
        """Introduce this trainer to the keeper; returns the parts held there."""
        if self._link is None:
            return []
        deadline = time.monotonic() + self._patience_s
        while True:
            answer, _ = self._link.ask(
                "hello",
                identity=self.identity,
                count=self.processes.count,
                linger_s=self.config.linger_s,
                host=self._address.host,
            )
            if "busy" not in answer:
                break
            if time.monotonic() > deadline:
                self._patience_s = 0.0  # once is enough
                raise KeptError(
                    "keeper of snapshots",
                    found="another trainer of this run that is still alive",
                    expected="one",
                    fix="end that process",
                )
            time.sleep(0.05)
        self._address = dataclasses.replace(
            self._address, port=answer["port"], token=answer["token"]
        )
        self.keeper = answer["pid"]
        return answer["parts"]

    def _exchange(self, name: str, value: Json) -> list[Json]:
        """Everybody's value, and with it where everybody's keeper is now."""
        said = self.processes.gather(name, [dataclasses.asdict(self._address), value])
        self._ring = [Address(**address) for address, _ in said]
        return [answer for _, answer in said]

    def _begin(self, header: JsonObject, keep: int | None) -> tuple[int, memoryview]:
        """A slot of this process's keeper, which is started if need be."""
        request = {"owner": header["process"], "size": header["bytes"], "step": header["step"]}
        if self._link is not None:
            try:
                answer, view = self._link.ask("begin", keep=keep, **request)
            except KeptError as error:
                if not self._link.closed:
                    raise
                _log.warning("%s; starting another", error)
                self._link = None
            else:
                assert view is not None
                return answer["slot"], view
        answer, view = self._start_keeper(header["process"]).ask("begin", keep=keep, **request)
        assert view is not None
        return answer["slot"], view

    def _start_keeper(self, process: int) -> KeeperLink:
        deadline = time.monotonic() + peer.CONNECT_S
        while True:
            self._link = peer.start_keeper(self.directory, process)
            try:
                self._hello()
                return self._link
            except KeptError:  # one that was killed may still seem to answer
                if not self._link.closed or time.monotonic() > deadline:
                    raise
            time.sleep(0.05)

    def _complete(
        self,
        header: JsonObject,
        slot: int,
        view: memoryview,
        keep: int | None,
        problem: CheckpointError | None,
    ) -> None:
        """Digest, commit, send, and hear whether all others did; in a thread of its own."""
        step = header["step"]
        try:
            self._exchange("keepers", None)
            if problem is None:
                content = view[: header["bytes"]]
                header["blocks"] = frames.block_digests(content)
                assert self._link is not None
                self._link.ask("commit", owner=header["process"], slot=slot, header=header)
                self._send(header, content, keep)
        except (CheckpointError, EnvironmentError, OSError) as error:
            problem = _as_error(step, error)
        try:
            said = self.processes.gather("snapshot", None if problem is None else str(problem))
        except EnvironmentError as error:
            self._fail(_as_error(step, error))
            return
        failed = {index: why for index, why in enumerate(said) if why is not None}
        if failed:
            index = min(failed)
            self._fail(problem or CheckpointError(f"process {index}: {failed[index]}"))
        else:
            self._error = None
            self.steps = [*self.steps[-1:], step]

    def _send(self, header: JsonObject, content: memoryview, keep: int | None) -> None:
        """Copy this part to the neighbour's keeper."""
        address = self._ring[self._neighbour]
        if self.processes.count == 1 or address.host is None:
            return  # without a way there the part is safe from the trainer's death alone
        link = peer.reach(address)
        try:
            link.ask("put", content, owner=header["process"], header=header, keep=keep)
        finally:
            link.close()

    def _part(self, step: int) -> tuple[JsonObject, memoryview]:
        """Part of the snapshot that belongs to this process, from its keeper or from a copy's."""
        owner = self.processes.index
        holders = self._holders.get((step, owner), [])
        tries = sorted(holders, key=lambda keeper: keeper != owner)
        problem: CheckpointError | None = None
        for keeper in tries or [owner]:
            try:
                if keeper == owner and self._link is not None:
                    answer, content = self._link.ask("read", owner=owner, step=step)
                else:
                    link = peer.reach(self._ring[keeper])
                    try:
                        answer, content = link.ask("read", owner=owner, step=step)
                    finally:
                        link.close()
                header = answer["header"]
                content = memoryview(b"") if content is None else content
                snapshot.check(header, content)
                return header, content
            except (KeptError, DamagedError) as error:
                _log.warning("part %d of step %d: %s", owner, step, error)
                problem = error
        assert problem is not None
        raise problem

    def _lose(self, error: Exception) -> None:
        """Continue without this keeper; the next save starts another."""
        if self._link is not None:
            self._link.close()
        self._link = None
        _log.warning("snapshots in memory cannot be reached: %s", error)

    def _fail(self, error: CheckpointError) -> None:
        """Say it once, not with every step."""
        if self._error is None or str(self._error) != str(error):
            _log.error("no snapshot in memory, training continues: %s", error)
        self._error = error


def _as_error(step: int, error: Exception) -> CheckpointError:
    if isinstance(error, CheckpointError):
        return error
    return CheckpointError(f"snapshot of step {step}", found=f"{type(error).__name__}: {error}")


def _coordinator() -> str | None:
    return jax_private.distributed_state().coordinator_address
