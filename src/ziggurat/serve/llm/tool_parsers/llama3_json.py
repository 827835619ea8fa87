r"""Tool calls as Llama 3.1, 3.2 and 3.3 write them: the whole answer is a JSON object.

    {"name": "weather", "parameters": {"city": "Paris"}}

Several calls are separated by semicolons; ``<|python_tag|>`` may stand before them
(https://www.llama.com/docs/model-cards-and-prompt-formats/llama3_1). An answer that does not begin
with a call is text.

>>> PARSER.stream().push('{"name": "f", "parameters": {"x": 1}}')
[CallDelta(index=0, name='f', arguments=''), CallDelta(index=0, name=None, arguments='{"x": 1}')]
"""

import json
from collections.abc import Sequence

from ziggurat.core.json_types import JsonMapping, JsonObject
from ziggurat.data import HuggingFaceTokenizer
from ziggurat.serve.llm.call_deltas import State
from ziggurat.serve.llm.call_text import (
    choice_of_calls,
    explain_as_text,
    tools_form,
)
from ziggurat.serve.llm.json_call_stream import JsonCallStream
from ziggurat.serve.llm.structured import Form
from ziggurat.serve.llm.tool_parsers import CallStream, Delta, ToolCallParser
from ziggurat.serve.llm.tools import ToolUse

TAG = "<|python_tag|>"
_KEYS = "parameters", "arguments"

INSTRUCTIONS = """\
You may call functions to help with the user's request. Each of the next lines is the signature of \
one, as JSON:
{tools}
To call a function, answer with a JSON object and nothing else: \
{"name": NAME, "parameters": {...}}"""
"""Instructions about tools, for models whose chat template has no place for them."""


class LlamaCallStream(JsonCallStream):
    """Incremental reader of Llama's JSON calls."""

    def __init__(self):
        super().__init__(_KEYS)

    def _text(self, out: list[Delta]) -> bool:
        """The beginning of the answer decides."""
        text = self._held.lstrip()
        if text.startswith(TAG):
            self._held, self._state = text[len(TAG) :], self._between
            return True
        if text.startswith("{"):
            self._state = self._object_of_call
            return True
        if TAG.startswith(text):
            return False
        self._state = self._plain
        return True

    def _plain(self, out: list[Delta]) -> bool:
        self._say(self._held, out)
        self._held = ""
        return False

    def _between(self, out: list[Delta]) -> bool:
        """Between calls, or behind the tag."""
        text = self._skip_space()
        if not text or (TAG.startswith(text) and text != TAG):
            return False
        if text.startswith(TAG) or text[0] == ";":
            self._held = text[len(TAG) if text[0] == "<" else 1 :]
            return True
        self._state = self._object_of_call if text[0] == "{" else self._plain
        return True

    def _after_object(self) -> State:
        return self._between

    def _not_a_call(self, text: str, out: list[Delta]) -> State:
        self._say(text, out)
        return self._plain

    def _rest(self, out: list[Delta]) -> None:
        if self._state in (self._text, self._object_of_call):
            self._say(self._held, out)


class Llama3JsonParser(ToolCallParser):
    """Llama 3's form: JSON objects with ``name`` and ``parameters``."""

    tags = (TAG,)
    reads_special = True

    def written_by(self, template: str) -> bool:
        """Whether a template asks for such an object, as Llama 3's does."""
        return '{"name": function name, "parameters"' in template

    def stream(self) -> CallStream:
        """A new reader, for one answer."""
        return LlamaCallStream()

    def grammar(
        self, use: ToolUse, tokenizer: HuggingFaceTokenizer, answer: Form | None = None
    ) -> Form:
        """Grammar of an answer with these tools; a free text cannot begin with a brace.

        Raises:
            ValueError: a schema is no schema, or an answer that is JSON too is to be told apart.
        """
        calls = 'body ("; " body)*' if use.parallel else "body"
        lines = choice_of_calls(use, _head, "}")
        if use.forced:
            lines.append(f"start: {calls}")
        elif answer is not None:
            raise ValueError(f"{answer.field}: JSON too, which begins as calls of this form do")
        else:
            lines += [f"start: TEXT | {calls}", r"TEXT: /([^{ \t\r\n](.|\n)*)?/"]
        return tools_form(lines)

    def explain(
        self, messages: Sequence[JsonMapping], tools: Sequence[JsonMapping]
    ) -> list[JsonObject]:
        """Rewrite tools, calls and their results as text, for templates that know none."""
        return explain_as_text(messages, tools, INSTRUCTIONS, _calls_text)


def _head(name: str) -> str:
    return f'{{"name": {json.dumps(name)}, "parameters": '


def _calls_text(functions: Sequence[JsonMapping]) -> str:
    bodies = [{"name": f["name"], "parameters": f["arguments"]} for f in functions]
    return "; ".join(json.dumps(body, ensure_ascii=False) for body in bodies)


PARSER = Llama3JsonParser()
