"""Accuracy on problems: pass@1 and pass@k with their intervals.

>>> tally = Tally(np.array([2, 0, 1]), samples=2)
>>> tally.pass_at(1), round(tally.pass_at(2), 4)
(0.5, 0.6667)
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Int

from ziggurat.models import Params
from ziggurat.post.rl.arena import Arena, RolloutGroup, Trial

Z95 = 1.959963984540054
"""Deviations of a normal variable within which it lies in 95 of 100 cases."""


@dataclasses.dataclass(frozen=True)
class Tally:
    """Number of correct completions of each problem."""

    right: Int[np.ndarray, "p"]
    samples: int
    """Completions of each problem."""
    mean_reward: float = 0.0
    mean_tokens: float = 0.0
    """Mean number of tokens of a completion."""
    failures: int = 0
    """Completions whose judge hung, died or raised."""

    def pass_at(self, k: int) -> float:
        r"""Mean over problems of the chance that one of ``k`` completions is right, without bias:
        :math:`1 - \binom{n - c}{k} / \binom{n}{k}` for c of n right (Chen et al. 2021,
        https://arxiv.org/abs/2107.03374)."""
        n = self.samples
        wrong = [math.comb(n - int(c), k) / math.comb(n, k) for c in self.right]
        return 1.0 - float(np.mean(wrong))

    def interval(self, k: int = 1) -> tuple[float, float]:
        """95% interval of :meth:`pass_at` as an estimate for the task's other problems."""
        return wilson(self.pass_at(k), len(self.right))

    def figures(self, k: int = 1) -> dict[str, float]:
        """Metrics of an evaluation by name."""
        named = {}
        for count in sorted({1, k}):
            low, high = self.interval(count)
            name = f"eval_pass_at_{count}"
            named |= {name: self.pass_at(count), f"{name}_low": low, f"{name}_high": high}
        return named | {
            "eval_reward": self.mean_reward,
            "eval_completion_tokens": self.mean_tokens,
            "eval_problems": float(len(self.right)),
            "eval_reward_failures": float(self.failures),
        }


def wilson(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share of ``count`` independent trials.

    Where trials give shares rather than 0 or 1, as problems of several completions do, their
    variance is at most that of a coin with the same mean, and the interval is no narrower than it
    should be (Wilson 1927; Brown, Cai and DasGupta 2001, https://doi.org/10.1214/ss/1009213286).

    >>> [round(end, 4) for end in wilson(0.5, 100)]
    [0.4038, 0.5962]
    >>> [round(end, 4) for end in wilson(0.0, 20)]
    [0.0, 0.1611]
    """
    square = Z95 * Z95
    middle = (share + square / (2 * count)) / (1 + square / count)
    spread = share * (1 - share) / count + square / (4 * count * count)
    half = Z95 * math.sqrt(spread) / (1 + square / count)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def measure(
    arena: Arena,
    params: Params,
    problems: int,
    *,
    samples: int,
    temperature: float,
    success: float,
    seed: int,
) -> Tally:
    """Evaluate a policy on the first ``problems`` held-out problems, with equal draws each time.

    Args:
        arena: task, sampler and rewards.
        params: the policy's weights.
        problems: how many; at most those held out.
        samples: completions of each.
        temperature: of the draws; 0: the most likely token always.
        success: reward from which a completion is right.
        seed: of the draws.
    """
    trial = Trial(samples, temperature, seed, purpose="evaluation", part="held_out")
    groups = arena.play(params, 0, range(min(problems, arena.task.held_out)), trial)
    return tally(groups, success)


def tally(groups: list[RolloutGroup], success: float) -> Tally:
    """Count the correct completions of each problem."""
    rewards = np.array([group.rewards for group in groups])
    lengths = [len(drawn.tokens) for group in groups for drawn in group.completions]
    return Tally(
        right=(rewards >= success).sum(1),
        samples=rewards.shape[1],
        mean_reward=float(rewards.mean()),
        mean_tokens=float(np.mean(lengths)),
        failures=sum(v.failure is not None for group in groups for v in group.verdicts),
    )
