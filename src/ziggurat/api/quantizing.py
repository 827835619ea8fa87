"""``ziggurat.quantize``: a smaller checkpoint by rules, and what it costs."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, PyTree

from ziggurat.api.quantizing_mixed import Budget, Progress, find_recipe
from ziggurat.core import config
from ziggurat.core.errors import CheckpointError, ConfigError
from ziggurat.core.pytrees import Leaf
from ziggurat.kernels.linear import is_quantized
from ziggurat.models.language_model import LanguageModel
from ziggurat.models.layer_by_layer import LayerByLayer
from ziggurat.models.loading import pretrained
from ziggurat.models.loading.pretrained import Pretrained
from ziggurat.models.quantized import RECIPE_FILE, quantized, summed_axes
from ziggurat.nn.precision import Precision
from ziggurat.nn.stacking import stack_name
from ziggurat.quantize import Recipe, evaluation, resolve
from ziggurat.quantize.calibrated import quantize_calibrated
from ziggurat.quantize.calibration_text import calibration_rows
from ziggurat.quantize.mixed_precision import FORMATS
from ziggurat.quantize.report import QuantizationReport, make_report
from ziggurat.quantize.rounding import METHODS, Calibration, Rounding
from ziggurat.quantize.weights import Progress as WeightProgress
from ziggurat.quantize.weights import Quantized
from ziggurat.quantize.weights import quantize as quantize_weights

WINDOW = 512
"""Tokens of one row of held-out text."""


def quantize(
    model: str | Path,
    output: str | Path,
    *,
    recipe: str | None = None,
    within_perplexity: float | None = None,
    formats: Sequence[str] = FORMATS,
    rounding: Rounding | None = None,
    calibration: Calibration | None = None,
    compare: bool = False,
    text: Sequence[Path] = (),
    tokens: int = 8192,
    progress: Progress | None = None,
) -> QuantizationReport:
    """Quantise a model's weights into a checkpoint that every command and function takes.

    Args:
        model: a run, a checkpoint step, a Hugging Face directory or id, or a GGUF file.
        output: new directory for the checkpoint.
        recipe: ``int8`` (default), ``w8a8`` (int8 weights and activations), ``fp8``, ``int4``,
            ``nf4``, or a TOML file of rules.
        within_perplexity: find the smallest recipe with which perplexity on ``text`` rises by at
            most this share, instead of taking one: 0.02 is 2 %.
        formats: recipes whose projections' formats are tried for each matrix, beside its floats.
        rounding: method and its settings; default: to the nearest value.
        calibration: text for a method that needs it.
        compare: measure perplexity and top-1 agreement on held-out text, before and after.
        text: UTF-8 files of held-out text; default the language reference that Python carries.
        tokens: how many tokens to compare on, or to measure recipes on.
        progress: shows how far it is.

    Returns:
        Sizes and errors by module, the comparison, what a search measured, and where the
        checkpoint is. Its ``recipe.toml`` holds the rules.

    Raises:
        ConfigError: the recipe is not known, a rule does not fit the model, or a method has no
            calibration text or does not use it; or no recipe stays within the perplexity.
        DataError: the calibration text cannot be read, or is too short.
        CheckpointError: the output is not empty.
        ModelError: there is no model.
    """
    output, rounding = Path(output), rounding or Rounding()
    name, rules, budget = _wanted(recipe, within_perplexity, formats)
    _check_calibration(rounding, calibration)
    if tokens < 1:
        raise ConfigError("tokens", found=tokens, expected="1 or more")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise CheckpointError(
            f"output {output}", found="it is not empty", expected="a new or empty directory"
        )
    shown = progress or (lambda _: contextlib.nullcontext(lambda done, of: None))
    # other programs' quantised files are at times all that is published of a model
    loaded = pretrained.load(model, precision=Precision(as_stored=True), expand=True)
    wide = _map_floats(lambda leaf: leaf.astype("float32"), loaded.params)
    rows = _rows(loaded, text, tokens) if compare or budget else None
    mixed = None
    if budget is not None and rows is not None:

        def make(rules: Recipe) -> Any:
            return _quantize(loaded, wide, rules, rounding, calibration).params

        mixed = find_recipe(loaded, wide, budget, rounding, rows, make, shown)
        rules = mixed.recipe
    assert rules is not None
    with shown("quantising") as told:
        done = _quantize(loaded, wide, rules, rounding, calibration, lambda _, n, of: told(n, of))
    del wide
    comparison = None
    if rows is not None:
        with shown("comparing") as told:
            after = done.params
            comparison = evaluation.compare(loaded.model.logits, loaded.params, after, rows, told)
    read = ", ".join(file.name for file in text) or "Python's language reference"
    found = make_report(loaded.name, name, loaded.params, done, comparison, read, mixed)
    small = dataclasses.replace(
        loaded, model=quantized(loaded.model, done.formats), params=done.params
    )
    records = {"source": loaded.name, "recipe": name, "rounding": config.to_plain(rounding)}
    if calibration is not None:
        records["calibration"] = config.to_plain(calibration)
    files = {RECIPE_FILE: config.to_toml(rules).encode()}
    path = pretrained.save(small, output, records, files)
    return dataclasses.replace(found, path=path)


def _wanted(
    recipe: str | None, within: float | None, formats: Sequence[str]
) -> tuple[str, Recipe | None, Budget | None]:
    """Name of the recipe, its rules, or the budget by which they are to be found."""
    if within is None:
        if tuple(formats) != FORMATS:
            fix = "give a rule for each format, or a budget"
            raise ConfigError(
                "--formats",
                found="no --within-perplexity",
                expected="--within-perplexity with them",
                fix=fix,
            )
        name = recipe or "int8"
        return name, resolve(name), None
    if recipe is not None:
        raise ConfigError(
            "--within-perplexity",
            found=f"a recipe too, {recipe}",
            expected="one of both",
            fix="leave --recipe out; --formats names what is tried",
        )
    return f"within {within:.2%} of perplexity", None, Budget(within, formats)


def _check_calibration(rounding: Rounding, calibration: Calibration | None) -> None:
    needed = METHODS[rounding.method].calibrated
    if needed == (calibration is not None):
        return
    raise ConfigError(
        "--calibration",
        found="none" if needed else calibration and calibration.path,
        expected=f"a text for the method {rounding.method}"
        if needed
        else f"no text for the method {rounding.method}",
        fix="add --calibration PATH" if needed else "add --method gptq",
    )


def _quantize(
    loaded: Pretrained,
    wide: Any,
    rules: Recipe,
    rounding: Rounding,
    calibration: Calibration | None,
    told: WeightProgress = lambda name, done, total: None,
) -> Quantized:
    """Quantised weights by the method that was chosen; what stays a float keeps its type."""
    axes = summed_axes(loaded.model)
    if calibration is None:
        search = METHODS[rounding.method].search
        return _typed(loaded, quantize_weights(wide, rules, axes, told, search=search))
    model = LanguageModel.build(loaded.model.config)
    limit = model.config.max_sequence_length
    rows = calibration_rows(calibration, loaded.tokenizer, model.config.vocab_size, limit)
    places = [(stack_name(place.stack), place.index) for place in model.decoder.places]
    layers = LayerByLayer(model, wide, rows)
    return _typed(loaded, quantize_calibrated(wide, rules, axes, rounding, layers, places, told))


def _typed(loaded: Pretrained, done: Quantized) -> Quantized:
    """Weights that stay floats in the types of the source."""
    params = _map_floats(lambda leaf, stored: leaf.astype(stored.dtype), done.params, loaded.params)
    return dataclasses.replace(done, params=params)


def _map_floats(function: Callable[..., Any], params: PyTree, *rest: PyTree) -> PyTree:
    """``jax.tree.map`` over the weights that are not quantised; the others stay."""

    def mapped(leaf: Leaf, *others: Leaf) -> Leaf:
        return leaf if is_quantized(leaf) else function(leaf, *others)

    return jax.tree.map(mapped, params, *rest, is_leaf=is_quantized)


def _rows(loaded: Pretrained, text: Sequence[Path], tokens: int) -> Int[np.ndarray, "b t"]:
    """Rows of held-out text."""
    length = min(WINDOW, loaded.model.config.max_sequence_length)
    files = text or evaluation.default_text()
    size = loaded.model.config.vocab_size
    return evaluation.windows(files, loaded.tokenizer, tokens, length, size)
