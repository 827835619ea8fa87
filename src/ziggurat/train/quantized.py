"""Training for a quantised format: the loss over rounded weights, and the checkpoints' record."""

import dataclasses
from typing import Any

from ziggurat.core.errors import ConfigError
from ziggurat.models import LanguageModel, Params
from ziggurat.models.loading.pretrained import Pretrained
from ziggurat.models.quantized import (
    TRAINED_FILE,
    TrainedFormat,
    rounded_as_trained,
    summed_axes,
    trained_text,
)
from ziggurat.quantize.training import FakeQuantization
from ziggurat.quantize.weights import format_of
from ziggurat.train.config import RunConfig
from ziggurat.train.parts import Parts, TrainingProgram
from ziggurat.train.step import Arrays, Objective, Sums


def trained_sums(run: RunConfig, program: TrainingProgram) -> Objective:
    """The loss of a run's program; with ``[quantize]`` over its weights rounded.

    Raises:
        ConfigError: the recipe does not fit the model.
    """
    if run.quantize is None:
        return program.sums
    rounded = _fake(run, program.model)

    def sums(params: Params, batch: Arrays, frozen: Params) -> Sums:
        return program.sums(rounded(params), batch, frozen)

    return sums


def recorded(run: RunConfig, parts: Parts) -> Parts:
    """A run's parts whose checkpoints say for which formats the weights are trained."""
    if run.quantize is None:
        return parts
    rules = _fake(run, parts.program.model).rules
    trained = {name: TrainedFormat(format_of(rule), rule.clip) for name, rule in rules.items()}
    inner = parts.pretrained

    def rounded(params: Params) -> Pretrained:
        assert inner is not None
        whole = inner(params)
        model, params = rounded_as_trained(whole.model, whole.params, trained)
        return dataclasses.replace(whole, model=model, params=params)

    return dataclasses.replace(
        parts,
        files={**parts.files, TRAINED_FILE: trained_text(trained).encode()},
        pretrained=None if inner is None else rounded,
    )


def _fake(run: RunConfig, model: Any) -> FakeQuantization:
    if not isinstance(model, LanguageModel):
        raise ConfigError(
            "quantize", found=type(model).__name__, expected="a language model without a tower"
        )
    assert run.quantize is not None
    return FakeQuantization(run.quantize.rounded, model.abstract, summed_axes(model))
