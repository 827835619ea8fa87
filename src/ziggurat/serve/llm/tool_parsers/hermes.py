r"""Tool calls in the Hermes form, which Hermes, Qwen 2.5, Qwen 3 and others are trained on: read
from a model's text, enforced by a grammar, and explained to models whose template does not.

A call is a JSON object between tags, and several may follow each other:

    <tool_call>
    {"name": "weather", "arguments": {"city": "Paris"}}
    </tool_call>

>>> parser = CallParser()
>>> parser.push('Let me see.\n<tool_call>\n{"name": "f", "argu')
[TextDelta(text='Let me see.')]
>>> parser.push('ments": {"x": ')
[CallDelta(index=0, name='f', arguments=''), CallDelta(index=0, name=None, arguments='{"x": ')]
>>> parser.push('1}}\n</tool_call>')
[CallDelta(index=0, name=None, arguments='1}')]
"""

import json
import re
from collections.abc import Sequence

from ziggurat.core.json_types import JsonMapping, JsonObject
from ziggurat.data import HuggingFaceTokenizer
from ziggurat.serve.llm.call_deltas import StateCallStream
from ziggurat.serve.llm.call_text import (
    SPACE,
    ObjectEnd,
    decode,
    explain_as_text,
    tag_rule,
    whole_call,
)
from ziggurat.serve.llm.grammar import schema_text
from ziggurat.serve.llm.stop import overlap
from ziggurat.serve.llm.structured import Form
from ziggurat.serve.llm.tool_parsers import (
    CallDelta,
    Delta,
    TextDelta,
    ToolCallParser,
)
from ziggurat.serve.llm.tools import ToolUse, closed, schema_of

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\{)')


class CallParser(StateCallStream):
    """Incremental parser of tool calls in generated text.

    A call is let out as soon as its name is known, its arguments as they come. White space around
    a call is dropped. What opens like a call but is none is let out as text.
    """

    def __init__(self):
        super().__init__()
        self._object = ObjectEnd()
        self._after_call = False

    def _rest(self, out: list[Delta]) -> None:
        if self._state == self._head and not self._whole_call(self._held, out):
            self._say(OPEN + self._held, out)
        elif self._state == self._text:
            self._say(self._held.lstrip(SPACE) if self._after_call else self._held, out)

    def _text(self, out: list[Delta]) -> bool:
        if self._after_call:
            self._held = self._held.lstrip(SPACE)
        at = self._held.find(OPEN)
        if at >= 0:
            self._say(self._held[:at].rstrip(SPACE), out)
            self._held, self._state = self._held[at + len(OPEN) :], self._head
            return True
        certain = self._held[: len(self._held) - overlap(self._held, OPEN)].rstrip(SPACE)
        self._say(certain, out)
        self._held = self._held[len(certain) :]
        return False

    def _head(self, out: list[Delta]) -> bool:
        found = _HEAD.match(self._held)
        if found and (name := decode(found[1])) is not None:
            self._call(name, out)
            self._held, self._state = self._held[found.end() :], self._arguments
            self._object = ObjectEnd()
            return True
        at = self._held.find(CLOSE)
        if at < 0:
            return False
        if self._whole_call(self._held[:at], out):
            self._held = self._held[at + len(CLOSE) :]
        else:
            self._say(OPEN + self._held[: at + len(CLOSE)], out)
            self._held = self._held[at + len(CLOSE) :]
        self._state = self._text
        return True

    def _arguments(self, out: list[Delta]) -> bool:
        end = self._object.find(self._held)
        size = len(self._held) if end is None else end
        if size:
            out.append(CallDelta(self.calls - 1, None, self._held[:size]))
        self._held = self._held[size:]
        if end is None:
            return False
        self._state = self._tail
        return True

    def _tail(self, out: list[Delta]) -> bool:
        at = self._held.find(CLOSE)
        if at < 0:
            self._held = self._held[-len(CLOSE) + 1 :]
            return False
        self._held, self._state = self._held[at + len(CLOSE) :], self._text
        return True

    def _say(self, text: str, out: list[Delta]) -> None:
        if text:
            self._after_call = False
            out.append(TextDelta(text))

    def _call(self, name: str, out: list[Delta]) -> None:
        out.append(CallDelta(self.calls, name, ""))
        self.calls += 1
        self._after_call = True

    def _whole_call(self, text: str, out: list[Delta]) -> bool:
        """A call whose parts are in another order or form."""
        call = whole_call(decode(text), ["arguments"])
        if call is None:
            return False
        self._call(call[0], out)
        out.append(CallDelta(self.calls - 1, None, call[1]))
        return True


