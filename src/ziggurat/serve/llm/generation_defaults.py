"""Sampling parameters that a model's makers recommend: ``generation_config.json``."""

import logging
import math

from ziggurat.core.json_types import Json, JsonMapping, JsonObject
from ziggurat.serve.errors import RequestError
from ziggurat.serve.llm.sampling import BUILT_IN, SamplingParams

_log = logging.getLogger(__name__)

NAMES = tuple(name for name, declared in BUILT_IN.items() if declared.recommended)
"""Values that are taken, as in vLLM. End ids belong to the tokenizer, see
:class:`ziggurat.data.HuggingFaceTokenizer`; ``max_new_tokens`` would cut answers off unasked and is
left alone, and so is ``do_sample``: a request for greedy choice says ``temperature`` 0."""


def sampling_defaults(generation: JsonMapping) -> JsonObject:
    """Sampling defaults from a ``generation_config.json``.

    Values that say nothing (null, or what they are without it) are left out; one that cannot be is
    left out with a warning.

    >>> sampling_defaults({"temperature": 0.6, "top_p": 0.95, "top_k": None, "do_sample": True})
    {'temperature': 0.6, 'top_p': 0.95}
    """
    found: JsonObject = {}
    plain = SamplingParams()
    for name in NAMES:
        value = generation.get(name)
        if value is None or value == getattr(plain, name):
            continue
        try:
            _check(name, value)
        except (RequestError, TypeError) as error:
            _log.warning("generation_config.json: %s; it is left out", error)
            continue
        found[name] = value
    return found


def _check(name: str, value: Json) -> None:
    numbers = (int,) if type(BUILT_IN[name].default) is int else (int, float)
    if type(value) not in numbers or not math.isfinite(value):
        raise RequestError(name, found=repr(value), expected="a number")
    SamplingParams(**{name: value})
