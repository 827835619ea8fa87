"""Loss on documents that training never sees."""

import math

import jax

from ziggurat.models import Params
from ziggurat.train.experiment import Experiment, local_rows


def evaluate(experiment: Experiment, params: Params) -> dict[str, float]:
    r"""Mean next-token loss over the first held-out batches.

    Returns:
        ``eval_loss`` (nats a token), ``eval_perplexity`` :math:`e^{\mathrm{loss}}`,
        ``eval_accuracy`` and ``eval_tokens``; empty when nothing is held out.
    """
    data = experiment.eval_data
    if data is None:
        return {}
    rows = local_rows(experiment.layout, data.batch_size)
    batches = min(experiment.run.evaluation.batches, data.steps or data.steps_per_epoch)
    totals: dict[str, float] = {"weight": 0.0}
    for step in range(batches):
        batch = experiment.place(data.batch(step, rows))
        sums = jax.device_get(experiment.evaluate(params, batch))
        totals["weight"] += float(sums.weight)
        for name, value in sums.metrics.items():
            totals[name] = totals.get(name, 0.0) + float(value)
    weight = max(totals["weight"], 1.0)
    loss = totals["loss"] / weight
    return {
        "eval_loss": loss,
        "eval_perplexity": math.exp(loss) if loss < 700 else math.inf,
        "eval_accuracy": totals["accuracy"] / weight,
        "eval_tokens": totals["weight"],
    }
