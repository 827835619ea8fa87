r"""Tool calls as a list of Python calls, which Llama 3.2 and 4 and others are trained on.

    [weather(city="Paris", days=3), now()]

``<|python_start|>`` and ``<|python_end|>`` may stand around it
(https://www.llama.com/docs/model-cards-and-prompt-formats/llama4). Arguments become JSON; a call is
let out when it is whole.

>>> PARSER.stream().push("[f(x=[1, None])]")[1]
CallDelta(index=0, name=None, arguments='{"x": [1, null]}')
"""

import ast
import json
import re
from collections.abc import Mapping, Sequence

from ziggurat.core.json_types import Json, JsonMapping, JsonObject
from ziggurat.data import HuggingFaceTokenizer
from ziggurat.serve.llm.call_text import (
    SPACE,
    answer_rule,
    explain_as_text,
    read_json,
    tools_form,
)
from ziggurat.serve.llm.grammar import schema_text
from ziggurat.serve.llm.structured import Form
from ziggurat.serve.llm.tool_parsers import CallDelta, CallStream, Delta, TextDelta, ToolCallParser
from ziggurat.serve.llm.tools import Function, ToolUse, argument_schemas

START, END = "<|python_start|>", "<|python_end|>"
_HEAD = re.compile(r"\s*([A-Za-z_][\w.-]*)\s*\(")
_BEGINNING = re.compile(r"\s*([A-Za-z_][\w.-]*\s*)?")
_WORDS = {"true": True, "false": False, "null": None}

INSTRUCTIONS = """\
You may call functions to help with the user's request. Each of the next lines is the signature of \
one, as JSON:
{tools}
To call functions, answer with a list of Python calls and nothing else: \
[func_name(name=value, ...)]"""
"""Instructions about tools, for models whose chat template has no place for them."""


class PythonCallStream(CallStream):
    """Incremental reader of Python calls."""

    def __init__(self):
        self.calls, self._held, self._plain, self._listed = 0, "", False, False
        self._said = False
        self._raw = ""
        """Text since the list began, while it holds no call."""
        self._end, self._read = _CallEnd(), 0
        """End of the call that is being read, looked for in so many characters."""

    def push(self, text: str) -> list[Delta]:
        """Add text; returns the deltas that are decided."""
        self._held += text
        out: list[Delta] = []
        while not self._plain and self._step(out):
            pass
        if self._plain:
            self._say(out)
        return out

    def finish(self) -> list[Delta]:
        """Deltas of the text still held back when the answer ends."""
        out: list[Delta] = []
        self._say(out)
        return out

    def _say(self, out: list[Delta]) -> None:
        text, self._held, self._raw = self._raw + self._held, "", ""
        if self.calls and not self._said:
            text = text.lstrip(SPACE)
        if text:
            self._said = True
            out.append(TextDelta(text))

    def _step(self, out: list[Delta]) -> bool:
        """Read one thing; false if more text is needed."""
        text = self._held.lstrip(SPACE)
        if not self._listed:
            if text.startswith("["):
                before = len(self._held) - len(text)
                self._raw += self._held[: before + 1]
                self._held, self._listed = text[1:], True
                return True
            for tag in (START, END):
                if text.startswith(tag):
                    self._held = text[len(tag) :]
                    return True
            self._plain = not any(tag.startswith(text) for tag in (START, END))
            return False
        if self.calls and text[:1] in (",", "]"):
            self._held, self._listed = text[1:], text[0] == ","
            return True
        return self._one(out)

    def _one(self, out: list[Delta]) -> bool:
        """Read a call, if it is whole."""
        head = _HEAD.match(self._held)
        if head is None:
            self._plain = _BEGINNING.fullmatch(self._held) is None
            return False
        start = max(self._read, head.end())
        found = self._end.find(self._held[start:])
        self._read = len(self._held)
        if found is None:
            return False
        end = start + found
        self._end, self._read = _CallEnd(), 0
        arguments = _arguments(self._held[head.end() - 1 : end])
        if arguments is None:
            self._plain = True
            return False
        out.append(CallDelta(self.calls, head[1], ""))
        out.append(CallDelta(self.calls, None, json.dumps(arguments, ensure_ascii=False)))
        self.calls, self._raw, self._held = self.calls + 1, "", self._held[end:]
        return True


