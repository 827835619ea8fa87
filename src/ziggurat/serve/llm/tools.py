"""Tools a model may call: what a request says of them, and what may then be generated."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec

from ziggurat.core.errors import did_you_mean
from ziggurat.core.json_types import Json, JsonMapping, JsonObject
from ziggurat.serve.errors import RequestError

MAX_TOOLS = 128
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")

RequestSequence = Literal["auto", "required"]


class Function(msgspec.Struct, forbid_unknown_fields=True):
    """A function's signature."""

    name: str
    description: str | None = None
    parameters: JsonObject | None = None
    """JSON schema of the arguments; default: none are taken."""
    cache_control: Json = None
    """A mark of clients for other servers' caches; nothing here depends on it."""
    strict: bool | None = None
    """Generate only arguments that fit the schema, also where the model is free to call or not."""


class Tool(msgspec.Struct, forbid_unknown_fields=True):
    """An entry of ``tools``."""

    type: Literal["function"]
    function: Function
    cache_control: Json = None
    """As in the function."""


class FunctionName(msgspec.Struct, forbid_unknown_fields=True):
    """A function in a ``tool_choice``."""

    name: str


class NamedChoice(msgspec.Struct, forbid_unknown_fields=True, tag="function"):
    """A ``tool_choice`` that names the function to call; also a tool in ``allowed_tools``."""

    function: FunctionName


class Allowed(msgspec.Struct, forbid_unknown_fields=True):
    """Tools of the request that may be called, and whether one must be called."""

    mode: RequestSequence
    tools: list[NamedChoice]


class AllowedChoice(msgspec.Struct, forbid_unknown_fields=True, tag="allowed_tools"):
    """A ``tool_choice`` that lets some of the tools be called."""

    allowed_tools: Allowed


@dataclasses.dataclass(frozen=True)
class ToolUse:
    """Tools of a request, and the rules of calling them.

    Args:
        tools: what the model may call.
        forced: whether it must call one.
        named: whether the request said which one.
        parallel: whether it may call several at once.
    """

    tools: tuple[Tool, ...]
    forced: bool = False
    named: bool = False
    parallel: bool = True

    @property
    def constrained(self) -> bool:
        """Whether what may be generated depends on the tools: calls are forced, kept to one, or
        their arguments must fit."""
        return self.forced or not self.parallel or any(t.function.strict for t in self.tools)

    def for_template(self) -> list[JsonObject]:
        """The tools in the form that chat templates read."""
        return [
            {
                "type": "function",
                "function": {
                    "name": f.name,
                    **({} if f.description is None else {"description": f.description}),
                    "parameters": schema_of(f),
                },
            }
            for f in (tool.function for tool in self.tools)
        ]


def schema_of(function: Function) -> JsonObject:
    """The schema of a function's arguments."""
    return function.parameters or {"type": "object", "properties": {}}


class Argument(NamedTuple):
    """One argument of a function."""

    name: str
    schema: JsonObject
    required: bool


def argument_schemas(function: Function) -> list[Argument]:
    """Arguments of a function, for forms of calls that write them one by one.

    Raises:
        ValueError: its schema describes them together.

    >>> argument_schemas(Function("f", parameters={"properties": {"x": {"type": "integer"}}}))
    [Argument(name='x', schema={'type': 'integer'}, required=False)]
    """
    schema = closed(schema_of(function))
    known = {"properties", "required", "type", "additionalProperties", "title", "description"}
    others = sorted(schema.keys() - known - {"$defs", "definitions", "$schema"})
    if others or schema.get("additionalProperties", False) is not False:
        found = others[0] if others else "additionalProperties"
        raise ValueError(f"{found} beside properties, where arguments are written one by one")
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    required, found = schema.get("required", []), schema.get("properties", {})
    if not all(isinstance(each, dict) for each in found.values()):
        raise ValueError("a property without a schema")
    return [Argument(name, {**each, **shared}, name in required) for name, each in found.items()]


_COMBINED = ("$ref", "allOf", "anyOf", "dependentSchemas", "else", "if", "oneOf", "then")
"""Keywords that say more of an object in other schemas, by which it may have other properties."""
_DECIDED = ("additionalProperties", "patternProperties", "unevaluatedProperties")
"""Keywords by which a schema decides on properties that it does not name."""
_SCHEMAS_BY_NAME = ("$defs", "definitions", "patternProperties", "properties")
_VALUES = ("const", "default", "enum", "examples")
"""Keywords that hold no schemas."""


