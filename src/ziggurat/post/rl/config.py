"""Run-file nodes of reinforcement learning: ``[data] kind = "problems"`` and ``[objective] kind =
"grpo"``."""

import dataclasses
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from ziggurat.core import config
from ziggurat.core.kinds import Kinds
from ziggurat.core.registry import Registry

Setting = bool | int | float | str | tuple[bool | int | float | str, ...]


@config.node
class ReasoningGym:
    """Procedural task of the package reasoning-gym, with any number of problems."""

    kind: Literal["reasoning_gym"] = "reasoning_gym"
    name: str
    """Name of the task, such as ``chain_sum``."""
    settings: dict[str, Setting] = dataclasses.field(default_factory=dict)
    """The task's own settings."""
    seed: int = 0
    """Seed of the first training problem; held-out ones lie 2^31 further."""
    held_out: int = 200
    """Problems that training never sees."""
    reward: str | None = None
    """A function in place of the task's own score: ``FILE.py:FUNCTION`` or ``MODULE:FUNCTION``, of
    prompt, completion and row."""
    answer: str | None = None
    """For the task's own score: regular expression whose first group is the answer in a completion,
    the last match counts; default all of it."""

    def __post_init__(self):
        fine = self.reward is None or ":" in self.reward
        config.require(fine, "reward", self.reward, "FILE.py:FUNCTION or MODULE:FUNCTION")
        config.require(0 <= self.seed < 2**30, "seed", self.seed, "a number from 0 to 2^30 - 1")
        _check(self.held_out, self.answer)


@config.node
class PromptFile:
    """Prompts of a JSON-lines file: ``{"prompt": ..., "answer": ...}``."""

    kind: Literal["prompts"] = "prompts"
    path: Path
    """The file."""
    reward: str
    """``exact`` or ``number`` (compare with ``answer``), a reward that a plugin registers, or a
    function of prompt, completion and row: ``FILE.py:FUNCTION`` or ``MODULE:FUNCTION``."""
    held_out: int = 100
    """Problems that training never sees: the last of the file, or the first of another."""
    held_out_path: Path | None = None
    """Another file for them."""
    answer: str | None = None
    """For ``exact`` and ``number``: regular expression whose first group is the answer in a
    completion, the last match counts; default all of it."""

    def __post_init__(self):
        _check(self.held_out, self.answer)


def _check(held_out: int, answer: str | None) -> None:
    config.require(held_out >= 1, "held_out", held_out, "at least 1")
    if answer is not None:
        try:
            groups = re.compile(answer).groups
        except re.error as error:
            raise ValueError(f"answer: found {answer!r} ({error}), expected a pattern") from None
        config.require(groups >= 1, "answer", answer, "a pattern with a group")


TASKS: Registry[Any] = Registry(
    "data.task.kind",
    homes={
        "reasoning_gym": "ziggurat.post.rl.tasks:ProceduralTask",
        "prompts": "ziggurat.post.rl.tasks:FileTask",
    },
)
"""Tasks by kind: classes of :class:`ziggurat.post.rl.tasks.Task`, made of their node."""
TaskNode = Annotated[Any, Kinds(TASKS, node=lambda task: task.node)]
"""Where problems come from."""


@config.node
class PromptForm:
    """How a question becomes a prompt."""

    template: str = "{question}"
    """Text of the prompt, or of the user's turn; ``{question}`` is the question."""
    chat: bool = False
    """Put it through the tokenizer's chat template."""
    system: str | None = None
    """System message of the chat."""

    def __post_init__(self):
        expected = "a text with {question}"
        config.require("{question}" in self.template, "template", self.template, expected)
        fine = self.chat or self.system is None
        config.require(fine, "system", self.system, "chat = true with it")


@config.node
class Problems:
    """Data kind ``problems``: a task from whose problems completions are sampled."""

    kind: Literal["problems"] = "problems"
    task: TaskNode
    """Where they come from, and what judges answers."""
    form: PromptForm = dataclasses.field(default_factory=PromptForm)
    """How a question becomes a prompt."""
    batch_size: int
    """Completions in a step, those of all its problems together."""
    sequence_length: int
    """Most tokens of prompt and completion together."""

    def __post_init__(self):
        for name in ("batch_size", "sequence_length"):
            config.require(getattr(self, name) >= 2, name, getattr(self, name), "at least 2")

    @property
    def eval_fraction(self) -> float:
        """Share of documents held out: none."""
        return 0.0


@config.node
class RewardConfig:
    """Settings of computing rewards."""

    timeout_s: float = 10.0
    """Longest time for one completion."""
    on_failure: float = 0.0
    """Reward where the function hangs, dies or raises; such completions are counted."""
    max_failures: int = 32
    """Completions whose reward may fail one after another, before the run ends; it ends too where
    the rewards of a whole step fail."""
    processes: int = 2
    """Processes that judge together."""
    success: float = 1.0
    """Reward from which a completion counts as right in evaluation."""

    def __post_init__(self):
        config.require(self.timeout_s > 0, "timeout_s", self.timeout_s, "more than 0")
        config.require(self.processes >= 1, "processes", self.processes, "at least 1")
        config.require(self.max_failures >= 0, "max_failures", self.max_failures, "0 or more")


