"""Tools a model may call: what a request says of them, and what may then be generated."""

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from ziggurat.core.errors import did_you_mean
from ziggurat.serve.errors import RequestError

MAX_TOOLS = 128
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")

Choice = Literal["auto", "required"]


class Function(msgspec.Struct, forbid_unknown_fields=True):
    """A function's signature."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """JSON schema of the arguments; default: none are taken."""
    strict: bool | None = None
    """Generate only arguments that fit the schema, also where the model is free to call or not."""


class Tool(msgspec.Struct, forbid_unknown_fields=True):
    """One entry of ``tools``."""

    type: Literal["function"]
    function: Function


class FunctionName(msgspec.Struct, forbid_unknown_fields=True):
    """The function in a ``tool_choice``."""

    name: str


class NamedChoice(msgspec.Struct, forbid_unknown_fields=True):
    """A ``tool_choice`` that names the function to call."""

    type: Literal["function"]
    function: FunctionName


@dataclasses.dataclass(frozen=True)
class ToolUse:
    """The tools of a request and how they may be used.

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

    def for_template(self) -> list[dict[str, Any]]:
        """The tools as chat templates know them."""
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


def schema_of(function: Function) -> dict[str, Any]:
    """The schema of a function's arguments."""
    return function.parameters or {"type": "object", "properties": {}}


def tool_use(
    tools: Sequence[Tool] | None,
    choice: str | NamedChoice | None,
    parallel: bool | None,
) -> ToolUse | None:
    """What the three fields say together; ``None`` where no tool may be called.

    Raises:
        RequestError: they contradict each other, or a tool is not well described.

    >>> made = tool_use([Tool("function", Function("f"))], "required", None)
    >>> made.forced, made.parallel
    (True, True)
    """
    if not tools:
        for field, value in (("tool_choice", choice), ("parallel_tool_calls", parallel)):
            if value is not None and value != "none":
                raise RequestError(field, found="no tools", expected="tools", param=field)
        return None
    _check(tools)
    if isinstance(choice, NamedChoice):
        name = choice.function.name
        chosen = tuple(tool for tool in tools if tool.function.name == name)
        if not chosen:
            names = [tool.function.name for tool in tools]
            raise RequestError(
                "tool_choice",
                found=repr(name),
                expected=f"a tool of this request: {', '.join(names)}",
                fix=did_you_mean(name, names),
                param="tool_choice",
            )
        return ToolUse(chosen, forced=True, named=True, parallel=False)
    if choice not in (None, "none", "auto", "required"):
        raise RequestError(
            "tool_choice",
            found=repr(choice),
            expected="none, auto, required or a function's name as an object",
            param="tool_choice",
        )
    if choice == "none":
        return None
    return ToolUse(tuple(tools), forced=choice == "required", parallel=parallel is not False)


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