class _CallEnd:
    """Finds the parenthesis that closes a call, whose text comes in pieces."""

    def __init__(self):
        self._depth, self._quote, self._escaped = 1, "", False

    def find(self, text: str) -> int | None:
        """Place just after it in this piece, if it is there."""
        for place, character in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._quote:
                self._escaped = character == "\\"
                self._quote = "" if character == self._quote else self._quote
            elif character in "'\"":
                self._quote = character
            elif character in "([{":
                self._depth += 1
            elif character in ")]}":
                self._depth -= 1
                if self._depth == 0:
                    return place + 1
        return None


def _arguments(text: str) -> JsonObject | None:
    """Keyword arguments between parentheses; ``None`` for a text that is none."""
    source = "f" + text
    try:
        call = ast.parse(source, mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            return None
        if any(keyword.arg is None for keyword in call.keywords):
            return None
        return {str(k.arg): _value(k.value, source) for k in call.keywords}
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return None


def _value(node: ast.expr, source: str) -> Json:
    """A value, written in JSON or as a Python literal."""
    try:
        return read_json(ast.get_source_segment(source, node) or "")
    except ValueError:
        pass
    if isinstance(node, ast.Name):
        return _WORDS.get(node.id, node.id)
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(entry, source) for entry in node.elts]
    if isinstance(node, ast.Dict):
        keys = [ast.literal_eval(key) if key is not None else None for key in node.keys]
        if not all(isinstance(key, str) for key in keys):
            raise ValueError("a key that is no text")
        return {key: _value(value, source) for key, value in zip(keys, node.values)}
    found = ast.literal_eval(node)
    if not isinstance(found, str | int | float | None):
        raise ValueError("no JSON value")
    return found


class PythonicParser(ToolCallParser):
    """Python calls in a list, which is the whole answer."""

    tags = START, END
    reads_special = True

    def written_by(self, template: str) -> bool:
        """Whether a template asks for such a list, as Meta's system prompts do."""
        return "[func_name1(" in template

    def stream(self) -> CallStream:
        """A new reader, for one answer."""
        return PythonCallStream()

    def grammar(
        self, use: ToolUse, tokenizer: HuggingFaceTokenizer, answer: Form | None = None
    ) -> Form:
        """Grammar of an answer with these tools; a free text cannot begin with a bracket."""
        functions = [tool.function for tool in use.tools]
        several = ' (", " call)*' if use.parallel else ""
        lines = [f'calls: "[" call{several} "]"']
        lines.append("call: " + " | ".join(f"call_{i}" for i in range(len(functions))))
        for number, function in enumerate(functions):
            lines += _call_rules(number, function)
        if use.forced:
            lines.append("start: calls")
        elif answer is not None:
            lines += ["start: answer | calls", answer_rule(answer)]
        else:
            lines += ["start: TEXT | calls", r"TEXT: /([^\[ \t\r\n](.|\n)*)?/"]
        return tools_form(lines)

    def explain(
        self, messages: Sequence[JsonMapping], tools: Sequence[JsonMapping]
    ) -> list[JsonObject]:
        """Rewrite tools, calls and their results as text, for templates that know none."""
        return explain_as_text(messages, tools, INSTRUCTIONS, _calls_text)


def _call_rules(number: int, function: Function) -> list[str]:
    """Rules of one function: its arguments in the schema's order, optional ones left out or not.

    Raises:
        ValueError: the arguments cannot be told one by one.
    """
    arguments = argument_schemas(function)
    open_paren = json.dumps(f"{function.name}(")
    lines = [f'call_{number}: {open_paren} first_{number}_0 ")"']
    for place, one in enumerate(arguments):
        rest, value = f"{number}_{place + 1}", f"value_{number}_{place}"
        lines.append(f"{value}: {json.dumps(one.name + '=')} json_{number}_{place}")
        lines.append(f"json_{number}_{place}: %json {schema_text(one.schema)}")
        first, later = f"{value} later_{rest}", f'", " {value} later_{rest}'
        first += "" if one.required else f" | first_{rest}"
        later += "" if one.required else f" | later_{rest}"
        lines += [f"first_{number}_{place}: {first}", f"later_{number}_{place}: {later}"]
    end = f"{number}_{len(arguments)}"
    return [*lines, f'first_{end}: ""', f'later_{end}: ""']


def _calls_text(functions: Sequence[JsonMapping]) -> str:
    def one(function: JsonMapping) -> str:
        given = function["arguments"]
        items = given.items() if isinstance(given, Mapping) else ()
        return f"{function['name']}({', '.join(f'{key}={value!r}' for key, value in items)})"

    return f"[{', '.join(map(one, functions))}]"


PARSER = PythonicParser()