@config.node
class SamplingConfig:
    """Settings of drawing completions: from the policy's whole distribution at a temperature."""

    max_tokens: int
    """Longest completion; prompts have the rest of ``data.sequence_length``."""
    temperature: float = 1.0
    """The policy is the softmax of the logits divided by this, in training too."""
    max_running: int = 64
    """Completions that the engine generates together."""
    gap_limit: float = 1e-4
    """Most that a sampled token's log-probability may differ between engine and trainer, nats, on
    the mean over a step's tokens."""
    gap_action: Literal["error", "warn"] = "error"
    """Action above that limit."""

    def __post_init__(self):
        for name in ("max_tokens", "max_running"):
            config.require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        fine = 0 < self.temperature <= 100
        config.require(fine, "temperature", self.temperature, "more than 0, at most 100")
        config.require(self.gap_limit > 0, "gap_limit", self.gap_limit, "more than 0")


@config.node
class TaskEvaluation:
    """Settings of measuring accuracy on held-out problems, every ``evaluation.every`` steps."""

    samples: int = 1
    """Completions for each problem."""
    temperature: float = 0.0
    """0: the most likely token always."""
    k: int = 1
    """Also the chance that one of k completions is right (pass@k)."""

    def __post_init__(self):
        config.require(self.samples >= 1, "samples", self.samples, "at least 1")
        fine = 0 <= self.temperature <= 100
        config.require(fine, "temperature", self.temperature, "a number from 0 to 100")
        fine = 1 <= self.k <= self.samples
        config.require(fine, "k", self.k, f"a number from 1 to samples, {self.samples}")
        fine = self.samples == 1 or self.temperature > 0
        config.require(fine, "samples", self.samples, "1 at temperature 0: all would be equal")


@config.node
class Grpo:
    """Objective: group relative policy optimisation, which samples completions, rewards them and
    learns from the better ones of a group.

    GRPO, Dr.GRPO, DAPO, GSPO and RLOO are settings of it, see ``ziggurat.post.losses.policy``.
    """

    kind: Literal["grpo"] = "grpo"
    sampling: SamplingConfig
    """Sampling of completions: temperature, length, stop strings."""
    group: int = 8
    """Completions of each problem; divides ``data.batch_size``."""
    updates: int = 1
    """Steps that learn from one rollout; above 1 the ratio to the sampling policy is clipped."""
    reward: RewardConfig = dataclasses.field(default_factory=RewardConfig)
    """How rewards are computed."""
    kl_coef: float = 0.0
    """Weight of the KL divergence from the weights that the run began with."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Where it counts: in each token's loss, as k3 (GRPO), or in the completion's reward, as the
    log-ratio of the completion (RLOO)."""
    clip_low: float = 0.2
    """The ratio's gradient ends at 1 - this."""
    clip_high: float = 0.2
    """And at 1 + this (DAPO: 0.28)."""
    ratio: Literal["token", "sequence", "product"] = "token"
    """Ratio of each token; or of whole completions, by the geometric mean of their tokens' (GSPO)
    or by the product (RLOO)."""
    aggregate: Literal["sequence", "token", "constant"] = "sequence"
    """Mean over completions of means over tokens (GRPO), over tokens (DAPO), or over completions
    of sums divided by ``max_tokens`` (Dr.GRPO)."""
    baseline: Literal["mean", "leave_one_out"] = "mean"
    """Baseline of a reward: the mean of its group, or of the group's others (RLOO)."""
    scale: Literal["group", "batch", "none"] = "group"
    """Scale of advantages: deviation of the group (GRPO), of the batch, or none (Dr.GRPO, RLOO)."""
    dynamic_sampling: bool = False
    """Leave out groups whose rewards are all equal (DAPO)."""
    overlong_margin: int = 0
    """Completions within so many tokens of ``max_tokens`` lose up to 1 of their reward (DAPO)."""
    mask_truncated: bool = False
    """Learn nothing from completions that did not come to their end."""
    sampler_cap: float | None = None
    """Weigh tokens by trainer's over sampler's probability, at most this (truncated importance
    sampling); default not."""
    evaluation: TaskEvaluation = dataclasses.field(default_factory=TaskEvaluation)
    """Accuracy on held-out problems."""

    def __post_init__(self):
        config.require(2 <= self.group <= 128, "group", self.group, "a number from 2 to 128")
        config.require(self.updates >= 1, "updates", self.updates, "at least 1")
        for name in ("kl_coef", "clip_low", "clip_high"):
            config.require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        longest, margin = self.sampling.max_tokens, self.overlong_margin
        fine = 0 <= margin < longest
        config.require(fine, "overlong_margin", margin, f"0 or more, below {longest}")
        cap = self.sampler_cap
        config.require(cap is None or cap > 0, "sampler_cap", cap, "more than 0")
        if self.ratio == "product":
            fine = self.aggregate == "sequence"
            expected = 'sequence beside ratio = "product", which is one number a completion'
            config.require(fine, "aggregate", self.aggregate, expected)
            config.require(cap is None, "sampler_cap", cap, 'nothing beside ratio = "product"')
        fine = self.kl_in == "loss" or self.kl_coef > 0
        config.require(fine, "kl_in", self.kl_in, "a kl_coef above 0 with it")
