"""Starting model, tokenizer and data of objectives over packed text."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ziggurat import data as data_
from ziggurat.core.errors import ConfigError
from ziggurat.data import Dataset, HuggingFaceTokenizer, PackedDataset, tokenizers
from ziggurat.mesh import Layout, Processes
from ziggurat.models import LanguageModel, ModelConfig
from ziggurat.models.loading import pretrained
from ziggurat.nn.precision import Precision
from ziggurat.train.config import PYTHON, PretrainedModel, RunConfig, TrainConfig
from ziggurat.train.parts import TrainingData


def documents(run: RunConfig) -> data_.DataConfig:
    """The run's ``[data]`` if it is documents, else an error.

    Raises:
        ConfigError: ``data.kind`` is another than ``text``.
    """
    if not isinstance(run.data, data_.DataConfig):
        raise ConfigError(
            "data.kind",
            found=repr(run.data.kind),
            expected=f"'text', for objective.kind = {run.objective.kind!r}",
        )
    return run.data


def check_documents(run: RunConfig) -> None:
    """Refuse data that is neither documents nor batches of a Python caller's.

    Raises:
        ConfigError: it is of another kind.
    """
    if run.data.kind != PYTHON:
        documents(run)


def row_tokens(run: RunConfig) -> int:
    """Tokens of a row, for data that is text."""
    tokens = run.row_tokens
    assert tokens is not None, "run files are checked"
    return tokens


def batch_struct(layout: Layout, batch: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, types and shardings of a language-model batch."""
    sharding = layout.sharding(("batch", "sequence"))
    integers = ("tokens", "targets", "segment_ids", "positions")
    types = {**dict.fromkeys(integers, jnp.int32), "loss_mask": jnp.float32}
    return {
        name: jax.ShapeDtypeStruct((batch, length), dtype, sharding=sharding)
        for name, dtype in types.items()
    }


def precision(train: TrainConfig, layout: Layout) -> Precision:
    """Parameter and compute types of a run on its devices."""
    auto = "float32" if layout.platform == "cpu" else "bfloat16"
    return Precision(train.param_dtype, auto if train.precision == "auto" else train.precision)


def build_model(config: ModelConfig, run: RunConfig, layout: Layout) -> LanguageModel:
    """The model of ``config``, traced for the run's devices."""
    train = run.train
    return LanguageModel.build(config, precision(train, layout), train.remat, train.attention)


def abstract_model(run: RunConfig, layout: Layout) -> LanguageModel:
    """The run's model without its weights.

    Raises:
        ConfigError: the model is given by a path.
    """
    if isinstance(run.model, PretrainedModel):
        raise ConfigError(
            "model", found="a path", expected="dimensions", fix="give [model] with its sizes"
        )
    assert isinstance(run.model, ModelConfig), "run files are checked"
    return build_model(run.model, run, layout)


def load_start(run: RunConfig) -> "pretrained.Pretrained | None":
    """Load the weights that a run starts from, if it names any. Other programs' quantised weights
    become floats, which gradients need, unless adapters are trained beside them."""
    if isinstance(run.model, PretrainedModel):
        return pretrained.load(run.model.path, expand=run.adapter is None)
    return None


def load_tokenizer(
    run: RunConfig, start: "pretrained.Pretrained | None", model: LanguageModel
) -> HuggingFaceTokenizer:
    """Load the run's tokenizer, or that of the weights it starts from.

    Raises:
        ConfigError: there is neither, or it has ids that the model has no rows for.
    """
    made = first_alone("tokenizer", lambda: _tokenizer(run, start))
    if made.vocab_size > model.decoder.vocab_size:
        raise ConfigError(
            "model.vocab_size",
            found=model.decoder.vocab_size,
            expected=f"at least {made.vocab_size}, the ids of the tokenizer",
            fix="raise model.vocab_size or lower tokenizer.vocab_size",
        )
    return made


def load_data(
    run: RunConfig,
    tokenizer: HuggingFaceTokenizer,
    *models: LanguageModel,
    given: TrainingData | None = None,
) -> tuple[TrainingData, PackedDataset | None]:
    """Open training batches, and held-out ones if the run holds any out.

    Args:
        run: the run file.
        tokenizer: makes tokens of documents.
        models: all that will read the batches; positions are bounded by the shortest context.
        given: batches to train on, in place of those of the run file; nothing is held out then.
    """
    if given is not None:
        return given, None
    config = documents(run)
    if config.position_limit is None:
        shortest = min(model.config.max_sequence_length for model in models)
        config = dataclasses.replace(config, position_limit=shortest)
    return first_alone("data", lambda: _data(run, config, tokenizer))


def first_alone(what: str, make: Callable[[], Any]) -> Any:
    """Call ``make`` on the first process, then on the others, so that one process alone fills the
    cache."""
    made: list[Any] = []
    Processes().once(f"prepare {what}", lambda: made.append(make()))
    return made[0] if made else make()


def _data(
    run: RunConfig, config: data_.DataConfig, tokenizer: HuggingFaceTokenizer
) -> tuple[Dataset, PackedDataset | None]:
    cache = run.output / "cache"
    training = data_.build(config, tokenizer, run.seed, cache)
    if not config.eval_fraction:
        return training, None
    held_out = data_.build(config, tokenizer, run.seed, cache, "eval")
    assert isinstance(held_out, PackedDataset), "a stream holds nothing out"
    return training, held_out


def _tokenizer(run: RunConfig, start: "pretrained.Pretrained | None") -> HuggingFaceTokenizer:
    if run.tokenizer is not None:
        if not isinstance(run.data, data_.DataConfig):
            return tokenizers.tokenizer(run.tokenizer)
        return data_.tokenizer_for(run.tokenizer, run.data, run.output / "cache")
    if start is None:
        raise ConfigError(
            "tokenizer",
            found="nothing",
            expected="a [tokenizer] table, since the model is new",
            fix='e.g. kind = "train_bpe"',
        )
    return start.tokenizer
