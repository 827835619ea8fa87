"""Loss on held-out documents that training never sees."""

import math

import jax

from ziggurat.models import Params
from ziggurat.train.experiment import Experiment, local_rows


def evaluate(experiment: Experiment, params: Params) -> dict[str, float]:
    r"""Evaluate the first held-out batches by the objective's loss, or by its own evaluation.

    Returns:
        ``eval_loss`` and every other metric of the objective per unit of weight, by ``eval_`` and
        its name; for losses in nats a token ``eval_perplexity`` :math:`e^{\mathrm{loss}}`; and
        ``eval_tokens``, the weight. Empty when nothing is held out.
    """
    parts = experiment.parts
    if parts.evaluate is not None:
        return parts.evaluate(params)
    data = parts.eval_data
    if data is None:
        return {}
    rows = local_rows(experiment.layout, data.batch_size)
    batches = min(experiment.run.evaluation.batches, data.steps or data.steps_per_epoch or 1)
    totals: dict[str, float] = {"weight": 0.0}
    for step in range(batches):
        batch = experiment.place(data.batch(step, rows))
        sums = jax.device_get(experiment.evaluate(params, batch, parts.frozen))
        totals["weight"] += float(sums.weight)
        for name, value in sums.metrics.items():
            totals[name] = totals.get(name, 0.0) + float(value)
    tokens = totals.pop("weight")
    means = {f"eval_{name}": total / max(tokens, 1.0) for name, total in totals.items()}
    if parts.perplexity:
        loss = means["eval_loss"]
        means["eval_perplexity"] = math.exp(loss) if loss < 700 else math.inf
    return means | {"eval_tokens": tokens}
