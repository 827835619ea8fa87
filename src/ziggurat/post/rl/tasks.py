"""Tasks: problems by number, in a part to train on and a part held out, and what judges answers.

>>> task = build(ReasoningGym(name="chain_sum", settings={"max_terms": 2}, held_out=3))
>>> problem = task.problem(0, "held_out")
>>> problem == task.problem(0, "held_out"), sorted(problem.row)
(True, ['answer', 'index', 'seed'])
"""

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from ziggurat.core import json_lines
from ziggurat.core.errors import ConfigError, DataError
from ziggurat.core.json_types import JsonMapping, JsonObject
from ziggurat.core.protocols import Batch
from ziggurat.data import HuggingFaceTokenizer
from ziggurat.data.order import Permutation
from ziggurat.data.sources.records import Fault, checked_text
from ziggurat.post.rl.config import (
    TASKS,
    Problems,
    PromptFile,
    PromptForm,
    ReasoningGym,
    TaskNode,
)
from ziggurat.post.rl.scoring import (
    ENDLESS,
    VERIFIERS,
    ReasoningGymScorer,
    RewardFunction,
    Row,
    Scorer,
    Verifier,
    procedural,
)

Part = Literal["train", "held_out"]
HELD_OUT_SEED = 1 << 31
"""How far the seeds of held-out problems lie from those of training ones."""
TRIES = 64
"""Problems looked at in turn for one that is not among the held-out ones."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """A question with the fields that its scorer needs."""

    prompt: str
    row: Row


@runtime_checkable
class Task(Protocol):
    """Interface of a task: problems by number, each number always with its own problem.

    A class of tasks names its node as ``node`` and is called with one.
    """

    @property
    def scorer(self) -> Scorer:
        """Scorer of the task's completions."""
        ...

    @property
    def count(self) -> int | None:
        """Number of problems to train on; ``None`` if there is no end."""
        ...

    @property
    def held_out(self) -> int:
        """Number of problems held out."""
        ...

    def problem(self, index: int, part: Part = "train") -> Problem:
        """The problem with a number."""
        ...


def build(node: TaskNode) -> Task:
    """Build the task of a run file.

    Raises:
        ConfigError, DataError, EnvironmentError: it cannot be made; the text says why.
    """
    return TASKS[node.kind](node)


