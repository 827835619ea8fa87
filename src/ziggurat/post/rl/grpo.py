"""The objective ``grpo``: what the training loop needs to learn from rollouts."""

import weakref
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ziggurat.core import prng
from ziggurat.core.errors import ConfigError
from ziggurat.core.protocols import Batch
from ziggurat.core.pytrees import Leaf
from ziggurat.data import HuggingFaceTokenizer
from ziggurat.data.tokenizers import TrainBpe
from ziggurat.kernels.cross_entropy import linear_log_probs
from ziggurat.kernels.linear import QuantizedWeight, is_quantized
from ziggurat.mesh import Layout
from ziggurat.models import LanguageModel, Params
from ziggurat.models.loading import pretrained, step_files
from ziggurat.nn.attention_context import Packed
from ziggurat.optim import LossConfig
from ziggurat.post.losses.policy import policy_loss
from ziggurat.post.rl import tasks
from ziggurat.post.rl.accuracy import measure
from ziggurat.post.rl.arena import Arena
from ziggurat.post.rl.collecting import Collector, Scores
from ziggurat.post.rl.config import Grpo, Problems
from ziggurat.train.config import RunConfig
from ziggurat.train.objectives import text
from ziggurat.train.parts import ObjectiveKind, Parts, TrainingData, TrainingProgram
from ziggurat.train.step import Arrays, Objective, Sums

CHUNK = LossConfig().chunk_tokens
"""Tokens whose logits exist at once."""
ROWS = ("batch", "sequence")


class GroupRelative(ObjectiveKind):
    """Objective kind ``grpo``: group relative policy optimisation."""

    node = Grpo

    def program(self, run: RunConfig, layout: Layout) -> TrainingProgram:
        _check(run)
        return _program(run, layout, text.abstract_model(run, layout))

    def parts(self, run: RunConfig, layout: Layout, data: TrainingData | None = None) -> Parts:
        node, posed = _check(run)
        start = text.load_start(run)
        if start is None:
            model = text.abstract_model(run, layout)
        else:
            model = text.build_model(start.model.config, run, layout)
        program = _program(run, layout, model)
        tokenizer = text.load_tokenizer(run, start, model)
        task = tasks.build(posed.task)
        sampler = LanguageModel.build(model.config, model.precision, "none", run.train.attention)
        arena = _arena(node, posed, task, sampler, tokenizer)
        collector = Collector(
            run,
            arena,
            jax.jit(build_scores(model, layout, node.sampling.temperature)),
            lambda rows: _placed(rows, layout),
            _reference(run, model, layout, start) if node.kl_coef else None,
        )
        source = tasks.ProblemSource(task, posed, node.group, run.seed, node.updates)
        problems = run.evaluation.batches * source.problems

        def evaluate(params: Params) -> dict[str, float]:
            asked = node.evaluation
            found = measure(
                arena,
                params,
                problems,
                samples=asked.samples,
                temperature=asked.temperature,
                success=node.reward.success,
                seed=run.seed,
            )
            return found.figures(asked.k)

        def trained(params: Params) -> pretrained.Pretrained:
            return pretrained.Pretrained(model, params, tokenizer, run.name, str(run.directory))

        weakref.finalize(collector, arena.close)
        arena.start_rewards()
        return Parts(
            program=program,
            data=source,
            files=step_files.files_of(model.config, tokenizer),
            start=None if start is None else start.params,
            tokenizer=tokenizer,
            rollout=collector,
            evaluate=evaluate,
            pretrained=trained,
        )


def _arena(
    node: Grpo,
    posed: Problems,
    task: tasks.Task,
    model: LanguageModel,
    tokenizer: HuggingFaceTokenizer,
) -> Arena:
    """The arena in which ``model`` answers a task's problems."""
    return Arena(
        task,
        posed.form,
        node.reward,
        model=model,
        tokenizer=tokenizer,
        longest=posed.sequence_length,
        max_tokens=node.sampling.max_tokens,
        running=node.sampling.max_running,
    )


def policy_objective(model: LanguageModel, node: Grpo, layout: Layout) -> Objective:
    """Sums of :func:`ziggurat.post.losses.policy.policy_loss` over rows of rollouts.

    Metrics: ``loss``, ``kl``, ``clip_fraction`` and ``ratio``, means like the loss's own.
    """
    shards = layout.ways("batch") * layout.ways("sequence")

    def objective(params: Params, batch: Arrays, frozen: Params) -> Sums:
        log_probs = _log_probs(model, params, batch, node.sampling.temperature, shards)
        found = policy_loss(
            log_probs,
            batch["old_log_probs"],
            batch["advantages"],
            batch["loss_mask"],
            reference=batch.get("reference_log_probs"),
            sampler=batch.get("sampler_log_probs"),
            **loss_switches(node),
        )
        figures = {
            "loss": found.loss,
            "kl": found.kl,
            "clip_fraction": found.clipped,
            "ratio": found.ratio,
        }
        if not _kl_in_loss(node):
            del figures["kl"]
        return Sums(found.loss, found.weight, figures)

    return objective


def loss_switches(node: Grpo) -> dict[str, Any]:
    """The switches of :func:`ziggurat.post.losses.policy.policy_loss` that a run file asks for."""
    return {
        "kl_coef": node.kl_coef if _kl_in_loss(node) else 0.0,
        "clip_low": node.clip_low,
        "clip_high": node.clip_high,
        "ratio": node.ratio,
        "aggregate": node.aggregate,
        "longest": node.sampling.max_tokens,
        "sampler_cap": node.sampler_cap,
    }


