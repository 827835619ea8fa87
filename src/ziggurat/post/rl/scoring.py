"""Scorers of completions: a verifier, a task of reasoning-gym, or a user's function.

This module runs inside reward processes (:mod:`ziggurat.post.rl.rewards`) and imports no JAX.

>>> score = Verifier("exact").load()
>>> score("2 + 2 =", " 4", {"answer": "4"}), score("2 + 2 =", "5", {"answer": "4"})
(1.0, 0.0)
"""

import dataclasses
import functools
import importlib
import importlib.util
import inspect
import math
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ziggurat.core import plugins
from ziggurat.core.errors import ConfigError, EnvironmentError, did_you_mean
from ziggurat.core.json_types import JsonMapping
from ziggurat.core.registry import Registry

Row = Mapping[str, Any]
"""Data of a problem besides its prompt, as JSON values."""
Score = Callable[[str, str, Row], float]
"""``score(prompt, completion, row)``."""
LARGEST = 1e18
"""Bound on rewards: advantages are divided by a deviation, whose squares are float32."""
_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?")


@runtime_checkable
class Scorer(Protocol):
    """Interface of a picklable scorer, which loads what it needs in its own process."""

    def load(self) -> Score:
        """Load the reward function.

        Raises:
            ConfigError, EnvironmentError: it cannot be had.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Verifier:
    """Reward that is 1 if the answer found in a completion equals the row's ``answer``, else 0."""

    name: str
    """``exact``: the same text but for white space around it; ``number``: the last number in it is
    the same number; or the name of a function in :data:`REWARDS`, which judges in their place."""
    pattern: str | None = None
    """See :func:`answer_in`."""

    def load(self) -> Score:
        if self.name in REWARDS:
            check_signature(REWARDS[self.name], f"reward {self.name}")
            return REWARDS[self.name]
        agree = VERIFIERS.get(self.name)
        if agree is None:
            known = sorted({*VERIFIERS, *REWARDS})
            raise ConfigError(
                "reward",
                found=repr(self.name),
                expected=f"one of {', '.join(known)}, FILE.py:FUNCTION or MODULE:FUNCTION",
                fix=did_you_mean(self.name, known) or plugins.failures(),
            )

        def score(prompt: str, completion: str, row: Row) -> float:
            answer = answer_in(completion, self.pattern)
            return float(answer is not None and agree(answer, str(row["answer"])))

        return score


@dataclasses.dataclass(frozen=True)
class RewardFunction:
    """Reward by a user's ``function(prompt, completion, row) -> number``."""

    target: str
    """``FILE.py:FUNCTION`` or ``MODULE:FUNCTION``."""

    def load(self) -> Score:
        place, _, name = self.target.rpartition(":")
        try:
            module = _from_file(Path(place)) if place.endswith(".py") else _imported(place)
        except Exception as error:
            line = " ".join(f"{type(error).__name__}: {error}".split())
            raise ConfigError(
                f"reward {self.target}", found=line, expected="a module that can be imported"
            ) from None
        function = getattr(module, name, None)
        if not callable(function):
            known = [n for n, value in vars(module).items() if callable(value)]
            raise ConfigError(
                f"reward {self.target}",
                found=f"no function {name} in {place}",
                expected="a function of prompt, completion and row",
                fix=did_you_mean(name, known),
            )
        check_signature(function, f"reward {self.target}")
        return function  # pyright: ignore[reportReturnType]


def check_signature(function: Callable[..., Any], what: str) -> None:
    """Refuse a function that cannot be called as ``function(prompt, completion, row)``.

    Args:
        function: the user's.
        what: names it in the error.

    Raises:
        ConfigError: it takes other arguments, or its call gives no value: a coroutine, a generator.

    >>> check_signature(lambda prompt, completion, row: 1.0, "reward")
    >>> check_signature(lambda completions, **kwargs: [1.0], "reward")
    Traceback (most recent call last):
        ...
    ziggurat.core.errors.ConfigError: reward: found a function of (completions, **kwargs); ...
    """
    called = getattr(function, "__call__", function)  # noqa: B004  of an object: its method
    for kind, is_kind in (
        ("a coroutine", inspect.iscoroutinefunction),
        ("a generator", inspect.isgeneratorfunction),
        ("an asynchronous generator", inspect.isasyncgenfunction),
    ):
        if is_kind(function) or is_kind(called):
            fix = "write it with def, and return a number"
            raise ConfigError(what, found=f"{kind} function", expected="a plain function", fix=fix)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some built-in functions have none
        return
    try:
        signature.bind("prompt", "completion", {})
    except TypeError:
        raise ConfigError(
            what,
            found=f"a function of {signature}",
            expected="one of three arguments: prompt, completion and row",
            fix="take one completion, not a list of them, and return its reward",
        ) from None


