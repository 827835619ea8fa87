"""The language-modelling objective: predict every next token of packed documents."""

from collections.abc import Sequence

import jax

from ziggurat.core.errors import ConfigError
from ziggurat.mesh import Layout
from ziggurat.models import LanguageModel, Params
from ziggurat.nn.attention_context import Packed
from ziggurat.nn.moe import MixtureConfig
from ziggurat.nn.router import Routing, largest_load, load_balancing_loss, router_z_loss
from ziggurat.optim import LossConfig, next_token_loss
from ziggurat.train.step import Arrays, Objective, Sums


def language_modelling(model: LanguageModel, loss: LossConfig, layout: Layout) -> Objective:
    """The objective of pretraining over batches of ``core.protocols.Batch``.

    Its sums are ``nll`` (nats), ``z_loss`` and ``correct``; the weight is the number of targets.
    With mixtures of experts also ``load_balancing_loss``, ``router_z_loss`` (both without their
    coefficients) and ``max_expert_load``, and the loads by which routers' biases are corrected.
    Padding is no part of them.

    Raises:
        ConfigError: the loss asks for what the model has not: experts, or a correcting bias.
    """
    _check(model, loss)
    shards = layout.ways("batch") * layout.ways("sequence")

    def objective(params: Params, batch: Arrays) -> Sums:
        context = Packed(batch["segment_ids"])
        hidden, _, routing = model.run(params, batch["tokens"], batch["positions"], context)
        with jax.named_scope("loss"):
            total, metrics = next_token_loss(
                hidden,
                model.head(params),
                batch["targets"],
                batch["loss_mask"],
                loss,
                token_shards=shards,
            )
        sums = {
            "loss": metrics.nll,
            "z_loss": metrics.z_loss,
            "accuracy": metrics.correct.astype(metrics.nll.dtype),
        }
        if not routing:
            return Sums(total, metrics.tokens, sums)
        extra, reports = _router_losses(list(routing.values()), loss, metrics.tokens)
        loads = {stack: report.counts for stack, report in routing.items()}
        return Sums(total + extra, metrics.tokens, sums | reports, loads)

    return objective


def _router_losses(
    routing: Sequence[Routing], loss: LossConfig, tokens: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """What routers add to the loss, and figures for reports, times the targets of these rows: means
    of routers' tokens become sums like all else."""
    balance, z = load_balancing_loss(routing), router_z_loss(routing)
    reports = {
        "load_balancing_loss": balance * tokens,
        "router_z_loss": z * tokens,
        "max_expert_load": largest_load(routing) * tokens,
    }
    extra = loss.load_balancing * balance + loss.router_z_loss * z
    return extra * tokens, reports


def _check(model: LanguageModel, loss: LossConfig) -> None:
    mixtures = [b.mlp for b in model.decoder.stacks if isinstance(b.mlp, MixtureConfig)]
    corrected = any(mixture.router.correction for mixture in mixtures)
    for key, there, expected in (
        ("load_balancing", bool(mixtures), "0 for a model without experts"),
        ("router_z_loss", bool(mixtures), "0 for a model without experts"),
        ("router_bias_rate", corrected, "0 for a model whose routers have no correcting bias"),
    ):
        value = getattr(loss, key)
        if value and not there:
            raise ConfigError(f"objective.loss.{key}", found=value, expected=expected)
