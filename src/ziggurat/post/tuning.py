"""Trained part of a model: all weights, or adapters beside a frozen base.

Every objective of post-training takes its model from here, so that each of them works with full
weights, LoRA and QLoRA alike.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from ziggurat.core import hub, prng
from ziggurat.core.errors import ConfigError
from ziggurat.core.pytrees import Leaf, map_named
from ziggurat.data import HuggingFaceTokenizer
from ziggurat.mesh import Layout
from ziggurat.models import LanguageModel, Params
from ziggurat.models.adapters import (
    ADAPTER_FILE,
    AdapterRecord,
    Lora,
    adapter_shapes,
    attached,
    fingerprint,
    initial_adapters,
    merge_into,
)
from ziggurat.models.loading import pretrained, step_files
from ziggurat.models.quantized import formats_of, quantized
from ziggurat.nn.precision import Precision
from ziggurat.post.reward_model import HEAD, head_shape, initial_head
from ziggurat.train.config import PretrainedModel, RunConfig
from ziggurat.train.objectives import text

BASE, REFERENCE = "base", "reference"
"""Names among the frozen arrays: the weights under adapters, and the policy to be held to."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuned:
    """A model of which all parameters, or adapters alone, are trained, as the training loop sees
    it."""

    model: LanguageModel
    """The whole model; some weights may be quantised where adapters are trained."""
    lora: Lora | None = None
    """The adapters, if those are trained."""
    scored: bool = False
    """Whether the model has a score head (reward models)."""
    frozen_passes: int = 0
    """Forward passes through frozen models for each token, by which FLOPs are counted."""

    @functools.cached_property
    def _trees(self) -> tuple[Params, Params]:
        model, lora = self.model, self.lora
        shapes, axes = (model.abstract, model.axes) if lora is None else adapter_shapes(model, lora)
        if not self.scored:
            return shapes, axes
        more = head_shape(model)
        return shapes | more[0], axes | more[1]

    @property
    def abstract(self) -> Params:
        """Shapes and types of what is trained."""
        return self._trees[0]

    @property
    def axes(self) -> Params:
        """Logical axis names of the trained parameters."""
        return self._trees[1]

    @property
    def precision(self) -> Precision:
        return self.model.precision

    def shardings(self, layout: Layout) -> Params:
        """Sharding of each trained parameter.

        Raises:
            ShardingError: a dimension does not divide over the mesh.
        """
        self.model.shardings(layout)
        return layout.tree(self.axes, self.abstract)

    def init(self, key: Key[Array, ""]) -> Params:
        """Fresh weights, or adapters that change nothing yet."""
        made = (
            self.model.init(key)
            if self.lora is None
            else initial_adapters(self.model, self.lora, key)
        )
        return made | (initial_head(self.model, key) if self.scored else {})

    @property
    def parameter_count(self) -> int:
        """Number of parameters that are trained."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.abstract))

    @property
    def matmul_parameter_count(self) -> int:
        """Parameters by which FLOPs are counted, six for each and a token: weights that stay cost
        four, since they have no gradient, and frozen passes two each."""
        flops = (6 if self.lora is None else 4) + 2 * self.frozen_passes
        return round(self.model.matmul_parameter_count * flops / 6)

    @property
    def attention_channels(self) -> float:
        return self.model.attention_channels

    @property
    def recurrent_flops_per_token(self) -> int:
        return self.model.recurrent_flops_per_token

    @property
    def has_experts(self) -> bool:
        return self.model.has_experts

    @property
    def index_limits(self) -> dict[str, int]:
        return self.model.index_limits

    def policy(self, params: Params, frozen: Params) -> Params:
        """The model's parameters, put together from trained and frozen ones."""
        own = {name: part for name, part in params.items() if name != HEAD}
        return own if self.lora is None else attached(frozen[BASE], own, self.lora.scale)

    def reference(self, frozen: Params) -> Params:
        """The parameters of the policy to be held to: without adapters, where those are trained
        and no other is given."""
        return frozen[REFERENCE] if REFERENCE in frozen else frozen[BASE]

    def whole(self, params: Params, frozen: Params) -> tuple[LanguageModel, Params]:
        """The trained model with adapters merged, for readers."""
        own = {name: part for name, part in params.items() if name != HEAD}
        if self.lora is None:
            return self.model, own
        return merge_into(self.model, frozen[BASE], own, self.lora)

    def frozen_shapes(self, layout: Layout, *, reference: bool) -> Params:
        """Shapes and places of the frozen arrays, for compiling without weights.

        Args:
            layout: where arrays live.
            reference: whether the objective reads a policy to be held to.
        """
        names = [BASE] if self.lora is not None else [REFERENCE] if reference else []
        return {name: structs(self.model, layout) for name in names}

    def frozen_axes(self, frozen: Params) -> Params:
        """Logical axis names of the frozen arrays, each a copy of the model's own."""
        return dict.fromkeys(frozen, self.model.axes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """Starting weights of a post-training run, with what is trained and what is frozen."""

    tuned: Tuned
    loaded: "pretrained.Pretrained | None"
    """The model it starts from, without its weights; None for a new one."""
    params: Params | None
    """Trained parameters before the first step; ``None`` where they are drawn."""
    frozen: Params
    """Arrays in their places."""


def begin(
    run: RunConfig,
    layout: Layout,
    *,
    scored: bool = False,
    frozen_passes: int = 0,
    reference: Path | bool | None = False,
) -> Start:
    """Read the weights that a run starts from and set apart what is trained.

    Args:
        run: the run file.
        layout: where arrays live.
        scored: whether a score is trained too.
        frozen_passes: see :class:`Tuned`.
        reference: the policy to be held to: a path, None for the start itself, False for none.

    Raises:
        ConfigError: data of another kind than text; adapters or a policy to be held to without
            weights to start from; or quantised weights without adapters.
        ModelError, CheckpointError: as the model's reader.
    """
    text.check_documents(run)
    loaded = text.load_start(run)
    if loaded is None:
        if run.adapter is not None or reference is not False:
            what = "adapter" if run.adapter is not None else f"objective {run.objective.kind}"
            raise ConfigError(
                what,
                found="a new model",
                expected="a trained one",
                fix='give [model] kind = "pretrained" and its path',
            )
        model = text.abstract_model(run, layout)
        return Start(
            tuned=Tuned(model=model, scored=scored, frozen_passes=frozen_passes),
            loaded=None,
            params=None,
            frozen={},
        )
    model = text.build_model(loaded.model.config, run, layout)
    if formats := formats_of(loaded.params):
        if run.adapter is None:
            raise ConfigError(
                "model",
                found="quantised weights",
                expected="weights in floating point, which gradients need",
                fix="train adapters beside them, with an [adapter] table",
            )
        model = quantized(model, formats)
    tuned = Tuned(model=model, lora=run.adapter, scored=scored, frozen_passes=frozen_passes)
    frozen = {} if run.adapter is None else {BASE: placed(loaded.params, model, layout)}
    if reference is None and run.adapter is None:
        frozen[REFERENCE] = placed(loaded.params, model, layout)
    elif isinstance(reference, Path):
        frozen[REFERENCE] = _reference(reference, model, layout)
    params = None
    if run.adapter is None:
        head = initial_head(model, prng.stream(run.seed, "score")) if scored else {}
        params = loaded.params | head
    # not held twice: what is needed of the weights is in params and frozen
    return Start(
        tuned=tuned,
        loaded=dataclasses.replace(loaded, params={}),
        params=params,
        frozen=frozen,
    )


def _reference(path: Path, model: LanguageModel, layout: Layout) -> Params:
    found = pretrained.load(path, expand=not formats_of(model.abstract))
    if found.model.config != model.config or formats_of(found.params) != formats_of(model.abstract):
        raise ConfigError(
            "objective.reference",
            found=f"{path}, a model of another form",
            expected="one of the same dimensions and types as the model that is trained",
        )
    return placed(found.params, model, layout)


def placed(params: Params, model: LanguageModel, layout: Layout) -> Params:
    """Copy parameters into arrays of the model's types, sharded by the layout."""
    return placed_as(params, model.abstract, model.shardings(layout))


def placed_as(params: Params, abstract: Params, shardings: Params) -> Params:
    """Copy parameters into arrays of these types, in these places."""

    def one(_: str, like: Leaf, sharding: jax.sharding.Sharding, leaf: Leaf) -> Array:
        copy = jnp.array(leaf, like.dtype, copy=True)  # the state's arrays are donated
        return jax.device_put(copy, sharding)

    return map_named(one, abstract, shardings, params)


def structs(model: LanguageModel, layout: Layout) -> Params:
    """Shapes, types and shardings of a model's parameters."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        model.abstract,
        model.shardings(layout),
    )


def shapes_of(frozen: Params) -> Params:
    """Shapes, types and shardings of arrays."""
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), frozen
    )


def files_of(
    run: RunConfig, start: Start, tokenizer: HuggingFaceTokenizer
) -> dict[str, bytes | Path]:
    """Files to save beside a checkpoint's arrays: model config and tokenizer, so that it loads by
    itself. A checkpoint of adapters also records where its base model is.
    """
    return step_files.files_of(start.tuned.model.config, tokenizer) | adapter_files(run)


def adapter_files(run: RunConfig) -> dict[str, bytes | Path]:
    """Record of where the base of a run's adapters is; nothing where it trains none."""
    if run.adapter is None:
        return {}
    assert isinstance(run.model, PretrainedModel), "adapters have a base"
    given = hub.local(run.model.path)
    base = step_files.step_directory(given) or given if given.is_dir() else given
    record = AdapterRecord(run.adapter, base, fingerprint(base))
    step = run.directory / "checkpoints" / "step"
    return {ADAPTER_FILE: record.text(step).encode()}


def trained_model(
    run: RunConfig, start: Start, tokenizer: HuggingFaceTokenizer
) -> Callable[[Params], pretrained.Pretrained]:
    """Turn trained parameters into a language model (``Parts.pretrained``)."""

    def trained(params: Params) -> pretrained.Pretrained:
        model, whole = start.tuned.whole(params, start.frozen)
        return pretrained.Pretrained(model, whole, tokenizer, run.name, str(run.directory))

    return trained
