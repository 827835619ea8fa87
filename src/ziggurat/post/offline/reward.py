"""Reward modelling over pairs of answers."""

import jax.numpy as jnp

from ziggurat.mesh import Layout
from ziggurat.models import Params
from ziggurat.post import tuning
from ziggurat.post.log_probs import stacked, unstacked
from ziggurat.post.losses.reward import bradley_terry
from ziggurat.post.offline.answers import SIDES, load_answers, pair_struct
from ziggurat.post.reward_model import HEAD, scores
from ziggurat.post.tuning import Tuned
from ziggurat.train.config import RunConfig
from ziggurat.train.objectives import text
from ziggurat.train.objectives.nodes import RewardModelling
from ziggurat.train.parts import Parts, Program
from ziggurat.train.step import Arrays, Objective, Sums


class Scored:
    """``kind = "reward"``."""

    def program(self, run: RunConfig, layout: Layout) -> Program:
        tuned = Tuned(model=text.abstract_model(run, layout), lora=run.adapter, scored=True)
        return _program(run, layout, tuned, tuned.frozen_shapes(layout, reference=False))

    def parts(self, run: RunConfig, layout: Layout) -> Parts:
        start = tuning.begin(run, layout, scored=True)
        tokenizer = text.load_tokenizer(run, start.loaded, start.tuned.model)
        data, held_out = load_answers(run, tokenizer, "preference")
        return Parts(
            program=_program(run, layout, start.tuned, tuning.shapes_of(start.frozen)),
            data=data,
            files=tuning.files_of(run, start, tokenizer),
            start=start.params,
            frozen=start.frozen,
            tokenizer=tokenizer,
            eval_data=held_out,
        )


def _node(run: RunConfig) -> RewardModelling:
    assert isinstance(run.objective, RewardModelling)
    return run.objective


def _program(run: RunConfig, layout: Layout, tuned: Tuned, frozen: Params) -> Program:
    return Program(
        model=tuned,
        sums=reward_modelling(tuned, _node(run)),
        batch=pair_struct(layout, run.data.batch_size, text.row_tokens(run)),
        frozen=frozen,
    )


def reward_modelling(tuned: Tuned, node: RewardModelling) -> Objective:
    """Sums over pairs; their weight is the number of pairs.

    Metrics, as means over pairs: ``rewards/chosen`` and ``rewards/rejected``, the scores;
    ``rewards/margins``, their difference; ``accuracy`` and ``rewards/accuracies``: how often it is
    positive.
    """

    def objective(params: Params, batch: Arrays, frozen: Params) -> Sums:
        both = stacked(batch, SIDES)
        policy, head = tuned.policy(params, frozen), params[HEAD]["kernel"]
        chosen, rejected = unstacked(scores(tuned.model, policy, head, both))
        counted = jnp.minimum(*unstacked(both["loss_mask"].sum(-1))) > 0
        margin = jnp.full_like(chosen, node.margin)
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
