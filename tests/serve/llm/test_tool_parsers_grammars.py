"""Grammars of every form of calls: what they let through is read back, and fits the schemas."""

import json
import random

import jsonschema
import pytest
from tests.serve.conftest import allowed_ids
from tests.serve.llm.tool_parsers.reading import read

from ziggurat.data.tokenizers import byte_level
from ziggurat.serve.llm.grammar import Grammars
from ziggurat.serve.llm.render import render_chat
from ziggurat.serve.llm.structured import Form
from ziggurat.serve.llm.tool_parsers import TOOL_CALL_PARSERS, parser_for
from ziggurat.serve.llm.tools import Function, Tool, ToolUse

pytest.importorskip("llguidance")
VOCAB = 257
PARAMETERS = {
    "type": "object",
    "properties": {
        "a": {"enum": [1, True, None, "x"]},
        "b": {"type": "string", "enum": ["Oslo", "Rome"]},
        "c": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2},
    },
    "required": ["b"],
    "additionalProperties": False,
}
TOOLS = (Tool("function", Function("f", parameters=PARAMETERS)), Tool("function", Function("g")))
NAMES = ["hermes", "llama3_json", "mistral", "pythonic", "qwen3_coder"]
SPACE = {ord(character) for character in " \t\r\n"}


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level({"eos_token": "<|end|>"})


@pytest.fixture(scope="module")
def grammars(tokenizer):
    return Grammars(tokenizer, VOCAB)


def generated(grammars, form, seed, most=400):
    """A text that a grammar lets through, drawn at random, with little white space."""
    matcher, draw, text = grammars.compile(form).result()(), random.Random(seed), b""
    while not matcher.finished and len(text) < most:
        allowed = [i for i in allowed_ids(matcher.mask()) if i < 256]
        if not allowed:
            break
        few = [i for i in allowed if i not in SPACE] or allowed
        token = draw.choice(few)
        matcher.accept(token)
        text += bytes([token])
    return text.decode()


def test_all_forms_are_here():
    assert list(TOOL_CALL_PARSERS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_forced_calls_are_read_back_and_fit(name, tokenizer, grammars):
    parser, use = TOOL_CALL_PARSERS[name], ToolUse(TOOLS, forced=True, parallel=False)
    form = parser.grammar(use, tokenizer)
    seen = set()
    for seed in range(12):
        text = generated(grammars, form, seed)
        ((called, arguments),) = read(parser.reader(use), list(text))
        seen.add(called)
        schema = PARAMETERS if called == "f" else {"maxProperties": 0}
        jsonschema.validate(json.loads(arguments), schema)
    assert seen == {"f", "g"}


@pytest.mark.parametrize("name", NAMES)
def test_free_answers_may_call_or_not(name, tokenizer, grammars):
    parser, use = TOOL_CALL_PARSERS[name], ToolUse(TOOLS[1:], parallel=False)
    form = parser.grammar(use, tokenizer)
    calls = parser.grammar(ToolUse(TOOLS[1:], forced=True, parallel=False), tokenizer)
    for text in ("Well.", generated(grammars, calls, 1)):
        matcher = grammars.compile(form).result()()
        for byte in text.encode():
            assert byte in allowed_ids(matcher.mask())
            matcher.accept(byte)
        assert matcher.finished or 256 in allowed_ids(matcher.mask())
    answer = Form("json", {"type": "object", "properties": {"ok": {"type": "boolean"}}}, "x")
    if name == "llama3_json":
        with pytest.raises(ValueError, match="begins as calls of this form do"):
            parser.grammar(use, tokenizer, answer)
        return
    matcher = grammars.compile(parser.grammar(use, tokenizer, answer)).result()()
    for byte in b'{"ok":true}':
        matcher.accept(byte)


def test_what_cannot_be_written_one_by_one_is_refused(tokenizer):
    for parameters in (
        {"type": "object", "anyOf": [{}, {}]},
        {"type": "object", "additionalProperties": {"type": "integer"}},
    ):
        use = ToolUse((Tool("function", Function("f", parameters=parameters)),), forced=True)
        for name in ("pythonic", "qwen3_coder"):
            with pytest.raises(ValueError, match="written one by one"):
                TOOL_CALL_PARSERS[name].grammar(use, tokenizer)
    ruled = {"type": "object", "properties": {"x": {"type": "string", "pattern": "a"}}}
    use = ToolUse((Tool("function", Function("f", parameters=ruled)),), forced=True)
    with pytest.raises(ValueError, match="x: pattern for a text"):
        TOOL_CALL_PARSERS["qwen3_coder"].grammar(use, tokenizer)


@pytest.mark.parametrize(
    ("shown", "name"),
    [
        ('Respond in the format {"name": function name, "parameters": dictionary}', "llama3_json"),
        ("[TOOL_CALLS]", "mistral"),
        ("[func_name1(params_name1=params_value1), func_name2(params)]", "pythonic"),
        ("<tool_call>\n<function=example_function_name>", "qwen3_coder"),
        ("<tool_call>", "hermes"),
    ],
)
def test_the_template_chooses(shown, name):
    made = byte_level()
    made.chat_templates["default"] = "{{ tools }}{# " + shown + " #}"
    assert parser_for(made) is TOOL_CALL_PARSERS[name]


TALK = [
    {"role": "user", "content": "u"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "f", "arguments": {"b": "Rome", "a": True}}}],
    },
    {"role": "tool", "content": "r"},
]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_told_of_calls_is_read_back(name, tokenizer):
    """A template without a place for tools gets earlier calls in the form that is read."""
    parser = TOOL_CALL_PARSERS[name]
    told = parser.explain(TALK, [{"type": "function", "function": {"name": "f"}}])
    assert [message["role"] for message in told] == ["system", "user", "assistant", "user"]
    assert '"name": "f"' in told[0]["content"]
    ((called, arguments),) = read(parser.reader(ToolUse(TOOLS)), [told[2]["content"]])
    assert (called, json.loads(arguments)) == ("f", {"b": "Rome", "a": True})
    plain = byte_level()
    plain.chat_templates["default"] = "{% for m in messages %}{{ m.content }}{% endfor %}"
    ids = render_chat(plain, TALK, tool_call_parser=name)
    assert plain.decode(ids) == "".join(message["content"] for message in told[1:])
