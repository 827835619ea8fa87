"""Rewards computed in processes of their own: one that hangs or dies costs its completion a stated
reward. The run continues until too many fail one after another, or all of a step.

Each process judges one completion at a time. When it takes longer than the limit, or dies, it and
its children are killed, the completion counts as failed, and another process takes its place. The
order in which processes finish changes nothing: a verdict belongs to its completion.
"""

import collections
import contextlib
import dataclasses
import logging
import os
import pickle
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from multiprocessing import connection
from typing import Literal

from ziggurat.core.errors import TrainError, ZigguratError
from ziggurat.data import interpreter
from ziggurat.post.rl.reward_process import JudgedRow
from ziggurat.post.rl.scoring import Scorer

_log = logging.getLogger(__name__)
START_S = 120.0
"""Longest time from a process's start until it has loaded its function."""
Failure = Literal["timeout", "crash", "error"]
MAX_FAILURES = 32
"""Failures one after another, see :class:`Rewards`."""


class RewardError(TrainError):
    """Error: the reward function fails again and again."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Reward of one completion, with the error if it could not be computed."""

    reward: float
    failure: Failure | None = None
    """Reason that the reward is the one for failures."""


class Rewards:
    """Pool of worker processes that compute rewards.

    Args:
        scorer: what loads the function, in each process.
        timeout_s: longest time for one completion, seconds.
        on_failure: reward of a completion whose judge hung, died or raised.
        processes: how many judge together.
        max_failures: judgements that may fail one after another, in the order in which they end.

    Raises:
        ConfigError, EnvironmentError: the function cannot be loaded, or takes other arguments.
        TrainError: a process did not start.

    >>> from ziggurat.post.rl.scoring import Verifier
    >>> with Rewards(Verifier("exact"), processes=1) as rewards:
    ...     rewards.judge([("1 + 1 =", "2", {"answer": "2"})])
    [Verdict(reward=1.0, failure=None)]
    """

    def __init__(
        self,
        scorer: Scorer,
        *,
        timeout_s: float = 10.0,
        on_failure: float = 0.0,
        processes: int = 2,
        max_failures: int = MAX_FAILURES,
    ):
        self._scorer, self._timeout, self._on_failure = scorer, timeout_s, on_failure
        self._max_failures, self._failed_in_a_row, self._why = max_failures, 0, ""
        self._workers: list[_Worker] = []
        try:
            self._workers += [_Worker(scorer) for _ in range(processes)]
            for worker in self._workers:
                worker.wait_ready()
        except ZigguratError:
            self.close()
            raise

    def judge(self, asked: Sequence[JudgedRow]) -> list[Verdict]:
        """Compute the reward of each completion, in order.

        Args:
            asked: prompt, completion and row of each.

        Raises:
            RewardError: all of them failed, or too many one after another.
        """
        verdicts: list[Verdict | None] = [None] * len(asked)
        waiting = collections.deque(range(len(asked)))
        while waiting or any(worker.task is not None for worker in self._workers):
            for place, worker in enumerate(self._workers):
                if waiting and worker.task is None:
                    if worker.gone:
                        worker = self._workers[place] = self._replaced(worker)
                    number = waiting.popleft()
                    worker.ask(number, asked[number], self._timeout)
            for worker in self._due():
                number = worker.task
                assert number is not None
                verdict, why = self._verdict(worker, asked[number])
                verdicts[number] = verdict
                self._count(verdict, why)
        found = [verdict for verdict in verdicts if verdict is not None]
        if found and all(verdict.failure is not None for verdict in found):
            raise _broken(f"all {len(found)} of a step failed", self._why)
        return found

    def _count(self, verdict: Verdict, why: str) -> None:
        """Hold the failures against their budget."""
        if verdict.failure is None:
            self._failed_in_a_row = 0
            return
        self._failed_in_a_row, self._why = self._failed_in_a_row + 1, why
        if self._failed_in_a_row > self._max_failures:
            raise _broken(f"{self._failed_in_a_row} failed one after another", why)

    def close(self) -> None:
        """Stop the processes."""
        for worker in self._workers:
            worker.kill()
        self._workers = []

    def __enter__(self) -> "Rewards":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _due(self) -> "list[_Worker]":
        """Workers that have answered, died or run out of time; waits for the first."""
        busy = [worker for worker in self._workers if worker.task is not None]
        left = min(worker.deadline for worker in busy) - time.monotonic()
        ready = connection.wait([worker.link for worker in busy], max(left, 0.0))
        now = time.monotonic()
        return [w for w in busy if w.link in ready or w.deadline <= now]

    def _verdict(self, worker: "_Worker", asked: JudgedRow) -> tuple[Verdict, str]:
        """The verdict, and why it is a failure."""
        failure: Failure = "timeout"
        why = f"no answer within {self._timeout} s"
        if worker.link.poll():
            try:
                reward, why = worker.answer()
                if reward is not None:
                    return Verdict(reward), ""
                failure = "error"
            except (EOFError, OSError):
                failure, why = "crash", "its process died"
        if failure != "error":
            worker.kill()
        worker.task = None
        _log.warning("reward of %r: %s; it counts %s", asked[1][:80], why, self._on_failure)
        return Verdict(self._on_failure, failure), why

    def _replaced(self, worker: "_Worker") -> "_Worker":
        made = _Worker(self._scorer)
        made.wait_ready()
        return made


def _broken(found: str, why: str) -> RewardError:
    return RewardError(
        "rewards",
        found=f"{found}, the last one: {why}",
        expected="a reward function that gives numbers",
        fix="mend it, return a number for completions it cannot judge, or raise "
        "objective.reward.timeout_s or max_failures",
    )


class _Worker:
    """One process, the socket to it, and the completion it judges."""

    def __init__(self, scorer: Scorer):
        ours, theirs = socket.socketpair()
        with theirs:
            self.process: subprocess.Popen = interpreter.start(
                "from ziggurat.post.rl import reward_process; "
                f"reward_process.serve({theirs.fileno()})",
                [theirs.fileno()],
            )
        self.link = connection.Connection(ours.detach())
        self.task: int | None = None
        self.deadline = 0.0
        self.gone = False
        with contextlib.suppress(OSError):  # that it died is found when it is waited for
            self.link.send_bytes(pickle.dumps(scorer))

    def wait_ready(self) -> None:
        found: object = f"no answer within {START_S:.0f} s"
        if self.link.poll(START_S):
            try:
                answer = self.link.recv()
                if answer is None:
                    return
                self.kill()
                raise answer
            except (EOFError, OSError):
                found = f"its end, exit code {self.process.wait()}"
        self.kill()
        raise TrainError("reward process", found=found, expected="one that is ready")

    def ask(self, number: int, asked: JudgedRow, timeout: float) -> None:
        self.task, self.deadline = number, time.monotonic() + timeout
        with contextlib.suppress(OSError):  # it died since: its verdict will say so
            self.link.send(asked)

    def answer(self) -> tuple[float | None, str]:
        answer = self.link.recv()
        self.task = None
        return answer

    def kill(self) -> None:
        """End the process and what it started."""
        if self.gone:
            return
        self.gone = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.link.close()
