"""The language-modelling objective: predict every next token of packed documents."""

import jax

from ziggurat.mesh import Layout
from ziggurat.models import LanguageModel, Params
from ziggurat.nn.attention_context import Packed
from ziggurat.optim import LossConfig, next_token_loss
from ziggurat.train.step import Arrays, Objective, Sums


def language_modelling(model: LanguageModel, loss: LossConfig, layout: Layout) -> Objective:
    """The objective of pretraining over batches of ``core.protocols.Batch``.

    Its sums are ``nll`` (nats), ``z_loss`` and ``correct``; the weight is the number of targets.
    """
    shards = layout.ways("batch") * layout.ways("sequence")

    def objective(params: Params, batch: Arrays) -> Sums:
        context = Packed(batch["segment_ids"])
        hidden, _ = model.hidden(params, batch["tokens"], batch["positions"], context)
        with jax.named_scope("loss"):
            total, metrics = next_token_loss(
                hidden,
                model.head(params),
                batch["targets"],
                batch["loss_mask"],
                loss,
                logit_softcap=model.decoder.logit_softcap,
                token_shards=shards,
            )
        sums = {
            "loss": metrics.nll,
            "z_loss": metrics.z_loss,
            "accuracy": metrics.correct.astype(metrics.nll.dtype),
        }
        return Sums(total, metrics.tokens, sums)

    return objective