def _kl_in_loss(node: Grpo) -> bool:
    return node.kl_coef != 0 and node.kl_in == "loss"


def build_scores(model: LanguageModel, layout: Layout, temperature: float) -> Scores:
    """Log-probabilities of the targets and entropies of their distributions, both ``[b t]``, at a
    temperature; to be jitted. Logits of about :data:`CHUNK` tokens exist at once."""

    def scores(params: Params, batch: Mapping[str, Any]) -> tuple[Array, Array]:
        with layout.active():
            context = Packed(batch["segment_ids"])
            hidden, _, _ = model.run(params, batch["tokens"], batch["positions"], context)
            head = model.head(params)

            def row(one: tuple[Array, Array]) -> tuple[Array, Array]:
                all_of = jax.nn.log_softmax(model.logits_of(head, one[0]) / temperature, axis=-1)
                chosen = jnp.take_along_axis(all_of, one[1][:, None], axis=-1)[:, 0]
                return chosen, -(jnp.exp(all_of) * all_of).sum(-1)

            rows = max(CHUNK // hidden.shape[1], 1)
            return jax.lax.map(row, (hidden, batch["targets"]), batch_size=rows)

    return scores


def _log_probs(
    model: LanguageModel, params: Params, batch: Arrays, temperature: float, shards: int
) -> Float[Array, "b t"]:
    r"""Log-probabilities of the targets under :math:`\mathrm{softmax}(z / T)`: hidden states and
    soft cap are divided by T instead, which is the same."""
    context = Packed(batch["segment_ids"])
    hidden, _, _ = model.run(params, batch["tokens"], batch["positions"], context)
    head, cap = model.head(params), model.decoder.logit_softcap
    assert not isinstance(head, QuantizedWeight), "refused before"
    with jax.named_scope("loss"):
        found = linear_log_probs(
            hidden.reshape(-1, hidden.shape[-1]) / temperature,
            head,
            batch["targets"].reshape(-1),
            logit_softcap=None if cap is None else cap / temperature,
            chunk_tokens=CHUNK,
            token_shards=shards,
        )
    return found.reshape(batch["targets"].shape)


def _program(run: RunConfig, layout: Layout, model: LanguageModel) -> TrainingProgram:
    node, data = _check(run)
    if any(map(is_quantized, jax.tree.leaves(model.abstract, is_leaf=is_quantized))):
        raise ConfigError(
            "model",
            found="quantised weights",
            expected="weights in floating point, which gradients need",
            fix="train the model it was made from, and quantise the result",
        )
    batch = text.batch_struct(layout, data.batch_size, data.sequence_length)
    extra = {"old_log_probs": True}
    extra |= {"sampler_log_probs": node.sampler_cap is not None}
    extra |= {"reference_log_probs": _kl_in_loss(node)}
    batch |= {name: batch["loss_mask"] for name, there in extra.items() if there}
    rows = layout.sharding(("batch",))
    batch["advantages"] = jax.ShapeDtypeStruct((data.batch_size,), jnp.float32, sharding=rows)
    return TrainingProgram(model=model, sums=policy_objective(model, node, layout), batch=batch)


def _check(run: RunConfig) -> tuple[Grpo, Problems]:
    """The run's nodes, if they fit together.

    Raises:
        ConfigError: other data than problems; a tokenizer to be trained; no room for prompts; a
            checkpoint between the steps that learn from one rollout.
    """
    node, data = run.objective, run.data
    assert isinstance(node, Grpo)
    if not isinstance(data, Problems):
        raise ConfigError(
            "data.kind", found=data.kind, expected="problems, for objective.kind = 'grpo'"
        )
    if isinstance(run.tokenizer, TrainBpe):
        raise ConfigError(
            "tokenizer.kind",
            found="train_bpe",
            expected="bytes or load: there are no documents to train one on",
            fix="start from a model that has a tokenizer, and leave [tokenizer] out",
        )
    if node.sampling.max_tokens >= data.sequence_length:
        raise ConfigError(
            "objective.sampling.max_tokens",
            found=node.sampling.max_tokens,
            expected=f"less than data.sequence_length, {data.sequence_length}, for the prompt",
        )
    every = {"checkpoint.every": run.checkpoint.every}
    if run.checkpoint.memory is not None:
        every["checkpoint.memory.every"] = run.checkpoint.memory.every
    for key, steps in every.items():
        if steps % node.updates:
            raise ConfigError(
                key, found=steps, expected=f"a multiple of objective.updates, {node.updates}"
            )
    return node, data


def _reference(
    run: RunConfig, model: LanguageModel, layout: Layout, start: "pretrained.Pretrained | None"
) -> Params:
    """The weights that the run begins with, in their places."""
    if start is None:
        return model.init(prng.stream(run.seed, "init"), layout)

    def place(leaf: Leaf, like: Leaf, sharding: jax.sharding.Sharding) -> jax.Array:
        return jax.device_put(jnp.asarray(leaf, like.dtype), sharding)

    return jax.tree.map(place, start.params, model.abstract, model.shardings(layout))


def _placed(rows: Batch, layout: Layout) -> dict[str, jax.Array]:
    sharding = layout.sharding(ROWS)
    return {name: jax.device_put(array, sharding) for name, array in rows.items()}
