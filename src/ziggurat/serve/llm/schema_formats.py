"""Formats of JSON schemas: those that the grammar library knows are enforced, others annotate.

JSON Schema lets a validator treat ``format`` as an annotation
(https://json-schema.org/draft/2020-12/json-schema-validation#section-7). OpenAPI and pydantic write
formats that constrain no text, such as ``int32``, ``binary``, ``password`` and ``path``.
"""

import functools
import json
from typing import Any

DATA = frozenset({"const", "enum", "default", "example", "examples"})
"""Keywords whose values are data and no schemas."""
NAMED = frozenset(
    {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"},
)
"""Keywords whose values are schemas by name; a name is no keyword."""
LONGEST_NAME = 64


def without_annotations(schema: Any) -> Any:
    """A schema whose formats are all enforced: others, which only annotate, are left out.

    Args:
        schema: a JSON schema as parsed; it is not changed.

    Raises:
        RecursionError: it is nested too deeply.

    >>> without_annotations({"type": "string", "format": "binary"})
    {'type': 'string'}
    >>> without_annotations({"type": "string", "format": "date"})
    {'type': 'string', 'format': 'date'}
    """
    if isinstance(schema, list):
        return [without_annotations(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: _below(key, value)
        for key, value in schema.items()
        if not (key == "format" and isinstance(value, str) and not _enforced(value))
    }


def _below(key: str, value: Any) -> Any:
    if key in DATA:
        return value
    if key in NAMED and isinstance(value, dict):
        return {name: without_annotations(one) for name, one in value.items()}
    return without_annotations(value)


def _enforced(name: str) -> bool:
    """Whether the library knows a format."""
    return len(name) <= LONGEST_NAME and _known(name)


@functools.lru_cache(maxsize=256)
def _known(name: str) -> bool:
    from llguidance import LLMatcher

    schema = {"type": "string", "format": name, "x-guidance": {"lenient": False}}
    grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema))
    return not LLMatcher.validate_grammar(grammar)
