"""Where a policy is tried: problems become prompts, the engine completes them, rewards judge."""

import dataclasses
import time
from collections.abc import Sequence

from ziggurat.core.errors import DataError
from ziggurat.data import HuggingFaceTokenizer
from ziggurat.models import LanguageModel, Params
from ziggurat.post.rl.config import PromptForm, RewardConfig
from ziggurat.post.rl.rewards import Rewards, Verdict
from ziggurat.post.rl.rollouts import Drawn, Sampler, draw_seed
from ziggurat.post.rl.tasks import Part, Problem, Task, prompt_ids


@dataclasses.dataclass(frozen=True)
class RolloutGroup:
    """A problem's completions with their rewards."""

    problem: Problem
    prompt: list[int]
    """Token ids."""
    completions: list[Drawn]
    verdicts: list[Verdict]
    """One for each completion."""

    @property
    def rewards(self) -> list[float]:
        return [verdict.reward for verdict in self.verdicts]


@dataclasses.dataclass(frozen=True)
class Trial:
    """Settings of drawing completions."""

    group: int
    """Completions of each problem."""
    temperature: float
    seed: int
    step: int = 0
    purpose: str = "rollout"
    """With seed, step and the problem's place it keys the draws."""
    part: Part = "train"


class Arena:
    """A task with its sampler and reward processes, which start when they are first needed.

    Args:
        task: the problems.
        form: how they become prompts.
        reward: how completions are judged.
        model: the policy; built without remat.
        tokenizer: the model's.
        longest: most tokens of prompt and completion together.
        max_tokens: longest completion.
        running: completions that are generated together.
    """

    def __init__(
        self,
        task: Task,
        form: PromptForm,
        reward: RewardConfig,
        *,
        model: LanguageModel,
        tokenizer: HuggingFaceTokenizer,
        longest: int,
        max_tokens: int,
        running: int,
    ):
        self.task, self.tokenizer = task, tokenizer
        self.longest, self.max_tokens = longest, max_tokens
        self._form, self._reward, self._model, self._running = form, reward, model, running
        self._sampler: Sampler | None = None
        self._rewards: Rewards | None = None
        self.generation_s = self.judging_s = 0.0
        """Time of the last trial."""

    def play(
        self, params: Params, version: int, problems: Sequence[int], trial: Trial
    ) -> list[RolloutGroup]:
        """Draw completions of each problem and compute their rewards.

        Args:
            params: the policy's weights.
            version: their number.
            problems: numbers of problems.
            trial: how to draw.

        Raises:
            DataError: a prompt is too long.
            ConfigError, EnvironmentError: as :meth:`start_rewards`.
            RewardError: rewards fail again and again.
        """
        asked = [self.task.problem(number, trial.part) for number in problems]
        prompts = [self._encoded(problem) for problem in asked]
        rewards = self.start_rewards()
        if self._sampler is None:
            self._sampler = Sampler(
                self._model, params, self.tokenizer, longest=self.longest, running=self._running
            )
        begun = time.perf_counter()
        drawn = self._sampler.draw(
            params,
            version,
            prompts,
            group=trial.group,
            seeds=[
                draw_seed(trial.seed, trial.step, place, trial.purpose)
                for place in range(len(prompts))
            ],
            temperature=trial.temperature,
            max_tokens=self.max_tokens,
        )
        generated = time.perf_counter()
        verdicts = rewards.judge(
            [
                (problem.prompt, completion.text, dict(problem.row))
                for problem, completions in zip(asked, drawn)
                for completion in completions
            ]
        )
        self.generation_s, self.judging_s = generated - begun, time.perf_counter() - generated
        n = trial.group
        return [
            RolloutGroup(problem, prompt, completions, verdicts[place * n : (place + 1) * n])
            for place, (problem, prompt, completions) in enumerate(zip(asked, prompts, drawn))
        ]

    def start_rewards(self) -> Rewards:
        """Start the reward processes, so that an unusable reward function is found before the first
        step.

        Raises:
            ConfigError, EnvironmentError: the reward function cannot be loaded, or takes other
                arguments.
        """
        if self._rewards is None:
            self._rewards = Rewards(
                self.task.scorer,
                timeout_s=self._reward.timeout_s,
                on_failure=self._reward.on_failure,
                processes=self._reward.processes,
                max_failures=self._reward.max_failures,
            )
        return self._rewards

    def close(self) -> None:
        """Stop the engine's thread and the reward processes."""
        if self._sampler is not None:
            self._sampler.close()
        if self._rewards is not None:
            self._rewards.close()
        self._sampler = self._rewards = None

    def _encoded(self, problem: Problem) -> list[int]:
        ids = prompt_ids(self._form, self.tokenizer, problem.prompt)
        room = self.longest - self.max_tokens
        if not 1 <= len(ids) <= room:
            raise DataError(
                f"prompt {problem.prompt[:60]!r}",
                found=f"{len(ids)} tokens",
                expected=f"1 to {room}: what max_tokens leaves of data.sequence_length",
                fix="raise data.sequence_length",
            )
        return ids