@dataclasses.dataclass(frozen=True)
class ReasoningGymScorer:
    """Reward by a reasoning-gym task's ``score_answer``, for the problem of the row's seed and
    index."""

    name: str
    settings: tuple[tuple[str, Any], ...] = ()
    pattern: str | None = None
    """See :func:`answer_in`."""

    def load(self) -> Score:
        procedural(self.name, dict(self.settings), 0)  # the import counts as starting

        @functools.cache  # one to train on, one held out; some read files
        def made(seed: int) -> Any:
            return procedural(self.name, dict(self.settings), seed)

        @functools.lru_cache(maxsize=64)  # a group's completions come one after the other
        def problem(seed: int, index: int) -> Any:
            return made(seed)[index]

        def score(prompt: str, completion: str, row: Row) -> float:
            seed, answer = row["seed"], answer_in(completion, self.pattern)
            entry = problem(seed, row["index"])
            return float(made(seed).score_answer(answer, entry=entry))

        return score


def answer_in(completion: str, pattern: str | None) -> str | None:
    r"""Extract the answer from a completion: the first group of the last match, stripped; without a
    pattern the whole text.

    >>> answer_in("so <answer>1</answer>, no: <answer> 2 </answer>", r"<answer>(.*?)</answer>")
    '2'
    >>> answer_in("no idea", r"<answer>(.*?)</answer>") is None
    True
    """
    if pattern is None:
        return completion.strip()
    found = None
    for match in re.finditer(pattern, completion, re.DOTALL):
        found = match
    return None if found is None else found.group(1).strip()


def procedural(name: str, settings: JsonMapping, seed: int) -> Any:
    """Open a data set of reasoning-gym.

    Raises:
        EnvironmentError: the package is missing.
        ConfigError: there is no such task, or it does not take these settings.
    """
    try:
        from reasoning_gym import factory
    except ImportError:
        raise EnvironmentError(
            f"task {name}",
            found="no package reasoning-gym",
            expected="it, for procedural tasks",
            fix="pip install reasoning-gym",
        ) from None
    if name not in factory.DATASETS:
        raise ConfigError(
            "task.name",
            found=repr(name),
            expected="a task of reasoning-gym",
            fix=did_you_mean(name, factory.DATASETS) or f"e.g. {', '.join(_some(factory))}",
        )
    try:
        plain = {key: list(v) if isinstance(v, tuple) else v for key, v in settings.items()}
        return factory.create_dataset(name, seed=seed, size=ENDLESS, **plain)
    except (TypeError, AssertionError, ValueError) as error:
        raise ConfigError(
            f"task {name}", found=" ".join(str(error).split()), expected="settings that it takes"
        ) from None


ENDLESS = 1 << 30
"""Problems of a procedural task: each index is a seed."""


def checked(value: Any) -> float:
    """Check that a reward function's result is a finite number and return it.

    Raises:
        TypeError, ValueError: it is none, not finite, or its square is beyond float32.
    """
    number = float(value)
    if not abs(number) < LARGEST:
        raise ValueError(f"a reward of {number}")
    return number


def _same_text(answer: str, expected: str) -> bool:
    return answer.strip() == expected.strip()


def _same_number(answer: str, expected: str) -> bool:
    numbers = [_NUMBER.findall(text) for text in (answer, expected)]
    if not all(numbers):
        return False
    left, right = (float(found[-1].replace(",", "")) for found in numbers)
    return math.isclose(left, right, rel_tol=1e-9, abs_tol=1e-9)


REWARDS: Registry[Score] = Registry("reward")
"""Reward functions by name, as plugins register them; they get whole completions."""
VERIFIERS: dict[str, Callable[[str, str], bool]] = {"exact": _same_text, "number": _same_number}


def _some(factory: Any) -> list[str]:
    return sorted(factory.DATASETS)[:5]


def _imported(name: str) -> Any:
    if not name:
        raise ValueError("no module is named")
    return importlib.import_module(name)


def _from_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"reward_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
