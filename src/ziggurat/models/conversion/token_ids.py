"""Ids of special tokens: those that a ``config.json`` states, and those beyond a vocabulary."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ziggurat.data import HuggingFaceTokenizer

_log = logging.getLogger(__name__)
FILE = "token_ids.json"
"""Ids of special tokens inside a checkpoint step, as the ``config.json`` has them that the model
was read from."""
KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")
"""Keys of ``config.json`` that tell a generating program which tokens are special."""


def stated(values: Mapping[str, Any]) -> dict[str, Any]:
    """The ids that a ``config.json`` states."""
    return {key: values[key] for key in KEYS if key in values}


def read(step: Path) -> dict[str, Any]:
    """The ids that a checkpoint step holds."""
    file = step / FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def special(tokenizer: HuggingFaceTokenizer, given: Mapping[str, Any]) -> dict[str, Any]:
    """Ids for a ``config.json``: those given, others as the tokenizer has them."""
    ends = tokenizer.eos_ids
    found = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": list(ends) if len(ends) > 1 else (ends[0] if ends else None),
        "pad_token_id": tokenizer.pad_id,
    }
    return found | dict(given)


def warn_of_larger(tokenizer: HuggingFaceTokenizer, vocab_size: int, source: Path | str) -> None:
    """Say which tokens of a tokenizer the model has no row for.

    Published models have such and work without them (Gemma 3 1B: ``<image_soft_token>``), so they
    load; a text that contains one is refused where it is used, see
    :func:`ziggurat.data.check_ids`.
    """
    vocabulary = tokenizer.backend.get_vocab(with_added_tokens=True)
    beyond = sorted((number, text) for text, number in vocabulary.items() if number >= vocab_size)
    if beyond:
        shown = ", ".join(f"{text!r} ({number})" for number, text in beyond[:4])
        _log.warning(
            "%s: %d tokens of the tokenizer are beyond the model's vocabulary of %d: %s%s; a text "
            "that contains one is refused",
            source, len(beyond), vocab_size, shown, ", ..." if len(beyond) > 4 else "",
        )  # fmt: skip
