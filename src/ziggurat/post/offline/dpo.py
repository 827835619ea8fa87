"""Direct preference optimisation over pairs of answers."""

from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp

from ziggurat.core import config
from ziggurat.mesh import Layout
from ziggurat.models import Params
from ziggurat.post.log_probs import stacked, token_log_probs, unstacked
from ziggurat.post.losses.dpo import dpo
from ziggurat.post.offline.answers import SIDES
from ziggurat.post.offline.judging import Judging
from ziggurat.post.tuning import Tuned
from ziggurat.train.config import RunConfig
from ziggurat.train.step import Arrays, Objective, Sums


@config.node
class DirectPreference:
    """Objective: prefer chosen answers to rejected ones, without a reward model (DPO and its
    variants)."""

    kind: Literal["dpo"] = "dpo"
    loss: Literal["sigmoid", "robust", "ipo", "hinge"] = "sigmoid"
    """How a pair's log-ratio becomes its loss."""
    beta: float = 0.1
    """How strongly the policy is held to the reference."""
    label_smoothing: float = 0.0
    """Chance that a label is wrong; of ``sigmoid`` (conservative DPO) and ``robust``."""
    reference: Path | None = None
    """The model to be held to; default the one that the run starts from."""

    def __post_init__(self):
        config.require(self.beta > 0, "beta", self.beta, "a number > 0")
        smooth = self.label_smoothing
        config.require(0 <= smooth < 0.5, "label_smoothing", smooth, "a chance below 0.5")
        fits = not smooth or self.loss in ("sigmoid", "robust")
        config.require(fits, "label_smoothing", smooth, f"0 for {self.loss}")


class Preferred(Judging):
    """Objective kind ``dpo``."""

    node = DirectPreference
    answers = "preference"
    frozen_passes = 1

    def reference(self, run: RunConfig) -> Path | None:
        return _node(run).reference

    def objective(self, run: RunConfig, tuned: Tuned, layout: Layout) -> Objective:
        return direct_preference(tuned, _node(run), layout)


def _node(run: RunConfig) -> DirectPreference:
    assert isinstance(run.objective, DirectPreference)
    return run.objective


def direct_preference(tuned: Tuned, node: DirectPreference, layout: Layout) -> Objective:
    """Loss and metrics as sums over pairs; their weight is the number of pairs.

    Metrics, as means over pairs: ``rewards/chosen`` and ``rewards/rejected``, beta times the
    answers' log-ratios; ``rewards/margins``, their difference; ``rewards/accuracies``, also as
    ``accuracy``: how often it is positive; ``logps/chosen`` and ``logps/rejected``, nats an
    answer.
    """
    shards = layout.ways("batch") * layout.ways("sequence")

    def objective(params: Params, batch: Arrays, frozen: Params) -> Sums:
        both = stacked(batch, SIDES)

        def log_probs(weights: Params) -> tuple[jax.Array, jax.Array]:
            found = token_log_probs(tuned.model, weights, both, token_shards=shards)
            return unstacked(found.sum(-1))

        chosen, rejected = log_probs(tuned.policy(params, frozen))
        held = jax.lax.stop_gradient(log_probs(tuned.reference(frozen)))
        tokens = unstacked(both["loss_mask"].sum(-1))
        counted = jnp.minimum(*tokens) > 0
        losses = dpo(
            *(chosen, rejected, *held),
            beta=node.beta,
            kind=node.loss,
            label_smoothing=node.label_smoothing,
            chosen_tokens=tokens[0],
            rejected_tokens=tokens[1],
        )
        rewards = node.beta * (chosen - held[0]), node.beta * (rejected - held[1])
        right = (rewards[0] > rewards[1]).astype(jnp.float32)
        rows = {
            "loss": losses,
            "accuracy": right,
            "rewards/chosen": rewards[0],
            "rewards/rejected": rewards[1],
            "rewards/margins": rewards[0] - rewards[1],
            "rewards/accuracies": right,
            "logps/chosen": chosen,
            "logps/rejected": rejected,
        }
        sums = {name: jnp.where(counted, row, 0.0).sum() for name, row in rows.items()}
        return Sums(sums["loss"], counted.sum().astype(jnp.float32), sums)

    return objective
