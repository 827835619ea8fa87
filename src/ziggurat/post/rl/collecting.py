"""The rollout hook of the training loop: from a step's problems to the batch that it learns from.

Phases within it, each timed: the engine completes the prompts, rewards judge, and the trainer's own
program computes the log-probabilities of the same tokens from the same weights. What sampler and
trainer say of each token is compared every time.
"""

import io
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ziggurat.core import atomic
from ziggurat.core.errors import TrainError
from ziggurat.core.protocols import Batch
from ziggurat.models import Params
from ziggurat.post.losses import policy
from ziggurat.post.rl.arena import Arena, RolloutGroup, Trial
from ziggurat.post.rl.config import Grpo, Problems
from ziggurat.post.rl.rows import completion_rows, kept_rows, shaped_rewards
from ziggurat.train.config import RunConfig
from ziggurat.train.objectives import text

_log = logging.getLogger(__name__)
Scores = Callable[[Params, Mapping[str, Any]], Any]
"""``(params, batch) -> (log_probs, entropies)``, each ``[b t]``; jitted."""
SCORED = ("tokens", "targets", "segment_ids", "positions")
KEPT_ROLLOUTS = 3
"""Files of rollouts that a run keeps, where several steps learn from one."""


class Collector:
    """Sampler of training batches; implements :class:`ziggurat.train.parts.Rollout`.

    Args:
        run: the run file; its objective is of kind ``grpo``.
        arena: task, sampler and rewards.
        scores: the trainer's log-probabilities and entropies.
        place: puts rows on the devices as the step wants them.
        reference: weights that the policy is kept near to, if it is.
    """

    def __init__(
        self,
        run: RunConfig,
        arena: Arena,
        scores: Scores,
        place: Callable[[Batch], Mapping[str, jax.Array]],
        reference: Params | None,
    ):
        assert isinstance(run.objective, Grpo)
        assert isinstance(run.data, Problems)
        self._run, self._node, self._arena = run, run.objective, arena
        self._length = run.data.sequence_length
        self._scores, self._place, self._reference = scores, place, reference
        self._kept: tuple[int, Batch] | None = None
        self._equal_rollouts = 0

    def __call__(self, params: Params, batch: Batch, step: int) -> tuple[Batch, dict[str, float]]:
        """See :class:`ziggurat.train.parts.Rollout`.

        Raises:
            TrainError: sampler and trainer disagree by more than the run allows.
            DataError: a prompt is too long.
        """
        first = step - step % self._node.updates
        if step != first:
            return self._again(first), {"rollout_age_steps": float(step - first)}
        rows, figures = self._fresh(params, batch["problems"].tolist(), step)
        if self._node.updates > 1:
            self._kept = (step, rows)
            _store(self._directory, step, rows)
            figures["rollout_age_steps"] = 0.0
        return rows, figures

    def _fresh(
        self, params: Params, problems: Sequence[int], step: int
    ) -> tuple[Batch, dict[str, float]]:
        node, arena = self._node, self._arena
        trial = Trial(node.group, node.sampling.temperature, self._run.seed, step)
        groups = arena.play(params, step, problems, trial)
        rows = completion_rows(groups, text.row_tokens(self._run))
        begun = time.perf_counter()
        old, entropies = self._scored(params, rows)
        gap = gap_of(old, rows)
        self._check(gap, step)
        sampler = rows.pop("sampler_log_probs")
        rewards = shaped_rewards(groups, node)
        kept = kept_rows(groups, rewards, node)
        figures = _figures(groups, rewards, kept, rows["loss_mask"], entropies) | gap
        self._warn_if_equal(figures["equal_groups"], step)
        reference = None
        if self._reference is not None:
            reference = self._scored(self._reference, rows)[0]
            if node.kl_in == "reward":
                mask, apart = rows["loss_mask"], old - reference
                figures["kl"] = float((apart * mask).sum() / mask.sum())
                shaped, ours, theirs, own = map(jnp.asarray, (rewards, old, reference, mask))
                rewards = np.asarray(policy.penalised(shaped, ours, theirs, own, node.kl_coef))
        advantages = policy.group_advantages(
            jnp.asarray(rewards), baseline=node.baseline, scale=node.scale
        )
        rows |= {
            "old_log_probs": old,
            "advantages": np.asarray(advantages, np.float32).reshape(-1),
            "loss_mask": rows["loss_mask"] * kept[:, None],
        }
        if node.sampler_cap is not None:
            rows["sampler_log_probs"] = sampler
        if reference is not None and node.kl_in == "loss":
            rows["reference_log_probs"] = reference
        tokens = sum(len(d.tokens) for group in groups for d in group.completions)
        return rows, figures | {
            "generation_s": arena.generation_s,
            "judging_s": arena.judging_s,
            "scoring_s": time.perf_counter() - begun,
            "generated_tokens_per_s": tokens / max(arena.generation_s, 1e-9),
        }

    def _scored(self, params: Params, rows: Batch) -> tuple[np.ndarray, np.ndarray]:
        placed = self._place({name: rows[name] for name in SCORED})
        log_probs, entropies = jax.device_get(self._scores(params, placed))
        return np.asarray(log_probs), np.asarray(entropies)

    def _check(self, gap: Mapping[str, float], step: int) -> None:
        limit, found = self._node.sampling.gap_limit, gap["sampler_gap_mean"]
        if found <= limit:
            return
        what = f"rollout of step {step}"
        say = f"{found:.3g} nats a token between sampler and trainer, {gap['sampler_gap_max']:.3g} "
        error = TrainError(
            what,
            found=say + "at most",
            expected=f"a mean of at most objective.sampling.gap_limit = {limit}",
            fix="raise it for lower precision, or set gap_action = 'warn'",
        )
        if self._node.sampling.gap_action == "error" or not np.isfinite(found):
            raise error
        _log.warning("%s", error)

    def _warn_if_equal(self, equal_groups: float, step: int) -> None:
        """Say that a rollout teaches nothing: at the first one in a row, the tenth, and so on."""
        self._equal_rollouts = self._equal_rollouts + 1 if equal_groups == 1 else 0
        count = self._equal_rollouts
        if count and count == 10 ** (len(str(count)) - 1):
            _log.warning(
                "rollout of step %d: the rewards of each group are all equal, so that no answer is "
                "better than another and its reward has no gradient (%d in a row)",
                *(step, count),
            )

    @property
    def _directory(self) -> Path:
        return self._run.directory / "rollouts"

    def _again(self, first: int) -> Batch:
        """The batch that step ``first`` learned from: in memory, or on disk after a restart."""
        if self._kept is None or self._kept[0] != first:
            self._kept = (first, _stored(self._directory, first))
        return self._kept[1]