class ProceduralTask:
    """A task of reasoning-gym (https://github.com/open-thought/reasoning-gym), endless.

    Training problems come from seeds ``seed, seed + 1, ...``, held-out ones from seeds that lie
    2^31 further. A training problem whose question is among the held-out ones is passed over: its
    number stands for the next one of another seed.
    """

    node = ReasoningGym

    def __init__(self, node: ReasoningGym):
        self._node = node
        seeds = {"train": node.seed, "held_out": node.seed + HELD_OUT_SEED}
        self._made = {
            part: procedural(node.name, node.settings, seed) for part, seed in seeds.items()
        }
        self._seeds = seeds

    @property
    def scorer(self) -> Scorer:
        node = self._node
        if node.reward is not None:
            return RewardFunction(_absolute(node.reward))
        settings = tuple((key, value) for key, value in node.settings.items())
        return ReasoningGymScorer(node.name, settings, node.answer)

    @property
    def count(self) -> int | None:
        return None

    @property
    def held_out(self) -> int:
        return self._node.held_out

    def problem(self, index: int, part: Part = "train") -> Problem:
        if part == "held_out":
            return self._at(index, part)
        for turn in range(TRIES):
            problem = self._at((index + turn * (ENDLESS // TRIES)) % ENDLESS, part)
            if problem.prompt not in self._questions:
                return problem
        raise DataError(
            f"task {self._node.name}",
            found=f"{TRIES} training problems in turn that are held out too",
            expected="more problems than are held out",
            fix="lower data.task.held_out, or choose settings with more problems",
        )

    @functools.cached_property
    def _questions(self) -> frozenset[str]:
        return frozenset(self._at(i, "held_out").prompt for i in range(self.held_out))

    def _at(self, index: int, part: Part) -> Problem:
        entry = self._made[part][index]
        row = {"seed": self._seeds[part], "index": index, "answer": str(entry["answer"])}
        return Problem(entry["question"], row)


class FileTask:
    """Prompts of a JSON-lines file; the last ``held_out`` of them, or those of another, are held
    out, and left out of training wherever else they stand.

    A line is an object with ``prompt``, a text; everything else in it is the row that the reward
    function gets, ``answer`` for our own verifiers.
    """

    node = PromptFile

    def __init__(self, node: PromptFile):
        self._node = node
        needed = "answer" if node.reward in VERIFIERS else None
        rows = _read(node.path, needed)
        if node.held_out_path is None:
            held = rows[len(rows) - node.held_out :] if node.held_out else []
            rows = rows[: len(rows) - len(held)]
        else:
            held = _read(node.held_out_path, needed)
            held = held[: node.held_out]
        prompts = {problem.prompt for problem in held}
        rows = [problem for problem in rows if problem.prompt not in prompts]
        self._rows: dict[str, list[Problem]] = {"train": rows, "held_out": held}

    @property
    def scorer(self) -> Scorer:
        reward, pattern = self._node.reward, self._node.answer
        return (
            Verifier(reward, pattern) if _is_verifier(reward) else RewardFunction(_absolute(reward))
        )

    @property
    def count(self) -> int | None:
        return len(self._rows["train"])

    @property
    def held_out(self) -> int:
        return len(self._rows["held_out"])

    def problem(self, index: int, part: Part = "train") -> Problem:
        return self._rows[part][index]


class ProblemSource:
    """Problems of each step, as a function of the step, so that a resumed run replays nothing.

    Implements :class:`ziggurat.train.parts.TrainingData`; a batch is ``{"problems": [p]}``.
    Generated tasks never end: each step takes the next numbers. Files are read again and again,
    each time in another order.

    Args:
        task: the problems.
        data: the run file's ``[data]``.
        group: completions of each problem.
        updates: steps that learn from one rollout, and so are about the same problems.
        seed: the run's.

    Raises:
        ConfigError: the group does not divide the batch.
        DataError: all problems are held out.

    >>> node = ReasoningGym(name="chain_sum", held_out=3)
    >>> data = Problems(task=node, batch_size=8, sequence_length=64)
    >>> ProblemSource(build(node), data, group=2, seed=0).batch(2)["problems"].tolist()
    [8, 9, 10, 11]
    """

    def __init__(self, task: Task, data: Problems, group: int, seed: int, updates: int = 1):
        if data.batch_size % group:
            raise ConfigError(
                "objective.group",
                found=group,
                expected=f"a divisor of data.batch_size, {data.batch_size}",
            )
        if task.count == 0:
            raise DataError(
                "data.task",
                found=f"{task.held_out} problems, all held out",
                expected="more than data.task.held_out",
            )
        self.task, self.data, self._seed, self._updates = task, data, seed, updates
        self.problems = data.batch_size // group
        """In a step."""

    @property
    def batch_size(self) -> int:
        """Completions of a step."""
        return self.data.batch_size

    @property
    def sequence_length(self) -> int:
        return self.data.sequence_length

    @property
    def steps(self) -> int | None:
        """Number of steps that the data lasts: ``None``, since a task poses problems without
        end."""
        return None

    @property
    def steps_per_epoch(self) -> int | None:
        """Steps in which each problem of a file comes once, rounded up."""
        count = self.task.count
        return None if count is None else -(-count // self.problems) * self._updates

    def batch(self, step: int, rows: slice | None = None) -> Batch:
        """Numbers of the problems of a step, ``[p]``; ``rows`` is not looked at, since one process
        samples for all."""
        first = step // self._updates * self.problems
        numbers = np.arange(first, first + self.problems, dtype=np.int64)
        count = self.task.count
        if count is None:
            return {"problems": numbers % ENDLESS}
        epochs, places = np.divmod(numbers, count)
        for epoch in np.unique(epochs):
            order = Permutation(count, self._seed, int(epoch), "problems")
            places[epochs == epoch] = order(places[epochs == epoch])
        return {"problems": places}

    def iterate(self, start: int, rows: slice | None = None) -> Iterator[Batch]:
        """The batches from step ``start`` on."""
        for step in itertools.count(start):
            yield self.batch(step, rows)

    def state(self, step: int) -> JsonObject:
        """State that a checkpoint stores."""
        return {"step": step, "task": self._fingerprint()}

    def check_state(self, state: JsonMapping) -> int:
        """Compare a stored state with this source; returns the step that comes next.

        Raises:
            DataError: it was stored of other problems.
        """
        if state.get("task") != self._fingerprint():
            raise DataError(
                "problems of the checkpoint",
                found=state.get("task"),
                expected=f"those of this run, {self._fingerprint()}",
                fix="restore the prompt file, or give the run another name",
            )
        return int(state["step"])

    def _fingerprint(self) -> str:
        """A digest of the first problems, and their number."""
        some = range(min(self.task.count or SHOWN, SHOWN))
        texts = [[p.prompt, p.row] for p in map(self.task.problem, some)]
        digest = hashlib.blake2b(json.dumps(texts, default=str).encode(), digest_size=8)
        return f"{digest.hexdigest()} {self.task.count or 'endless'}"


SHOWN = 16
"""Problems in a fingerprint."""


def prompt_ids(form: PromptForm, tokenizer: HuggingFaceTokenizer, question: str) -> list[int]:
    """Token ids of a question in the form of the run file.

    Raises:
        DataError: a chat is asked for and the tokenizer has no template.
    """
    text = form.template.replace("{question}", question)
    if not form.chat:
        return tokenizer.encode(text, add_special_tokens=True)
    messages = [{"role": "system", "content": form.system}] if form.system else []
    messages.append({"role": "user", "content": text})
    return tokenizer.encode(tokenizer.apply_chat_template(messages, None, True))


def _read(path: Path, needed: str | None) -> list[Problem]:
    """Problems of a file, a line each.

    Raises:
        DataError: the file cannot be read, or a line is no problem; it is named.
    """
    return [_problem(path, *numbered, needed) for numbered in json_lines.read(path, "prompts")]


def _problem(path: Path, number: int, row: JsonObject, needed: str | None) -> Problem:
    where = f"{path} line {number}"
    keys: Sequence[str] = ("prompt",) if needed is None else ("prompt", needed)
    if any(key not in row for key in keys):
        raise DataError(where, found=sorted(row), expected=f"an object with {' and '.join(keys)}")
    try:
        prompt = checked_text(row["prompt"], "prompt")
    except Fault as fault:
        raise DataError(where, found=fault.found, expected=fault.expected) from None
    if not prompt:
        raise DataError(where, found="an empty prompt", expected="prompt to be a text")
    rest: JsonObject = {key: value for key, value in row.items() if key != "prompt"}
    return Problem(prompt, rest)


def _is_verifier(reward: str) -> bool:
    return ":" not in reward


def _absolute(target: str) -> str:
    """A function's file by its whole path: reward processes look from where they are started."""
    place, _, name = target.rpartition(":")
    return f"{Path(place).resolve()}:{name}" if place.endswith(".py") else target