def closed(schema: Json) -> Json:
    """Close the objects of a schema to properties that it does not name, unless it says otherwise.

    JSON Schema lets an object have any further properties. A caller's function has no use for
    them, and a small model that may write them does so until it is cut off; llama.cpp closes
    objects too. Objects without ``properties`` stay open, and so does everything in a schema where
    one object is described by several schemas together.

    >>> closed({"type": "object", "properties": {"x": {}}})
    {'type': 'object', 'properties': {'x': {}}, 'additionalProperties': False}
    >>> closed({"type": "object"})
    {'type': 'object'}
    """
    return schema if _is_combined(schema) else _closed(schema)


def _is_combined(schema: Json) -> bool:
    if isinstance(schema, list):
        return any(map(_is_combined, schema))
    if not isinstance(schema, Mapping):
        return False
    together = "properties" in schema and any(key in schema for key in _COMBINED)
    several = isinstance(schema.get("allOf"), list) and len(schema["allOf"]) > 1
    return together or several or any(map(_is_combined, schema.values()))


def _closed(schema: Json) -> Json:
    if isinstance(schema, list):
        return [_closed(entry) for entry in schema]
    if not isinstance(schema, Mapping):
        return schema
    made: JsonObject = {}
    for key, value in schema.items():
        if key in _SCHEMAS_BY_NAME and isinstance(value, Mapping):
            made[key] = {name: _closed(entry) for name, entry in value.items()}
        else:
            made[key] = value if key in _VALUES else _closed(value)
    if "properties" in made and not any(key in made for key in _DECIDED):
        made["additionalProperties"] = False
    return made


def tool_use(
    tools: Sequence[Tool] | None,
    choice: str | JsonMapping | None,
    parallel: bool | None,
) -> ToolUse | None:
    """Tool use of a request by its three fields; ``None`` where no tool may be called.

    Raises:
        RequestError: they contradict each other, or a tool is not well described.

    >>> made = tool_use([Tool("function", Function("f"))], "required", None)
    >>> made.forced, made.parallel
    (True, True)
    """
    if not tools:
        if choice not in (None, "none", "auto"):
            field = "tool_choice"
            raise RequestError(field, found="no tools", expected="tools", param=field)
        return None
    _check(tools)
    many = parallel is not False
    if isinstance(choice, Mapping):
        told = _choice(choice)
        if isinstance(told, NamedChoice):
            chosen = _chosen(tools, [told])
            return ToolUse(chosen, forced=True, named=True, parallel=False)
        allowed = told.allowed_tools
        chosen = _chosen(tools, allowed.tools)
        return ToolUse(chosen, forced=allowed.mode == "required", parallel=many) if chosen else None
    if choice not in (None, "none", "auto", "required"):
        raise RequestError(
            "tool_choice",
            found=repr(choice),
            expected="none, auto, required or a function's name as an object",
            param="tool_choice",
        )
    if choice == "none":
        return None
    return ToolUse(tuple(tools), forced=choice == "required", parallel=many)


def _choice(given: JsonMapping) -> NamedChoice | AllowedChoice:
    try:
        return msgspec.convert(given, NamedChoice | AllowedChoice)
    except msgspec.ValidationError as error:
        expected = 'an object of type "function" or "allowed_tools", as OpenAI writes it'
        raise RequestError(
            "tool_choice", found=error, expected=expected, param="tool_choice"
        ) from None


def _chosen(tools: Sequence[Tool], names: Sequence[NamedChoice]) -> tuple[Tool, ...]:
    """The tools of these names, in the order of the request."""
    known = [tool.function.name for tool in tools]
    asked = [choice.function.name for choice in names]
    for name in asked:
        if name not in known:
            raise RequestError(
                "tool_choice",
                found=repr(name),
                expected=f"a tool of this request: {', '.join(known)}",
                fix=did_you_mean(name, known),
                param="tool_choice",
            )
    return tuple(tool for tool in tools if tool.function.name in asked)


def _check(tools: Sequence[Tool]) -> None:
    if len(tools) > MAX_TOOLS:
        expected = f"at most {MAX_TOOLS}"
        raise RequestError("tools", found=len(tools), expected=expected, param="tools")
    seen = set()
    for number, tool in enumerate(tools):
        name, place = tool.function.name, f"tools[{number}].function"
        if not _NAME.fullmatch(name):
            expected = "1 to 64 letters, digits, _, - and ."
            raise RequestError(f"{place}.name", found=repr(name), expected=expected, param="tools")
        if name in seen:
            raise RequestError(
                f"{place}.name", found=f"{name} again", expected="one of a name", param="tools"
            )
        seen.add(name)
        kind = schema_of(tool.function).get("type", "object")
        if kind != "object":
            where = f"{place}.parameters.type"
            raise RequestError(where, found=json.dumps(kind), expected='"object"', param="tools")