def grammar(use: ToolUse, tokenizer: HuggingFaceTokenizer, answer: Form | None = None) -> Form:
    """Grammar of an answer with these tools.

    Args:
        use: the tools. Where no call is forced, text may stand before and between calls.
        tokenizer: a tag that is a token of its own is demanded as that token.
        answer: a JSON form that an answer without calls must have.

    Raises:
        ValueError: a schema is no schema, or too large.
    """
    opening, closing = (tag_rule(tag, tokenizer) for tag in (OPEN, CLOSE))
    several = ' ("\\n" call)*' if use.parallel else ""
    lines = ["%llguidance {}", f"call: {opening} body"]
    if use.forced:
        lines.append(f"start: call{several}")
    elif answer is not None:
        lines.append(f"start: answer | call{several}")
        lines.append(f"answer: %json {schema_text(answer.content, answer.whitespace)}")
    else:
        # A lazy rule ends at the first tag, so that text cannot hold one; no text holds a token.
        lazy = "" if opening.startswith("<") else "[lazy]"
        lines[1:] = [f"opening{lazy}: TEXT {opening}", r"TEXT: /(.|\n)*/"]
        lines.append(f"start: {'(opening body)* TEXT' if use.parallel else 'TEXT | opening body'}")
    functions = [tool.function for tool in use.tools]
    choices = " | ".join(f"call_{number}" for number in range(len(functions)))
    lines.append(f'body: "\\n" ({choices}) "\\n" {closing}')
    for number, function in enumerate(functions):
        head = f'{{"name": {json.dumps(function.name)}, "arguments": '
        enforced = use.forced or function.strict
        schema = schema_text(closed(schema_of(function)) if enforced else {"type": "object"})
        lines.append(f'call_{number}: {json.dumps(head)} arguments_{number} "}}"')
        lines.append(f"arguments_{number}: %json {schema}")
    return Form("tools", "\n".join(lines) + "\n", "tools")


INSTRUCTIONS = """\
You may call functions to help with the user's request. Each line between the next tags is the \
signature of one, as JSON:
<tools>
{tools}
</tools>
To call a function, write its name and its arguments as a JSON object between tags:
<tool_call>
{"name": NAME, "arguments": {...}}
</tool_call>"""
"""Instructions about tools, for models whose chat template has no place for them."""


def explain(messages: Sequence[JsonMapping], tools: Sequence[JsonMapping]) -> list[JsonObject]:
    """Rewrite tools, calls and their results as text, for templates that know none.

    Tools are described in the system message, calls stand in the assistant's text, results in a
    user's message between ``<tool_response>`` tags.

    >>> explain([{"role": "tool", "content": "22 C"}], [])
    [{'role': 'user', 'content': '<tool_response>\\n22 C\\n</tool_response>'}]
    """
    return explain_as_text(messages, tools, INSTRUCTIONS, _calls_text)


def _calls_text(functions: Sequence[JsonMapping]) -> str:
    bodies = [{"name": f["name"], "arguments": f["arguments"]} for f in functions]
    return "\n".join(f"{OPEN}\n{json.dumps(b, ensure_ascii=False)}\n{CLOSE}" for b in bodies)


class HermesParser(ToolCallParser):
    """The Hermes form: a JSON object with name and arguments between ``<tool_call>`` tags."""

    tags = OPEN, CLOSE

    def written_by(self, template: str) -> bool:
        """Whether a template shows the tag, and not the form of Qwen3-Coder inside."""
        return OPEN in template and "<function=" not in template

    def stream(self) -> CallParser:
        """A new reader, for one answer."""
        return CallParser()

    def grammar(
        self, use: ToolUse, tokenizer: HuggingFaceTokenizer, answer: Form | None = None
    ) -> Form:
        """Grammar of an answer with these tools, see :func:`grammar`."""
        return grammar(use, tokenizer, answer)

    def explain(
        self, messages: Sequence[JsonMapping], tools: Sequence[JsonMapping]
    ) -> list[JsonObject]:
        """Rewrite tools, calls and their results as text, see :func:`explain`."""
        return explain(messages, tools)


PARSER = HermesParser()
