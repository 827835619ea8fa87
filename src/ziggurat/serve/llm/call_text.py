"""Parts of tool-call parsers: JSON objects that come in pieces, tags in grammars, and tools told as
text."""

import json
from collections.abc import Callable, Sequence

from ziggurat.core.json_types import Json, JsonMapping, JsonObject
from ziggurat.data import HuggingFaceTokenizer
from ziggurat.serve.llm.grammar import schema_text
from ziggurat.serve.llm.structured import Form
from ziggurat.serve.llm.tools import Function, ToolUse, closed, schema_of

SPACE = " \t\r\n"
"""White space of JSON."""


class ObjectEnd:
    """Finds where a JSON object ends that comes in pieces.

    Args:
        depth: brackets that are open already.

    >>> end = ObjectEnd()
    >>> end.find('{"a": "}'), end.find('"} rest')
    (None, 2)
    """

    def __init__(self, depth: int = 0):
        self._depth, self._quoted, self._escaped = depth, False, False

    def find(self, text: str) -> int | None:
        """Place just after the object's end in this piece, if it is there."""
        for place, character in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._quoted:
                self._escaped = character == "\\"
                self._quoted = character != '"'
            elif character == '"':
                self._quoted = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return place + 1
        return None


def read_json(text: str) -> Json:
    """Parse a JSON value; ``NaN`` and ``Infinity`` are none.

    Raises:
        ValueError: it is no JSON.
    """

    def refuse(name: str) -> None:
        raise ValueError(name)

    return json.loads(text, parse_constant=refuse)


def decode(text: str) -> Json:
    """A JSON value, or ``None`` for a text that is none."""
    try:
        return read_json(text)
    except (ValueError, RecursionError):
        return None


def whole_call(value: Json, keys: Sequence[str]) -> tuple[str, str] | None:
    """Name and arguments of a call that is one JSON object; ``None`` if it is none.

    Args:
        value: the object.
        keys: names that its arguments may have; they may be an object or its text.

    >>> whole_call({"name": "f", "arguments": '{"x": 1}'}, ["arguments"])
    ('f', '{"x": 1}')
    """
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    found = next((value[key] for key in keys if key in value), {})
    found = decode(found) if isinstance(found, str) else found
    if not isinstance(found, dict):
        return None
    return value["name"], json.dumps(found, ensure_ascii=False)


def tag_rule(tag: str, tokenizer: HuggingFaceTokenizer) -> str:
    """A tag as Lark: the token, where there is one of this text, else the text."""
    number = tokenizer.backend.token_to_id(tag)
    return json.dumps(tag) if number is None else f"<[{number}]>"


def arguments_schema(function: Function, enforced: bool) -> str:
    """Schema of a function's arguments, for a grammar; any object unless they are enforced.

    Raises:
        ValueError: it is no schema, or too large.
    """
    return schema_text(closed(schema_of(function)) if enforced else {"type": "object"})


def choice_of_calls(use: ToolUse, head: Callable[[str], str], tail: str) -> list[str]:
    """Lark rules ``body``, ``call_0`` and so on for JSON objects that call one of the tools.

    Args:
        use: the tools.
        head: text before the arguments of a function of this name.
        tail: text after them.

    Raises:
        ValueError: a schema is no schema, or too large.
    """
    functions = [tool.function for tool in use.tools]
    lines = ["body: " + " | ".join(f"call_{number}" for number in range(len(functions)))]
    for number, function in enumerate(functions):
        schema = arguments_schema(function, bool(use.forced or function.strict))
        before = json.dumps(head(function.name))
        after = f" {json.dumps(tail)}" if tail else ""
        lines.append(f"call_{number}: {before} arguments_{number}{after}")
        lines.append(f"arguments_{number}: %json {schema}")
    return lines


def tools_form(lines: Sequence[str]) -> Form:
    """A form of these Lark rules."""
    return Form("tools", "\n".join(["%llguidance {}", *lines]) + "\n", "tools")


def answer_rule(answer: Form) -> str:
    """Lark rule ``answer`` of a JSON form."""
    return f"answer: %json {schema_text(answer.content, answer.whitespace)}"


def explain_as_text(
    messages: Sequence[JsonMapping],
    tools: Sequence[JsonMapping],
    instructions: str,
    calls_text: Callable[[Sequence[JsonMapping]], str],
) -> list[JsonObject]:
    """Rewrite tools, calls and their results as text, for templates that know none.

    Args:
        messages: of the conversation.
        tools: what may be called; they are described in the system message.
        instructions: how to call, with ``{tools}`` where the tools stand.
        calls_text: the functions of calls as the model writes them.
    """
    out: list[JsonObject] = []
    results = False
    for message in messages:
        role, text = message["role"], message["content"]
        if role == "tool":
            text = f"<tool_response>\n{text}\n</tool_response>"
            if results:
                out[-1]["content"] += "\n" + text
            else:
                out.append({"role": "user", "content": text})
        else:
            functions = [call["function"] for call in message.get("tool_calls") or ()]
            calls = [calls_text(functions)] if functions else []
            out.append({"role": role, "content": "\n".join([*([text] if text else []), *calls])})
        results = role == "tool"
    if tools:
        told = instructions.replace("{tools}", "\n".join(map(json.dumps, tools)))
        if out and out[0]["role"] == "system":
            out[0]["content"] += "\n\n" + told
        else:
            out.insert(0, {"role": "system", "content": told})
    return out
