"""Reward modelling over pairs of answers."""

from typing import Literal

import jax.numpy as jnp

from ziggurat.core import config
from ziggurat.core.errors import ConfigError
from ziggurat.mesh import Layout
from ziggurat.models import Params
from ziggurat.post.log_probs import stacked, unstacked
from ziggurat.post.losses.reward import bradley_terry
from ziggurat.post.offline.answers import SIDES
from ziggurat.post.offline.judging import Judging
from ziggurat.post.reward_model import HEAD, scores
from ziggurat.post.tuning import Tuned
from ziggurat.train.config import RunConfig
from ziggurat.train.step import Arrays, Objective, Sums


@config.node
class RewardModelling:
    """Objective: score chosen answers higher than rejected ones."""

    kind: Literal["reward"] = "reward"
    margin: float = 0.0
    """By how much, where records have no ``margin`` of their own."""
    centering: float = 0.0
    """Draws scores towards a mean of 0; 0.01 is usual where that matters."""

    def __post_init__(self):
        config.require(self.centering >= 0, "centering", self.centering, "a number >= 0")


class Scored(Judging):
    """Objective kind ``reward``."""

    node = RewardModelling
    answers = "preference"
    scored = True

    def objective(self, run: RunConfig, tuned: Tuned, layout: Layout) -> Objective:
        assert isinstance(run.objective, RewardModelling)
        return reward_modelling(tuned, run.objective)

    def check_margins(self, run: RunConfig) -> None:
        assert isinstance(run.objective, RewardModelling)
        if run.objective.margin:
            raise ConfigError(
                "objective.margin",
                found=f"{run.objective.margin}, and records with a margin of their own",
                expected="one of the two",
                fix="leave objective.margin out",
            )


def reward_modelling(tuned: Tuned, node: RewardModelling) -> Objective:
    """Loss and metrics as sums over pairs; their weight is the number of pairs.

    Metrics, as means over pairs: ``rewards/chosen`` and ``rewards/rejected``, the scores;
    ``rewards/margins``, their difference; ``accuracy`` and ``rewards/accuracies``: how often it is
    positive.
    """

    def objective(params: Params, batch: Arrays, frozen: Params) -> Sums:
        both = stacked(batch, SIDES)
        policy, head = tuned.policy(params, frozen), params[HEAD]["kernel"]
        chosen, rejected = unstacked(scores(tuned.model, policy, head, both))
        counted = jnp.minimum(*unstacked(both["loss_mask"].sum(-1))) > 0
        margin = node.margin + batch["margin"][:, 0]
        losses = bradley_terry(chosen, rejected, margin=margin, centering=node.centering)
        right = (chosen > rejected).astype(jnp.float32)
        rows = {
            "loss": losses,
            "accuracy": right,
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margins": chosen - rejected,
            "rewards/accuracies": right,
        }
        sums = {name: jnp.where(counted, row, 0.0).sum() for name, row in rows.items()}
        return Sums(sums["loss"], counted.sum().astype(jnp.float32), sums)

    return objective
