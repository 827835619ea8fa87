r"""Tool calls as Qwen3-Coder writes them: a tag for each parameter, whose value is plain text.

    <tool_call>
    <function=weather>
    <parameter=city>
    Paris
    </parameter>
    </function>
    </tool_call>

The form is that of the template at https://huggingface.co/Qwen/Qwen3-Coder-480B-A35B-Instruct. The
function's schema says which values are texts and which are JSON. A parameter is let out when its
value is whole.

>>> text = "<tool_call>\n<function=f>\n<parameter=x>\n1\n</parameter>\n</function>"
>>> PARSER.stream().push(text)[1:]
[CallDelta(index=0, name=None, arguments='{"x": 1'), CallDelta(index=0, name=None, arguments='}')]
"""

import ast
import json
from collections.abc import Mapping, Sequence

from ziggurat.core.json_types import Json, JsonMapping, JsonObject
from ziggurat.data import HuggingFaceTokenizer
from ziggurat.serve.llm.call_deltas import StateCallStream
from ziggurat.serve.llm.call_text import (
    SPACE,
    answer_rule,
    explain_as_text,
    read_json,
    tag_rule,
    tools_form,
)
from ziggurat.serve.llm.grammar import schema_text
from ziggurat.serve.llm.stop import overlap
from ziggurat.serve.llm.structured import Form
from ziggurat.serve.llm.tool_parsers import CallDelta, CallStream, Delta, TextDelta, ToolCallParser
from ziggurat.serve.llm.tools import Function, ToolUse, argument_schemas, schema_of

OPEN, CLOSE = "<tool_call>", "</tool_call>"
FUNCTION, PARAMETER = "<function=", "<parameter="
_SAY_NOTHING = {"$defs", "default", "definitions", "description", "examples", "title", "type"}
"""Keywords that do not rule what a text may be."""
_END_FUNCTION, _END_PARAMETER = "</function>", "</parameter>"

INSTRUCTIONS = """\
You may call functions to help with the user's request. Each of the next lines is the signature of \
one, as JSON:
{tools}
To call a function, write tags, with one parameter tag for each argument:
<tool_call>
<function=NAME>
<parameter=ARGUMENT>
VALUE
</parameter>
</function>
</tool_call>"""
"""Instructions about tools, for models whose chat template has no place for them."""


class TagCallStream(StateCallStream):
    """Incremental reader of calls in tags.

    Args:
        types: by function and parameter, the ``type`` of its schema; default: JSON where a value is
            JSON, else a text.
    """

    def __init__(self, types: Mapping[str, Mapping[str, Json]] | None = None):
        super().__init__()
        self._types, self._name = types, ""
        self._after_call, self._first, self._closed = False, True, False

    def _rest(self, out: list[Delta]) -> None:
        """Let out what is held; a call that was cut off keeps the parameters that are whole."""
        if self._state == self._parameters:
            self._end(out)
        elif self._state == self._function:
            self._say(OPEN + self._held, out)
        elif self._state == self._text:
            self._say(self._held.lstrip(SPACE) if self._after_call else self._held, out)

    def _text(self, out: list[Delta]) -> bool:
        if self._after_call:
            self._held = self._held.lstrip(SPACE)
        places = [(at, tag) for tag in (OPEN, FUNCTION) if (at := self._held.find(tag)) >= 0]
        if places:
            at, tag = min(places)
            self._say(self._held[:at].rstrip(SPACE), out)
            self._held = self._held[at + (len(OPEN) if tag == OPEN else 0) :]
            self._state = self._function
            return True
        keep = max(overlap(self._held, OPEN), overlap(self._held, FUNCTION))
        certain = self._held[: len(self._held) - keep].rstrip(SPACE)
        self._say(certain, out)
        self._held = self._held[len(certain) :]
        return False

    def _function(self, out: list[Delta]) -> bool:
        text = self._held.lstrip(SPACE)
        if text.startswith(FUNCTION):
            name, closing, rest = text[len(FUNCTION) :].partition(">")
            if not closing:
                return False
            self._name, self._held, self._first = name.strip(), rest, True
            out.append(CallDelta(self.calls, self._name, ""))
            self.calls += 1
            self._state, self._after_call = self._parameters, True
            return True
        if FUNCTION.startswith(text):
            return False
        self._say(OPEN + self._held[: len(self._held) - len(text)], out)  # it opens no call
        self._held, self._state = text, self._text
        return True

    def _parameters(self, out: list[Delta]) -> bool:
        text = self._held.lstrip(SPACE)
        if text.startswith(PARAMETER):
            return self._parameter(text, out)
        if text.startswith((_END_FUNCTION, CLOSE)):
            self._held = text.removeprefix(_END_FUNCTION)
            self._end(out)
            self._state = self._tail
            return True
        if not text or any(t.startswith(text) for t in (PARAMETER, _END_FUNCTION, CLOSE)):
            return False
        self._held = text[1:]  # what is neither a parameter nor an end is dropped
        return True

    def _parameter(self, text: str, out: list[Delta]) -> bool:
        name, closing, rest = text[len(PARAMETER) :].partition(">")
        ends = [(at, tag) for tag in (_END_PARAMETER, "\n" + PARAMETER, "\n" + _END_FUNCTION)
                if (at := rest.find(tag)) >= 0]  # fmt: skip
        if not closing or not ends:
            return False
        at, tag = min(ends)
        value = rest[:at].removeprefix("\n").removesuffix("\n")
        self._held = rest[at + (len(tag) if tag == _END_PARAMETER else 0) :]
        pair = f"{json.dumps(name.strip())}: {self._value(name.strip(), value)}"
        piece = ("{" if self._first else ", ") + pair
        out.append(CallDelta(self.calls - 1, None, piece))
        self._first = False
        return True

    def _value(self, name: str, text: str) -> str:
        """A value as JSON."""
        kind = None if self._types is None else self._types.get(self._name, {}).get(name)
        if kind != "string":
            for reads in (read_json, ast.literal_eval):
                try:
                    return json.dumps(reads(text.strip()), ensure_ascii=False)
                except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
                    continue
        return json.dumps(text, ensure_ascii=False)

    def _tail(self, out: list[Delta]) -> bool:
        text = self._held.lstrip(SPACE)
        if CLOSE.startswith(text) and text != CLOSE:
            return False
        self._held, self._state = text.removeprefix(CLOSE), self._text
        return True

    def _end(self, out: list[Delta]) -> None:
        out.append(CallDelta(self.calls - 1, None, "{}" if self._first else "}"))

    def _say(self, text: str, out: list[Delta]) -> None:
        if text:
            self._after_call = False
            out.append(TextDelta(text))