def gap_of(trainer: np.ndarray, rows: Batch) -> dict[str, float]:
    """Difference in nats between the sampler's and the trainer's log-probabilities of completion
    tokens."""
    apart = np.abs(trainer - rows["sampler_log_probs"])[rows["loss_mask"] > 0]
    return {"sampler_gap_mean": float(apart.mean()), "sampler_gap_max": float(apart.max())}


def _figures(
    groups: Sequence[RolloutGroup],
    rewards: np.ndarray,
    kept: np.ndarray,
    mask: np.ndarray,
    entropies: np.ndarray,
) -> dict[str, float]:
    drawn = [completion for group in groups for completion in group.completions]
    failures = [v.failure for group in groups for v in group.verdicts]
    lengths = np.array([len(completion.tokens) for completion in drawn])
    return {
        "reward": float(rewards.mean()),
        "reward_std": float(rewards.std(1, ddof=1).mean()),
        "reward_failures": float(sum(failure is not None for failure in failures)),
        "reward_timeouts": float(failures.count("timeout")),
        "equal_groups": float((rewards.max(1) == rewards.min(1)).mean()),
        "completions_left_out": float((kept == 0).mean()),
        "completion_tokens": float(lengths.mean()),
        "completion_tokens_max": float(lengths.max()),
        "truncated": float(np.mean([not completion.ended for completion in drawn])),
        "entropy": float((entropies * mask).sum() / mask.sum()),
        "weights_version": float(min(v for completion in drawn for v in completion.versions)),
    }


def _store(directory: Path, step: int, rows: Batch) -> None:
    """Keep a rollout for steps that learn from it after a restart, and the ones before it."""
    content = io.BytesIO()
    np.savez(content, **rows)  # pyright: ignore[reportArgumentType]
    directory.mkdir(parents=True, exist_ok=True)
    atomic.write_file(_file(directory, step), content.getvalue())
    for old in sorted(directory.glob("step_*.npz"))[:-KEPT_ROLLOUTS]:
        old.unlink(missing_ok=True)


def _stored(directory: Path, step: int) -> Batch:
    file = _file(directory, step)
    try:
        with np.load(file) as stored:
            return dict(stored)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise TrainError(
            f"rollout {file}",
            found=reason,
            expected=f"what the steps after {step} learn from",
            fix="resume from a checkpoint at a multiple of objective.updates",
        ) from None


def _file(directory: Path, step: int) -> Path:
    return directory / f"step_{step:08d}.npz"
