"""Kahneman-Tversky optimisation over labelled answers."""

from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp

from ziggurat.core import config
from ziggurat.mesh import Layout
from ziggurat.models import Params
from ziggurat.post.log_probs import ARRAYS, token_log_probs
from ziggurat.post.losses.kto import kto, reference_point
from ziggurat.post.offline.answers import OTHER
from ziggurat.post.offline.judging import Judging
from ziggurat.post.tuning import Tuned
from ziggurat.train.config import RunConfig
from ziggurat.train.step import Arrays, Objective, Sums


@config.node
class KahnemanTversky:
    """Objective: learn from answers labelled good or bad, without pairs (KTO)."""

    kind: Literal["kto"] = "kto"
    beta: float = 0.1
    """How strongly the policy is held to the reference."""
    desirable_weight: float = 1.0
    """Weight of good answers; with weights the two kinds may count alike though they are not as
    many."""
    undesirable_weight: float = 1.0
    """Weight of bad ones."""
    reference: Path | None = None
    """The model to be held to; default the one that the run starts from."""

    def __post_init__(self):
        for name in ("beta", "desirable_weight", "undesirable_weight"):
            config.require(getattr(self, name) > 0, name, getattr(self, name), "a number > 0")


class Judged(Judging):
    """Objective kind ``kto``."""

    node = KahnemanTversky
    answers = "labelled"
    frozen_passes = 3

    def reference(self, run: RunConfig) -> Path | None:
        return _node(run).reference

    def objective(self, run: RunConfig, tuned: Tuned, layout: Layout) -> Objective:
        return kahneman_tversky(tuned, _node(run), layout)


def _node(run: RunConfig) -> KahnemanTversky:
    assert isinstance(run.objective, KahnemanTversky)
    return run.objective


def kahneman_tversky(tuned: Tuned, node: KahnemanTversky, layout: Layout) -> Objective:
    """Loss and metrics as sums over answers; their weight is the number of answers.

    The reference point is estimated from each micro-batch, whose answers are put behind each
    other's prompts. Metrics: ``kl``, that estimate in nats; ``rewards/chosen`` and
    ``logps/chosen``, means over the good answers of a micro-batch (0 if there are none);
    ``rewards/rejected`` and ``logps/rejected`` over the bad ones; ``rewards/margins``; and
    ``accuracy``, how often a good answer's reward is positive or a bad one's negative.
    """
    shards = layout.ways("batch") * layout.ways("sequence")

    def answers(weights: Params, batch: Arrays) -> jax.Array:
        return token_log_probs(tuned.model, weights, batch, token_shards=shards).sum(-1)

    def objective(params: Params, batch: Arrays, frozen: Params) -> Sums:
        policy, held = tuned.policy(params, frozen), tuned.reference(frozen)
        others = {name: batch[OTHER + name] for name in ARRAYS}
        drift = answers(jax.lax.stop_gradient(policy), others) - answers(held, others)
        matched = (others["loss_mask"].sum(-1) > 0).astype(jnp.float32)
        kl = reference_point(drift, matched)
        log_probs = answers(policy, batch)
        ratio = log_probs - jax.lax.stop_gradient(answers(held, batch))
        good = batch["desirable"][:, 0] > 0
        counted = (batch["loss_mask"].sum(-1) > 0).astype(jnp.float32)
        weights = (node.desirable_weight, node.undesirable_weight)
        losses = kto(
            *(ratio, good, kl),
            beta=node.beta,
            desirable_weight=weights[0],
            undesirable_weight=weights[1],
        )
        loss, weight = (losses * counted).sum(), counted.sum()
        figures = {"kl": kl}
        for name, of in (("chosen", good), ("rejected", ~good)):
            share = of.astype(counted.dtype) * counted
            mean = share / jnp.maximum(share.sum(), 1.0)
            figures[f"rewards/{name}"] = node.beta * (ratio * mean).sum()
            figures[f"logps/{name}"] = (log_probs * mean).sum()
        figures["rewards/margins"] = figures["rewards/chosen"] - figures["rewards/rejected"]
        right = jnp.where(good, ratio > 0, ratio < 0).astype(counted.dtype) * counted
        sums = {"loss": loss, "accuracy": right.sum()}
        return Sums(loss, weight, sums | {n: value * weight for n, value in figures.items()})

    return objective
