"""Distillation: a student predicts as its teacher does, on given text."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ziggurat.core import config
from ziggurat.core.errors import ConfigError
from ziggurat.kernels.linear import dense
from ziggurat.mesh import Layout
from ziggurat.models import LanguageModel, Params
from ziggurat.models.loading import pretrained
from ziggurat.models.quantized import formats_of, quantized
from ziggurat.nn.attention_context import Packed
from ziggurat.post import tuning
from ziggurat.post.losses.distillation import divergence
from ziggurat.post.tuning import Tuned
from ziggurat.train.config import RunConfig
from ziggurat.train.objectives import text
from ziggurat.train.parts import ObjectiveKind, Parts, TrainingData, TrainingProgram
from ziggurat.train.step import Arrays, Objective, Sums

TEACHER = "teacher"
BETAS: Mapping[str, float] = {"forward": 0.0, "js": 0.5, "reverse": 1.0}


@config.node
class Distillation:
    """Objective: match the next-token distribution of a larger model."""

    kind: Literal["distill"] = "distill"
    teacher: Path
    """Run, checkpoint step, Hugging Face directory or GGUF file; with the same tokenizer."""
    divergence: Literal["forward", "reverse", "js"] = "forward"
    """KL of the student from the teacher, of the teacher from the student, or Jensen-Shannon."""
    temperature: float = 1.0
    """Divides the logits of both."""
    hard_weight: float = 0.0
    """Share of the usual cross-entropy in the loss."""
    chunk_tokens: int = 512
    """Tokens whose logits of both models exist at once."""

    def __post_init__(self):
        config.require(self.temperature > 0, "temperature", self.temperature, "a number > 0")
        hard = self.hard_weight
        config.require(0 <= hard < 1, "hard_weight", hard, "a share of 0 or more and below 1")
        config.require(self.chunk_tokens >= 1, "chunk_tokens", self.chunk_tokens, "at least 1")


class Distilled(ObjectiveKind):
    """Objective kind ``distill``."""

    node = Distillation
    streams = True
    adapted = True

    def program(self, run: RunConfig, layout: Layout) -> TrainingProgram:
        raise ConfigError(
            "objective distill",
            found="a teacher, known by its path only",
            expected="an objective that can be planned without reading weights",
        )

    def parts(self, run: RunConfig, layout: Layout, data: TrainingData | None = None) -> Parts:
        node = run.objective
        assert isinstance(node, Distillation)
        start = tuning.begin(run, layout, frozen_passes=1)
        tokenizer = text.load_tokenizer(run, start.loaded, start.tuned.model)
        loaded = pretrained.load(node.teacher)
        _check(loaded, tokenizer, start.tuned.model, node)
        teacher = text.build_model(loaded.model.config, run, layout)
        if formats := formats_of(loaded.params):
            teacher = quantized(teacher, formats)
        frozen = start.frozen | {TEACHER: tuning.placed(loaded.params, teacher, layout)}
        data, held_out = text.load_data(run, tokenizer, start.tuned.model, teacher, given=data)
        return Parts(
            program=TrainingProgram(
                model=start.tuned,
                sums=distillation(start.tuned, teacher, node),
                batch=text.batch_struct(layout, run.data.batch_size, text.row_tokens(run)),
                frozen=tuning.shapes_of(frozen),
                frozen_axes=start.tuned.frozen_axes(start.frozen) | {TEACHER: teacher.axes},
            ),
            data=data,
            files=tuning.files_of(run, start, tokenizer),
            start=start.params,
            frozen=frozen,
            tokenizer=tokenizer,
            eval_data=held_out,
            pretrained=tuning.trained_model(run, start, tokenizer),
        )


def _check(
    teacher: pretrained.Pretrained, tokenizer: object, student: LanguageModel, node: Distillation
) -> None:
    ours, theirs = student.decoder.vocab_size, teacher.model.decoder.vocab_size
    same = getattr(tokenizer, "digest", None) == teacher.tokenizer.digest
    if ours != theirs or not same:
        found = f"{theirs} entries" if ours != theirs else "another tokenizer"
        raise ConfigError(
            f"objective.teacher {node.teacher}: vocabulary",
            found=found,
            expected=f"the student's, {ours} entries",
            fix="distil between models of one tokenizer",
        )


def distillation(tuned: Tuned, teacher: LanguageModel, node: Distillation) -> Objective:
    """Loss and metrics as sums over the targets that ``loss_mask`` counts; the weight is their
    number.

    Metrics, as means over targets, nats: ``divergence``; ``nll``, the usual cross-entropy;
    ``loss``, of both what is minimised; and ``accuracy``, how often the target is the student's
    likeliest.
    """
    student, beta = tuned.model, BETAS[node.divergence]

    def objective(params: Params, batch: Arrays, frozen: Params) -> Sums:
        context, where = Packed(batch["segment_ids"]), (batch["tokens"], batch["positions"])
        policy, other = tuned.policy(params, frozen), frozen[TEACHER]
        hidden, _ = student.hidden(policy, *where, context)
        told, _ = teacher.hidden(other, *where, context)
        heads = dense(student.head(policy)), dense(teacher.head(other))

        def part(piece: dict[str, jax.Array]) -> dict[str, jax.Array]:
            ours = student.logits_of(heads[0], piece["hidden"])
            theirs = jax.lax.stop_gradient(teacher.logits_of(heads[1], piece["told"]))
            return figures(ours, theirs, piece["targets"], piece["mask"], beta, node.temperature)

        rows = {"hidden": hidden, "told": told}
        rows |= {"targets": batch["targets"], "mask": batch["loss_mask"]}
        with jax.named_scope("loss"):
            sums = _in_pieces(part, rows, node.chunk_tokens)
        loss = (1.0 - node.hard_weight) * sums["divergence"] + node.hard_weight * sums["nll"]
        return Sums(loss, batch["loss_mask"].sum(), sums | {"loss": loss})

    return objective


def figures(
    student: Float[Array, "b t v"],
    teacher: Float[Array, "b t v"],
    targets: Array,
    mask: Float[Array, "b t"],
    beta: float,
    temperature: float,
) -> dict[str, Float[Array, ""]]:
    """Sums over counted tokens of divergence, cross-entropy and correct predictions."""
    apart = divergence(student, teacher, beta=beta, temperature=temperature)
    log_probs = jax.nn.log_softmax(student)
    nll = -jnp.take_along_axis(log_probs, targets[..., None], -1)[..., 0]
    right = (student.argmax(-1) == targets).astype(jnp.float32)
    rows = {"divergence": apart, "nll": nll, "accuracy": right}
    return {name: (row * mask).sum() for name, row in rows.items()}


def _in_pieces(part, rows: dict[str, jax.Array], chunk_tokens: int) -> dict[str, jax.Array]:
    """Sums of ``part`` over pieces of the sequence, so that logits of few tokens exist at once;
    the backward pass makes them again. Rows stay whole, as they are sharded."""
    batch, length = rows["mask"].shape
    size = min(length, max(1, chunk_tokens // batch))
    count = -(-length // size)

    def cut(array: jax.Array) -> jax.Array:
        widths = [(0, 0), (0, count * size - length)] + [(0, 0)] * (array.ndim - 2)
        whole = jnp.pad(array, widths)
        return whole.reshape(batch, count, size, *array.shape[2:]).swapaxes(0, 1)

    pieces = {name: cut(array) for name, array in rows.items()}
    return jax.tree.map(jnp.sum, jax.lax.map(jax.checkpoint(part), pieces))
