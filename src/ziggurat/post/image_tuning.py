"""Trained part of a model that reads images: which of tower, projector and language model."""

import dataclasses
import functools

import jax
from jaxtyping import Array, Key

from ziggurat.core.errors import ConfigError
from ziggurat.core.pytrees import named_leaves, nested
from ziggurat.data import HuggingFaceTokenizer
from ziggurat.mesh import Layout
from ziggurat.models import Params
from ziggurat.models.loading import pretrained_vision_language
from ziggurat.models.loading.pretrained_vision_language import PretrainedVisionLanguage
from ziggurat.models.quantized import formats_of
from ziggurat.models.vision_language_model import VisionLanguageModel
from ziggurat.nn.precision import Precision
from ziggurat.post import tuning
from ziggurat.post.tuning import BASE, Tuned
from ziggurat.train.config import PretrainedModel, RunConfig
from ziggurat.train.objectives import text

LANGUAGE, TOWER = "language", "tower"
"""Parts of the parameters."""
PROJECTOR = ("projector", "merger", "tap_mergers")
"""Modules of towers that make embeddings of the language model: the projector."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Freezing:
    """Which parts of the model stay as they are."""

    vision_tower: bool
    projector: bool
    language_model: bool

    def fixed(self, name: str) -> bool:
        """Whether a parameter of this dotted name stays as it is."""
        part, _, rest = name.partition(".")
        if part == LANGUAGE:
            return self.language_model
        return self.projector if rest.partition(".")[0] in PROJECTOR else self.vision_tower


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageTuned:
    """A model that reads images, of which some parts are trained, as the training loop sees it.

    FLOPs are those of the language model; a tower's are not counted.
    """

    vision: VisionLanguageModel
    language: Tuned
    """The language model, with its adapters if those are trained."""
    freezing: Freezing

    @functools.cached_property
    def _trees(self) -> tuple[Params, Params]:
        if self.language.lora is not None:
            return self.language.abstract, self.language.axes
        return self.split(self.vision.abstract)[0], self.split(self.vision.axes)[0]

    def split(self, tree: Params) -> tuple[Params, Params]:
        """The trained part of a tree like the whole model's parameters, and the rest."""
        named = named_leaves(tree, is_leaf=lambda node: isinstance(node, tuple))
        fixed = {name: leaf for name, leaf in named.items() if self.freezing.fixed(name)}
        trained = {name: leaf for name, leaf in named.items() if name not in fixed}
        return nested(trained), nested(fixed)

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
        return self.language.precision

    def shardings(self, layout: Layout) -> Params:
        """Sharding of each trained parameter.

        Raises:
            ShardingError: a dimension does not divide over the mesh.
        """
        self.vision.shardings(layout)
        return layout.tree(self.axes, self.abstract)

    def init(self, key: Key[Array, ""]) -> Params:
        """Fresh adapters that change nothing yet; other parameters start from what was trained."""
        return self.language.init(key)

    @property
    def parameter_count(self) -> int:
        """Number of parameters that are trained."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.abstract))

    @property
    def matmul_parameter_count(self) -> int:
        return self.language.matmul_parameter_count

    @property
    def attention_channels(self) -> float:
        return self.language.attention_channels

    @property
    def recurrent_flops_per_token(self) -> int:
        return self.language.recurrent_flops_per_token

    @property
    def has_experts(self) -> bool:
        return self.language.has_experts

    @property
    def index_limits(self) -> dict[str, int]:
        return self.language.index_limits

    def policy(self, params: Params, frozen: Params) -> Params:
        """Parameters of language model and tower, put together from trained and frozen ones."""
        if self.language.lora is not None:
            return {LANGUAGE: self.language.policy(params, frozen), TOWER: frozen[TOWER]}
        return nested(named_leaves(params) | named_leaves(frozen))

    def frozen_axes(self, frozen: Params) -> Params:
        """Logical axis names of the frozen arrays."""
        if self.language.lora is not None:
            return {BASE: self.vision.language.axes, TOWER: self.vision.tower.axes}
        return self.split(self.vision.axes)[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageStart:
    """Starting weights of a run that trains on images."""

    tuned: ImageTuned
    loaded: PretrainedVisionLanguage
    """The model it starts from, without its weights."""
    params: Params | None
    """Trained parameters before the first step; ``None`` where they are drawn (adapters)."""
    frozen: Params
    """Arrays in their places."""

    @property
    def kept(self) -> Params:
        """Frozen arrays that a checkpoint holds, so that it is whole; one of adapters names its
        base instead."""
        return {} if self.tuned.language.lora is not None else self.frozen

    def whole(
        self, params: Params, tokenizer: HuggingFaceTokenizer, run: RunConfig
    ) -> PretrainedVisionLanguage:
        """The model that trained parameters stand for, with adapters merged."""
        tuned, vision = self.tuned, self.tuned.vision
        if tuned.language.lora is not None:
            model, language = tuned.language.whole(params, self.frozen)
            tower, vision = self.frozen[TOWER], dataclasses.replace(vision, language=model)
        else:
            joined = tuned.policy(params, self.frozen)
            language, tower, model = joined[LANGUAGE], joined[TOWER], vision.language
        return dataclasses.replace(
            self.loaded,
            model=model,
            params=language,
            tower=tower,
            vision=vision,
            tokenizer=tokenizer,
            name=run.name,
            source=str(run.directory),
        )


def begin(run: RunConfig, layout: Layout, freezing: Freezing) -> ImageStart:
    """Read the model that a run starts from and set apart what is trained.

    Args:
        run: the run file.
        layout: where arrays live.
        freezing: which parts stay as they are; with adapters the language model's weights do too.

    Raises:
        ConfigError: the model is a new one or reads no images, all of it is frozen, or adapters are
            to be trained with a tower or projector.
        ModelError, CheckpointError: as the model's reader.
    """
    loaded = _load(run)
    if formats_of(loaded.params):
        raise ConfigError(
            "model", found="quantised weights", expected="weights in floating point, with images"
        )
    _check(run, freezing)
    train = run.train
    model = text.build_model(loaded.model.config, run, layout)
    vision = VisionLanguageModel.build(
        loaded.vision.config, text.precision(train, layout), language=model
    )
    tuned = ImageTuned(
        vision=vision, language=Tuned(model=model, lora=run.adapter), freezing=freezing
    )
    params: Params = {LANGUAGE: loaded.params, TOWER: loaded.tower}
    shardings = vision.shardings(layout)
    bare = dataclasses.replace(loaded, params={}, tower={})
    if run.adapter is not None:
        placed = tuning.placed_as(params, vision.abstract, shardings)
        frozen = {BASE: placed[LANGUAGE], TOWER: placed[TOWER]}
        return ImageStart(tuned=tuned, loaded=bare, params=None, frozen=frozen)
    trained, fixed = tuned.split(params)
    frozen = tuning.placed_as(fixed, tuned.split(vision.abstract)[1], tuned.split(shardings)[1])
    return ImageStart(tuned=tuned, loaded=bare, params=trained, frozen=frozen)


def _load(run: RunConfig) -> PretrainedVisionLanguage:
    if not isinstance(run.model, PretrainedModel):
        raise ConfigError(
            "model.kind",
            found=repr(run.model.kind),
            expected="'pretrained' with data.kind = 'image_text', since towers start trained",
            fix="give [model] the path of a model that reads images",
        )
    return pretrained_vision_language.load(run.model.path)


def _check(run: RunConfig, freezing: Freezing) -> None:
    if run.adapter is not None and not (freezing.vision_tower and freezing.projector):
        raise ConfigError(
            "objective.freeze_vision_tower and freeze_multi_modal_projector",
            found="false with an adapter",
            expected="true: a checkpoint of adapters holds nothing else",
            fix="train without [adapter], or freeze both",
        )
    if run.adapter is not None and freezing.language_model:
        raise ConfigError(
            "objective.freeze_language_model",
            found="true with an adapter of the language model",
            expected="false, or no [adapter]",
        )
    if run.adapter is None and all(dataclasses.astuple(freezing)):
        raise ConfigError(
            "objective.freeze_language_model",
            found="every part of the model frozen",
            expected="one that is trained",
        )