class Qwen3CoderParser(ToolCallParser):
    """Qwen3-Coder's form: tags for the function and for each parameter."""

    tags = OPEN, CLOSE

    def written_by(self, template: str) -> bool:
        """Whether a template shows the tag of a function."""
        return FUNCTION in template

    def stream(self) -> CallStream:
        """A new reader that knows no schema."""
        return TagCallStream()

    def reader(self, use: ToolUse) -> CallStream:
        """A new reader; the tools' schemas say which values are texts."""
        types: dict[str, dict[str, Json]] = {}
        for function in (tool.function for tool in use.tools):
            properties = schema_of(function).get("properties")
            named = properties.items() if isinstance(properties, dict) else ()
            types[function.name] = {
                name: schema.get("type") for name, schema in named if isinstance(schema, dict)
            }
        return TagCallStream(types)

    def grammar(
        self, use: ToolUse, tokenizer: HuggingFaceTokenizer, answer: Form | None = None
    ) -> Form:
        """Grammar of an answer with these tools; texts are free but for an ``enum``."""
        opening, closing = (tag_rule(tag, tokenizer) for tag in self.tags)
        functions = [tool.function for tool in use.tools]
        choices = " | ".join(f"call_{number}" for number in range(len(functions)))
        lines = [f'body: "\\n" ({choices}) "</function>\\n" {closing}']
        for number, function in enumerate(functions):
            lines += _call_rules(number, function)
        several = f' ("\\n" {opening} body)*' if use.parallel else ""
        if use.forced:
            lines.append(f"start: {opening} body{several}")
        elif answer is not None:
            lines += [f"start: answer | {opening} body{several}", answer_rule(answer)]
        else:
            # A lazy rule ends at the first tag; no text holds a token.
            lazy = "" if opening.startswith("<") else "[lazy]"
            lines += [f"opening{lazy}: TEXT {opening}", r"TEXT: /(.|\n)*/"]
            lines.append(f"start: TEXT | opening body{several}")
        return tools_form(lines)

    def explain(
        self, messages: Sequence[JsonMapping], tools: Sequence[JsonMapping]
    ) -> list[JsonObject]:
        """Rewrite tools, calls and their results as text, for templates that know none."""
        return explain_as_text(messages, tools, INSTRUCTIONS, _calls_text)


def _call_rules(number: int, function: Function) -> list[str]:
    """Rules of one function: its parameters in the schema's order.

    Raises:
        ValueError: the arguments cannot be told one by one, or a text has rules besides ``enum``.
    """
    arguments = argument_schemas(function)
    parts = [
        f"part_{number}_{place}" + ("" if one.required else "?")
        for place, one in enumerate(arguments)
    ]
    head = json.dumps(f"{FUNCTION}{function.name}>\n")
    lines = [" ".join([f"call_{number}:", head, *parts])]
    for place, one in enumerate(arguments):
        rule, opened = f"{number}_{place}", json.dumps(f"{PARAMETER}{one.name}>\n")
        closed = json.dumps(f"\n{_END_PARAMETER}\n")
        if one.schema.get("type") != "string":
            lines.append(f"part_{rule}: {opened} value_{rule} {closed}")
            lines.append(f"value_{rule}: %json {schema_text(one.schema)}")
        elif (texts := one.schema.get("enum")) is not None:
            choice = " | ".join(json.dumps(text) for text in texts if isinstance(text, str))
            lines.append(f"part_{rule}: {opened} ({choice}) {closed}")
        else:
            ruled = sorted(one.schema.keys() - _SAY_NOTHING)
            if ruled:
                raise ValueError(f"{one.name}: {ruled[0]} for a text in tags")
            lines.append(f"part_{rule}: {opened} text_{rule}")
            lines.append(f"text_{rule}[lazy]: /(.|\\n)*/ {closed}")
    return lines


def _calls_text(functions: Sequence[JsonMapping]) -> str:
    def one(function: JsonMapping) -> str:
        given = function["arguments"]
        lines = [OPEN, f"{FUNCTION}{function['name']}>"]
        for name, value in given.items() if isinstance(given, Mapping) else ():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            lines += [f"{PARAMETER}{name}>", text, _END_PARAMETER]
        return "\n".join([*lines, _END_FUNCTION, CLOSE])

    return "\n".join(map(one, functions))


PARSER = Qwen3CoderParser()
