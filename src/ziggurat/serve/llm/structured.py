"""Structured output: OpenAI's ``response_format`` and vLLM's ``structured_outputs``.

Both become a grammar of llguidance (https://github.com/guidance-ai/llguidance), which
:mod:`ziggurat.serve.llm.grammar` turns into masks over tokens.
"""

import dataclasses
from typing import Any, Literal

import msgspec

from ziggurat.core.json_types import Json, JsonObject
from ziggurat.serve.errors import RequestError
from ziggurat.serve.json_values import ValueBudget

FormKind = Literal["json", "regex", "choice", "grammar", "tools"]
OBJECT: JsonObject = {"type": "object"}


@dataclasses.dataclass(frozen=True)
class Form:
    """Form of an answer, as llguidance names it.

    >>> Form("choice", ["yes", "no"], "structured_outputs").kind
    'choice'
    """

    kind: FormKind
    """``json``: a schema. ``grammar``: Lark or GBNF, told apart by their look. ``tools``: Lark made
    of schemas."""
    content: Json
    field: str
    """The request's field, for errors."""
    whitespace: str | None = None
    """For ``json``: a regex of what may stand between tokens; "" for nothing, default flexible."""


class JsonSchema(msgspec.Struct, forbid_unknown_fields=True):
    """Field ``response_format.json_schema``; the schema is enforced whether ``strict`` or not."""

    name: str
    schema: JsonObject | bool
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, forbid_unknown_fields=True):
    """Field ``response_format`` of a request."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    def form(self) -> Form | None:
        """The form asked for, if any.

        Raises:
            RequestError: type and schema do not fit.
        """
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise RequestError(
                "response_format",
                found=f"type {self.type} {'with' if self.json_schema else 'without'} json_schema",
                expected="json_schema with type json_schema, and with no other",
                param="response_format",
            )
        if self.json_schema is not None:
            return Form("json", self.json_schema.schema, "response_format")
        return Form("json", OBJECT, "response_format") if self.type == "json_object" else None


class StructuredOutputs(msgspec.Struct, forbid_unknown_fields=True):
    """Field ``structured_outputs`` of a request: exactly one of the kinds, as in vLLM since
    0.12."""

    json: JsonObject | str | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    whitespace_pattern: str | None = None
    disable_any_whitespace: bool | None = None

    def form(self) -> Form:
        """The form asked for.

        Raises:
            RequestError: there is none, or several, or whitespace is told of where it has no place.
        """
        field = "structured_outputs"
        kinds = ("json", "regex", "choice", "grammar", "json_object")
        given = [kind for kind in kinds if getattr(self, kind) not in (None, False)]
        if len(given) != 1:
            found = " and ".join(given) or "none of its kinds"
            expected = f"one of {', '.join(kinds)}"
            raise RequestError(field, found=found, expected=expected, param=field)
        kind, whitespace = given[0], self.whitespace_pattern
        if self.disable_any_whitespace:
            if whitespace is not None:
                found = "whitespace_pattern and disable_any_whitespace"
                raise RequestError(field, found=found, expected="one of them", param=field)
            whitespace = ""
        if whitespace is not None and not kind.startswith("json"):
            found, expected = f"whitespace and {kind}", "whitespace only with json or json_object"
            raise RequestError(field, found=found, expected=expected, param=field)
        if kind == "json_object":
            return Form("json", OBJECT, field, whitespace)
        if kind == "json":
            return Form("json", _schema(self.json), field, whitespace)
        content = getattr(self, kind)
        if not content:
            raise RequestError(f"{field}.{kind}", found="nothing", expected="a value", param=field)
        return Form(kind, content, field)  # type: ignore[arg-type]


def _schema(given: Json) -> Json:
    if not isinstance(given, str):
        return given
    ValueBudget().take(given, "structured_outputs.json")
    try:
        return msgspec.json.decode(given, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise RequestError(
            "structured_outputs.json",
            found=error,
            expected="a JSON schema, as object or as text",
            param="structured_outputs",
        ) from None
