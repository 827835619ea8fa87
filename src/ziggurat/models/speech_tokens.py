"""Special tokens and limits of a model of speech, from its ``generation_config.json``."""

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ziggurat.core import config
from ziggurat.core.errors import ModelError
from ziggurat.models.conversion.hf_config import checked

FILE = "generation_config.json"
_log = logging.getLogger(__name__)
_KEYS = {
    "decoder_start_token_id": "start",
    "eos_token_id": "end",
    "no_timestamps_token_id": "no_timestamps",
    "prev_sot_token_id": "previous",
    "lang_to_id": "languages",
    "task_to_id": "tasks",
    "suppress_tokens": "suppress",
    "begin_suppress_tokens": "suppress_first",
    "max_initial_timestamp_index": "latest_first",
    "max_length": "max_length",
    "is_multilingual": "multilingual",
    "language": "language",
    "task": "task",
}
_UNAPPLIED = {
    "num_beams": 1,
    "do_sample": False,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "condition_on_prev_tokens": False,
}
"""Keys of the file that decoding here does not apply, with the value at which they do nothing."""


@config.node
class SpeechTokens:
    """Token ids that begin a transcription, and what may be written."""

    start: int
    """Begins a transcription."""
    end: int
    """Ends it; ids of text are below it."""
    no_timestamps: int
    """Asks for text without timestamps; the ids above it are timestamps, 0.02 seconds each."""
    previous: int | None = None
    """Begins a prompt."""
    languages: dict[str, int] = dataclasses.field(default_factory=dict)
    """Ids of languages by their tokens, such as ``<|en|>``."""
    tasks: dict[str, int] = dataclasses.field(default_factory=dict)
    """Ids of ``transcribe`` and ``translate``."""
    suppress: tuple[int, ...] = ()
    """Ids that are never written."""
    suppress_first: tuple[int, ...] = ()
    """Ids that are not written first."""
    latest_first: int | None = None
    """Largest first timestamp, in steps of 0.02 seconds; ``None``: any."""
    max_length: int = 448
    """Most tokens of a window, those that begin it aside."""
    multilingual: bool = True
    """Whether it knows languages and tasks."""
    language: str | None = None
    """Language unless a caller says one; ``None``: it is detected."""
    task: str | None = None
    """Task unless a caller says one; ``None``: to transcribe."""

    def __post_init__(self):
        ids = {"start": self.start, "end": self.end, "no_timestamps": self.no_timestamps}
        for name, value in ids.items():
            config.require(value >= 0, name, value, "a token id")
        config.require(self.max_length >= 1, "max_length", self.max_length, "a number >= 1")
        if self.multilingual:
            both = {"transcribe", "translate"} <= self.tasks.keys() and bool(self.languages)
            found = sorted({**self.languages, **self.tasks})
            config.require(both, "lang_to_id, task_to_id", found, "languages and both tasks")

    @property
    def first_timestamp(self) -> int:
        """The id of 0.00 seconds; ids from it on are timestamps."""
        return self.no_timestamps + 1

    @property
    def largest(self) -> int:
        """The largest id that is named, the timestamps' aside."""
        ids = (self.start, self.end, self.no_timestamps, self.previous or 0)
        more = (*self.languages.values(), *self.tasks.values())
        return max(*ids, *more, *self.suppress, *self.suppress_first)


def read(path: Path) -> dict[str, Any]:
    """Content of a directory's ``generation_config.json``.

    Raises:
        ModelError: it is missing or no JSON object.
    """
    file = path / FILE
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise ModelError(
            str(file), found="absent", expected="the file that names languages and timestamps"
        ) from None
    except ValueError as error:
        raise ModelError(str(file), found=error, expected="valid JSON") from None
    if not isinstance(values, dict):
        raise ModelError(str(file), found=type(values).__name__, expected="a JSON object")
    return values


def from_hf(values: Mapping[str, Any], vocab_size: int) -> SpeechTokens:
    """Content of ``generation_config.json`` to config.

    Args:
        values: the content.
        vocab_size: ids are below it.

    Raises:
        ModelError: a key is missing, of another type, or an id is not in the vocabulary.
    """
    settings = {_KEYS[k]: v for k, v in values.items() if k in _KEYS and v is not None}
    for key, name in _KEYS.items():
        if name in ("start", "end", "no_timestamps") and name not in settings:
            raise ModelError(f"{FILE}: {key}", found="absent", expected="a token id")
    if "multilingual" not in settings:
        settings["multilingual"] = bool(settings.get("languages"))
    found = checked(SpeechTokens, settings, FILE)
    if found.largest >= vocab_size:
        raise ModelError(FILE, found=f"token id {found.largest}", expected=f"below {vocab_size}")
    unapplied = {k: v for k, v in values.items() if v not in (None, _UNAPPLIED.get(k, v))}
    if unapplied:
        text = ", ".join(f"{key} {value}" for key, value in unapplied.items())
        _log.warning("%s: %s: not applied, decoding is greedy", FILE, text)
    return found
