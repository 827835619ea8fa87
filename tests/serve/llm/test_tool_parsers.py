"""A tool-call parser that this file adds: chosen by name or by the template, told to the model,
enforced, and read from the answer, whole and streamed."""

import json
import re

import pytest
from prometheus_client import CollectorRegistry
from tests.serve.conftest import CONTEXT, serving

from ziggurat.core.errors import ConfigError
from ziggurat.data.tokenizers import byte_level
from ziggurat.serve.composition import Generator, openai_parts
from ziggurat.serve.errors import RequestError
from ziggurat.serve.llm.engine import Engine, EngineConfig
from ziggurat.serve.llm.policy import RequestPolicy
from ziggurat.serve.llm.render import render_chat
from ziggurat.serve.llm.structured import Form
from ziggurat.serve.llm.tool_parsers import (
    TOOL_CALL_PARSERS,
    CallDelta,
    CallStream,
    TextDelta,
    ToolCallParser,
    parser_for,
)
from ziggurat.serve.llm.tool_parsers.hermes import PARSER as HERMES

HI = [{"role": "user", "content": "hi"}]
PARAMETERS = {
    "type": "object",
    "properties": {"x": {"enum": [1, 2]}},
    "required": ["x"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "f", "parameters": PARAMETERS}}
COMPACT = {str(ord(character)): -100.0 for character in " \t\r\n"}
PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
BRACKETS = "{% for t in tools or [] %}[[{{ t.function.name }}]]{% endfor %}" + PLAIN


class BracketStream(CallStream):
    """Reads ``[[NAME {ARGUMENTS}]]``; holds a call back until it is whole."""

    def __init__(self):
        self.calls, self._held = 0, ""

    def push(self, text):
        self._held += text
        deltas = []
        while found := re.match(r"(?s)(.*?)\[\[(\w+) (\{.*?\})\]\]", self._held):
            deltas += [TextDelta(found[1])] if found[1] else []
            deltas.append(CallDelta(self.calls, found[2], found[3]))
            self.calls += 1
            self._held = self._held[found.end() :]
        return deltas

    def finish(self):
        return [TextDelta(self._held)] if self._held else []


class BracketParser(ToolCallParser):
    """A form that no model was trained on."""

    tags = "[[", "]]"

    def stream(self):
        return BracketStream()

    def grammar(self, use, tokenizer, answer=None):
        (tool,) = use.tools
        schema = json.dumps(tool.function.parameters)
        start = f'start: "[[{tool.function.name} " body "]]"'
        text = f"%llguidance {{}}\n{start}\nbody: %json {schema}\n"
        return Form("tools", text, "tools")

    def explain(self, messages, tools):
        names = ", ".join(tool["function"]["name"] for tool in tools)
        return [{"role": "system", "content": f"write [[NAME ARGUMENTS]]: {names}"}, *messages]


@pytest.fixture
def brackets(monkeypatch):
    parser = BracketParser()
    monkeypatch.setattr(TOOL_CALL_PARSERS, "_entries", {**TOOL_CALL_PARSERS._entries})
    TOOL_CALL_PARSERS.add("brackets", parser)
    return parser


@pytest.fixture
def tokenizer():
    return byte_level({"eos_token": "<|end|>"})


def test_a_file_of_the_folder_is_a_parser(brackets):
    assert list(TOOL_CALL_PARSERS)[:2] == ["brackets", "hermes"]
    assert TOOL_CALL_PARSERS["hermes"] is HERMES


def test_the_template_chooses_the_parser(brackets, tokenizer):
    for template, parser in [
        (PLAIN, HERMES),
        (BRACKETS, brackets),
        (BRACKETS.replace("[[", "<tool_call>"), HERMES),
        (BRACKETS.replace("[[", "<call>"), None),
    ]:
        tokenizer.chat_templates["default"] = template
        assert parser_for(tokenizer) is parser
        assert parser_for(tokenizer, "brackets") is brackets
    with pytest.raises(RequestError, match=r"tool-call parser: brackets \(\[\[\), hermes"):
        render_chat(tokenizer, HI, [TOOL])
    assert render_chat(tokenizer, HI, [TOOL], tool_call_parser="brackets")


def test_an_unknown_parser_is_refused():
    with pytest.raises(ConfigError, match=r"tool-call parser: found 'hermse'.*did you mean hermes"):
        RequestPolicy(tool_call_parser="hermse")


def test_from_the_prompt_to_the_call(brackets, tokenizer, model, params):
    """A random model is forced to call; the model's template has no place for tools."""
    openai = pytest.importorskip("openai")
    pytest.importorskip("llguidance")
    tokenizer.chat_templates["default"] = PLAIN
    settings = EngineConfig(max_sequence_length=CONTEXT, max_running=2)
    registry, policy = CollectorRegistry(), RequestPolicy(tool_call_parser="brackets")
    asked = {
        "model": "tiny", "messages": HI, "tools": [TOOL], "tool_choice": "required",
        "parallel_tool_calls": False, "logit_bias": COMPACT, "seed": 1, "max_tokens": 40,
    }  # fmt: skip
    with Engine(model, params, tokenizer, settings) as engine:
        parts = openai_parts(registry, Generator("tiny", engine, policy))
        with (
            serving(parts, registry) as server,
            openai.OpenAI(base_url=server.url + "/v1", api_key="x", max_retries=0) as client,
        ):
            answer = client.chat.completions.create(**asked)
            streamed = list(client.chat.completions.create(**asked, stream=True))
    assert answer.choices[0].finish_reason == "tool_calls"
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "f"
    assert json.loads(call.function.arguments) in ({"x": 1}, {"x": 2})
    told = {"role": "system", "content": "write [[NAME ARGUMENTS]]: f"}
    assert answer.usage.prompt_tokens == len(render_chat(tokenizer, [told, *HI]))
    pieces = [piece for chunk in streamed for piece in chunk.choices[0].delta.tool_calls or ()]
    assert "".join(piece.function.arguments for piece in pieces) == call.function.arguments
