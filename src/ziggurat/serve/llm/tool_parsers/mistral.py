r"""Tool calls as Mistral's models write them, behind ``[TOOL_CALLS]``.

The first models write a JSON list, those since the tokenizer's version 11 a name and arguments
(https://docs.mistral.ai/cookbooks/concept-deep-dive-tokenization-tool_calling):

    [TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Paris"}}]
    [TOOL_CALLS]weather[ARGS]{"city": "Paris"}

>>> PARSER.stream().push('[TOOL_CALLS]f[ARGS]{"x": 1}')
[CallDelta(index=0, name='f', arguments=''), CallDelta(index=0, name=None, arguments='{"x": 1}')]
"""

import json
import re
import secrets
import string
from collections.abc import Sequence

from ziggurat.core.json_types import JsonMapping, JsonObject
from ziggurat.data import HuggingFaceTokenizer
from ziggurat.serve.llm.call_deltas import State
from ziggurat.serve.llm.call_text import (
    SPACE,
    ObjectEnd,
    answer_rule,
    choice_of_calls,
    explain_as_text,
    tag_rule,
    tools_form,
)
from ziggurat.serve.llm.json_call_stream import JsonCallStream
from ziggurat.serve.llm.stop import overlap
from ziggurat.serve.llm.structured import Form
from ziggurat.serve.llm.tool_parsers import CallStream, Delta, ToolCallParser
from ziggurat.serve.llm.tools import ToolUse

TAG, ARGUMENTS = "[TOOL_CALLS]", "[ARGS]"
_NAMED = re.compile(r"\s*([\w.-]+)\s*(?:\[CALL_ID\]\s*\w+\s*)?(?:\[ARGS\]\s*)?(?=\{)")
_IDS = string.ascii_letters + string.digits

INSTRUCTIONS = """\
You may call functions to help with the user's request. Each of the next lines is the signature of \
one, as JSON:
{tools}
To call functions, answer with a list behind a mark: \
[TOOL_CALLS] [{"name": NAME, "arguments": {...}}]"""
"""Instructions about tools, for models whose chat template has no place for them."""


class MistralCallStream(JsonCallStream):
    """Incremental reader of Mistral's calls, in either form."""

    def __init__(self):
        super().__init__(["arguments"])
        self._listed = False

    def _text(self, out: list[Delta]) -> bool:
        at = self._held.find(TAG)
        if at >= 0:
            self._say(self._held[:at].rstrip(SPACE), out)
            self._held, self._state = self._held[at + len(TAG) :], self._head
            return True
        certain = self._held[: len(self._held) - overlap(self._held, TAG)].rstrip(SPACE)
        self._say(certain, out)
        self._held = self._held[len(certain) :]
        return False

    def _head(self, out: list[Delta]) -> bool:
        text = self._skip_space()
        if text[:1] in ("[", "{"):
            self._listed = text[0] == "["
            self._held = text[self._listed :]
            self._state = self._item
            return True
        found = _NAMED.match(text)
        if found:
            self._call(found[1], out)
            self._held, self._object = text[found.end() :], ObjectEnd()
            self._state = self._named_arguments
            return True
        at = text.find(TAG)
        if at >= 0:  # what stood before it was no call
            self._say(TAG + text[:at], out)
            self._held = text[at + len(TAG) :]
        return at >= 0

    def _named_arguments(self, out: list[Delta]) -> bool:
        if not self._arguments_end(out):
            return False
        self._state = self._behind
        return True

    def _item(self, out: list[Delta]) -> bool:
        text = self._skip_space()
        if text[:1] == "{":
            self._state = self._object_of_call
        elif text[:1] == ",":
            self._held = text[1:]
        elif text:
            self._held, self._state = text[text[0] == "]" :], self._behind
        return bool(text)

    def _behind(self, out: list[Delta]) -> bool:
        """Behind a call or a list of them: white space is dropped."""
        if not self._skip_space():
            return False
        self._state = self._text
        return True

    def _after_object(self) -> State:
        return self._item if self._listed else self._behind

    def _not_a_call(self, text: str, out: list[Delta]) -> State:
        self._say(TAG + "[" * self._listed + text, out)
        return self._plain

    def _plain(self, out: list[Delta]) -> bool:
        self._say(self._held, out)
        self._held = ""
        return False

    def _rest(self, out: list[Delta]) -> None:
        if self._state == self._head:
            self._say(TAG + self._held, out)
        elif self._state == self._object_of_call:
            self._say(TAG + "[" * self._listed + self._held, out)
        elif self._state == self._text:
            self._say(self._held, out)


class MistralParser(ToolCallParser):
    """Mistral's form: a JSON list, or names with arguments, behind ``[TOOL_CALLS]``."""

    tags = (TAG,)
    reads_special = True

    def stream(self) -> CallStream:
        """A new reader, for one answer."""
        return MistralCallStream()

    def new_id(self) -> str:
        """A new id of a call: nine letters and digits, which Mistral's templates ask for."""
        return "".join(secrets.choice(_IDS) for _ in range(9))

    def grammar(
        self, use: ToolUse, tokenizer: HuggingFaceTokenizer, answer: Form | None = None
    ) -> Form:
        """Grammar of an answer with these tools, in the newer form if ``[ARGS]`` is a token."""
        tag, newer = tag_rule(TAG, tokenizer), tag_rule(ARGUMENTS, tokenizer)
        if newer.startswith("<"):
            lines = _named(use, newer)
            first, more = "body", f" ({tag} body)*"
        else:
            lines = choice_of_calls(use, _head, "}")
            first, more = '"[" body', ' (", " body)*'
        several = more if use.parallel else ""
        end = "" if newer.startswith("<") else ' "]"'
        if use.forced:
            lines.append(f"start: {tag} {first}{several}{end}")
        elif answer is not None:
            lines += [f"start: answer | {tag} {first}{several}{end}", answer_rule(answer)]
        else:
            # A lazy rule ends at the first tag; no text holds a token.
            lazy = "" if tag.startswith("<") else "[lazy]"
            lines += [f"opening{lazy}: TEXT {tag}", r"TEXT: /(.|\n)*/"]
            lines.append(f"start: TEXT | opening {first}{several}{end}")
        return tools_form(lines)

    def explain(
        self, messages: Sequence[JsonMapping], tools: Sequence[JsonMapping]
    ) -> list[JsonObject]:
        """Rewrite tools, calls and their results as text, for templates that know none."""
        return explain_as_text(messages, tools, INSTRUCTIONS, _calls_text)


def _head(name: str) -> str:
    return f'{{"name": {json.dumps(name)}, "arguments": '


def _named(use: ToolUse, mark: str) -> list[str]:
    """Rules of calls in the newer form."""
    lines = choice_of_calls(use, lambda name: name, "")
    return [
        line if "%json" in line or line.startswith("body") else line.replace(" arg", f" {mark} arg")
        for line in lines
    ]


def _calls_text(functions: Sequence[JsonMapping]) -> str:
    bodies = [{"name": f["name"], "arguments": f["arguments"]} for f in functions]
    return f"{TAG} {json.dumps(bodies, ensure_ascii=False)}"


PARSER = MistralParser()
