"""Outputs derived from a run: samples, pictures, the report. None of them fails a training.

What cannot work is refused before step 0; what fails at the end is left out and said in one line.

>>> attempt("the report", lambda: 1 / 0) is None
True
"""

import logging
from collections.abc import Callable
from typing import TypeVar

from ziggurat.core.errors import ConfigError
from ziggurat.models import LanguageModel
from ziggurat.models.loading.peft_modules import without_module
from ziggurat.train.experiment import Experiment

_log = logging.getLogger(__name__)
T = TypeVar("T")


def attempt(what: str, call: Callable[[], T]) -> T | None:
    """Result of ``call``; if it raises, ``None`` and a line in the log."""
    try:
        return call()
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        _log.warning("%s left out: %s", what, reason)
        _log.debug("%s left out", what, exc_info=True)
        return None


def sample_tokens(experiment: Experiment, prompt: str) -> int:
    """Tokens that are generated for one of ``report.prompts``: ``report.sample_tokens``, or as many
    as its context has room for.

    Raises:
        ConfigError: the prompt leaves no room.
    """
    assert experiment.parts.tokenizer is not None, "objectives that write text have a tokenizer"
    used = len(experiment.parts.tokenizer.encode(prompt, add_special_tokens=True))
    room = context_length(experiment) - used
    if room < 1 or not used:
        raise ConfigError(
            "report.prompts",
            found=f"{prompt[:40]!r}, which has {used} tokens",
            expected=f"1 to {context_length(experiment) - 1} tokens",
            fix="shorten it, or raise data.sequence_length",
        )
    return min(experiment.run.report.sample_tokens, room)


def context_length(experiment: Experiment) -> int:
    """Longest sample in tokens: no longer than a training row, nor than the model allows."""
    model = getattr(experiment.model, "model", experiment.model)
    length = experiment.data.sequence_length
    if isinstance(model, LanguageModel):
        length = min(length, model.config.max_sequence_length)
    return length


def check_report(experiment: Experiment) -> None:
    """Refuse, before the first step, a report that cannot be made after the last.

    Raises:
        ConfigError: there are prompts and nothing that continues them, or one is too long.
    """
    prompts = experiment.run.report.prompts
    if prompts and experiment.parts.pretrained is None:
        raise ConfigError(
            "report.prompts",
            found=f"{len(prompts)} prompts",
            expected=f"none with objective.kind = {experiment.run.objective.kind}, which trains "
            "nothing that writes text",
        )
    for prompt in prompts:
        sample_tokens(experiment, prompt)
    _warn_of_peft(experiment)


def _warn_of_peft(experiment: Experiment) -> None:
    """Say before training which adapters can only be exported merged."""
    lora, model = experiment.run.adapter, getattr(experiment.model, "model", None)
    if lora is None or not isinstance(model, LanguageModel):
        return
    lacking = without_module(lora, model)
    if lacking:
        _log.warning(
            "adapter.targets: PEFT has no form for adapters of %s: ziggurat export peft will refuse"
            " them, ziggurat export hf merges them",
            ", ".join(lacking[:3]),
        )
