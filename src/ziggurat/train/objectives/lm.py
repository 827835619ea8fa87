"""The language-modelling objective: predict every next token of packed documents."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import jax

from ziggurat.core import config
from ziggurat.core.errors import ConfigError
from ziggurat.kernels.linear import dense, is_quantized
from ziggurat.mesh import Layout
from ziggurat.models import LanguageModel, Params
from ziggurat.models.loading import pretrained, step_files
from ziggurat.nn.attention_context import Packed
from ziggurat.nn.moe import MixtureOfExpertsConfig
from ziggurat.nn.multimodal import MultimodalInputs
from ziggurat.nn.router import Routing, largest_load, load_balancing_loss, router_z_loss
from ziggurat.optim import LossConfig, next_token_loss
from ziggurat.train.config import RunConfig
from ziggurat.train.objectives import text
from ziggurat.train.parts import ObjectiveKind, Parts, TrainingData, TrainingProgram
from ziggurat.train.step import Arrays, Objective, Sums


@config.node
class LanguageModelling:
    """Objective of pretraining: predict every next token."""

    kind: Literal["lm"] = "lm"
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    """The cross-entropy and how it is computed."""


class PackedText(ObjectiveKind):
    """Objective kind ``lm``: next-token prediction over packed documents."""

    node = LanguageModelling
    streams = True
    quantized = True

    def program(self, run: RunConfig, layout: Layout) -> TrainingProgram:
        text.check_documents(run)
        return self._program(run, layout, text.abstract_model(run, layout))

    def parts(self, run: RunConfig, layout: Layout, data: TrainingData | None = None) -> Parts:
        text.check_documents(run)
        start = text.load_start(run)
        if start is None:
            model = text.abstract_model(run, layout)
        else:
            model = text.build_model(start.model.config, run, layout)
        tokenizer = text.load_tokenizer(run, start, model)
        data, held_out = text.load_data(run, tokenizer, model, given=data)

        def trained(params: Params) -> pretrained.Pretrained:
            return pretrained.Pretrained(model, params, tokenizer, run.name, str(run.directory))

        return Parts(
            program=self._program(run, layout, model),
            data=data,
            files=step_files.files_of(model.config, tokenizer),
            start=None if start is None else start.params,
            tokenizer=tokenizer,
            eval_data=held_out,
            perplexity=True,
            pretrained=trained,
        )

    def sums(self, run: RunConfig, model: LanguageModel, layout: Layout) -> Objective:
        """Loss and metrics of a batch, as sums over its rows; a subclass may return another
        loss."""
        return language_modelling(model, self._loss(run), layout)

    def _program(self, run: RunConfig, layout: Layout, model: LanguageModel) -> TrainingProgram:
        return TrainingProgram(
            model=model,
            sums=self.sums(run, model, layout),
            batch=text.batch_struct(layout, run.data.batch_size, text.row_tokens(run)),
            router_bias_rate=self._loss(run).router_bias_rate,
        )

    def _loss(self, run: RunConfig) -> LossConfig:
        """Settings of the loss; the defaults where the run file has another node."""
        node = run.objective
        return node.loss if isinstance(node, LanguageModelling) else LossConfig()


def language_modelling(
    model: LanguageModel, loss: LossConfig, layout: Layout, *, frozen_base: bool = False
) -> Objective:
    """The objective of pretraining over batches of ``core.protocols.Batch``.

    Its sums are ``nll`` (nats), ``z_loss`` and ``correct``; the weight is the number of targets.
    With mixtures of experts also ``load_balancing_loss``, ``router_z_loss`` (both without their
    coefficients) and ``max_expert_load``, and the loads by which routers' biases are corrected.
    Padding is no part of them.

    Args:
        model: the model.
        loss: the objective's node.
        layout: where arrays live.
        frozen_base: whether adapters are trained and not the weights, which may be quantised then.

    Raises:
        ConfigError: the loss asks for what the model has not: experts, or a correcting bias; or
            the model's weights are quantised.
    """
    with_inputs = multimodal_language_modelling(model, loss, layout, frozen_base=frozen_base)

    def objective(params: Params, batch: Arrays, frozen: Params) -> Sums:
        return with_inputs(params, batch, None, None)

    return objective


MultimodalObjective = Callable[[Params, Arrays, MultimodalInputs | None, jax.Array | None], Sums]
"""``(params, batch, inputs, last_seen) -> Sums``, for the parameters of a language model."""


def multimodal_language_modelling(
    model: LanguageModel, loss: LossConfig, layout: Layout, *, frozen_base: bool = False
) -> MultimodalObjective:
    """The objective of :func:`language_modelling` with embeddings of images among the tokens'.

    It also takes the inputs beside tokens, and the last position that each token sees where this is
    not its own (see :class:`ziggurat.nn.attention_context.Packed`).

    Raises:
        ConfigError: as :func:`language_modelling`.
    """
    _check(model, loss, frozen_base)
    shards = layout.ways("batch") * layout.ways("sequence")

    def objective(
        params: Params,
        batch: Arrays,
        inputs: MultimodalInputs | None,
        last_seen: jax.Array | None,
    ) -> Sums:
        context = Packed(batch["segment_ids"], last_seen)
        tokens, positions = batch["tokens"], batch["positions"]
        hidden, _, routing = model.run(params, tokens, positions, context, inputs)
        with jax.named_scope("loss"):
            head = dense(model.head(params))
            total, metrics = next_token_loss(
                hidden,
                head,
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
        if not routing:
            return Sums(total, metrics.tokens, sums)
        extra, reports = _router_losses(list(routing.values()), loss, metrics.tokens)
        loads = {stack: report.counts for stack, report in routing.items()}
        return Sums(total + extra, metrics.tokens, sums | reports, loads)

    return objective


def _router_losses(
    routing: Sequence[Routing], loss: LossConfig, tokens: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Router losses and figures, times the number of targets of these rows: means of routers'
    tokens become sums like all else."""
    balance, z = load_balancing_loss(routing), router_z_loss(routing)
    reports = {
        "load_balancing_loss": balance * tokens,
        "router_z_loss": z * tokens,
        "max_expert_load": largest_load(routing) * tokens,
    }
    extra = loss.load_balancing * balance + loss.router_z_loss * z
    return extra * tokens, reports


def _check(model: LanguageModel, loss: LossConfig, frozen_base: bool) -> None:
    leaves = jax.tree.leaves(model.abstract, is_leaf=is_quantized)
    if any(map(is_quantized, leaves)) and not frozen_base:
        raise ConfigError(
            "model",
            found="quantised weights",
            expected="weights in floating point, which gradients need",
            fix="train the model it was made from, and quantise the result",
        )
    mixtures = [b.mlp for b in model.decoder.stacks if isinstance(b.mlp, MixtureOfExpertsConfig)]
    corrected = any(mixture.router.correction for mixture in mixtures)
    for key, there, expected in (
        ("load_balancing", bool(mixtures), "0 for a model without experts"),
        ("router_z_loss", bool(mixtures), "0 for a model without experts"),
        ("router_bias_rate", corrected, "0 for a model whose routers have no correcting bias"),
    ):
        value = getattr(loss, key)
        if value and not there:
            raise ConfigError(f"objective.loss.{key}", found=value, expected=expected)
