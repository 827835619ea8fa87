"""Tool calls in text: read from pieces of any size, and explained to templates that know none."""

import itertools
import json

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.serve.llm.tool_parsers.reading import read

from ziggurat.data import HuggingFaceTokenizer
from ziggurat.data.tokenizers import byte_level
from ziggurat.serve.errors import RequestError
from ziggurat.serve.llm.render import render_chat
from ziggurat.serve.llm.tool_parsers import CallDelta
from ziggurat.serve.llm.tool_parsers.hermes import CallParser

CALL = (
    '<tool_call>\n{"name": "f", "arguments": {"x": {"y": [1, "}</tool_call>\\""]}}}\n</tool_call>'
)
ARGUMENTS = '{"x": {"y": [1, "}</tool_call>\\""]}}'
OTHER = '<tool_call>{"arguments": {"a": 1}, "name": "g"}</tool_call>'


def parse(pieces):
    """Text between calls, and the calls, from what a parser lets out."""
    return read(CallParser(), pieces)


CASES = {
    "plain text\n ": ["plain text\n "],
    "": [],
    CALL: [["f", ARGUMENTS]],
    f"\n\n{CALL}\n": [["f", ARGUMENTS]],
    f"Let me see.\n{CALL}\n{CALL}": ["Let me see.", ["f", ARGUMENTS], ["f", ARGUMENTS]],
    f"{CALL}\n Done. \n": [["f", ARGUMENTS], "Done. \n"],
    OTHER: [["g", '{"a": 1}']],
    OTHER + " and " + CALL: [["g", '{"a": 1}'], "and", ["f", ARGUMENTS]],
    '<tool_call>{"name": "g", "arguments": "{\\"a\\": 1}"}</tool_call>': [["g", '{"a": 1}']],
    '<tool_call>{"name": "g"}': [["g", "{}"]],  # cut before the closing tag
    '<tool_call>{"name": "g", "arguments": {}, "id": 3}\n</tool_call>.': [["g", "{}"], "."],
    '<tool_call>{"name": "g", "arguments": {"a": "b': [["g", '{"a": "b']],  # cut by length
    "a <tool_call>no call</tool_call> b": ["a<tool_call>no call</tool_call> b"],
    "a <tool_call>[1]": ["a<tool_call>[1]"],
    '<tool_call>{"name": 3, "arguments": {}}</tool_call>': [
        '<tool_call>{"name": 3, "arguments": {}}</tool_call>'
    ],
    "x < y <tool": ["x < y <tool"],
}


@pytest.mark.parametrize("text", CASES)
def test_what_is_found(text):
    assert parse([text]) == CASES[text]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(CASES)), st.lists(st.integers(0, 120), max_size=8))
def test_pieces_do_not_matter(text, cuts):
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    assert parse([text[a:b] for a, b in itertools.pairwise(places)]) == CASES[text]
    assert parse(list(text)) == CASES[text]


def test_arguments_come_as_they_are_written():
    parser = CallParser()
    deltas = [parser.push(character) for character in CALL]
    assert deltas[CALL.index('{"x"')] == [CallDelta(0, "f", ""), CallDelta(0, None, "{")]
    assert sum(map(len, deltas)) == 1 + len(ARGUMENTS)


PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
KNOWING = (
    "{% if tools %}{% for t in tools %}[{{ t.function.name }}]{% endfor %}<tool_call>{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}!{{ c.function.arguments.x }}{% endfor %}{% endfor %}"
)
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
TALK = [
    {"role": "user", "content": "u"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}],
    },
    {"role": "tool", "content": "r1"},
    {"role": "tool", "content": "r2"},
]


def rendered(template, tools=None, talk=TALK, tokenizer=None):
    tokenizer = tokenizer or byte_level()
    tokenizer.chat_templates["default"] = template
    return tokenizer.decode(render_chat(tokenizer, talk, tools), skip_special_tokens=False)


def test_a_template_that_takes_tools_gets_them():
    assert rendered(KNOWING, TOOLS) == "[f]<tool_call><user>u<assistant>!1<tool>r1<tool>r2"
    assert rendered(KNOWING) == "<user>u<assistant>!1<tool>r1<tool>r2"


def test_another_template_gets_them_as_text():
    text = rendered(PLAIN, TOOLS)
    head, _, rest = text.partition("<user>")
    assert head.startswith("<system>You may call functions")
    assert json.dumps(TOOLS[0]) in head
    assert "<tool_call>" in head
    call = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
    results = "".join(f"<tool_response>\n{r}\n</tool_response>\n" for r in ("r1", "r2")).strip()
    assert rest == f"u<assistant>{call}<user>{results}<assistant>"
    assert rendered(PLAIN) == "<user>" + rest
    told = rendered(PLAIN, TOOLS, [{"role": "system", "content": "S"}, *TALK])
    assert told.startswith("<system>S\n\nYou may call functions")


def test_a_template_with_another_form_of_calls_is_refused():
    with pytest.raises(RequestError, match="found a chat template that asks for calls in a form"):
        rendered("{{ tools }}" + PLAIN, TOOLS)
    assert rendered("{{ tools }}" + PLAIN, None, TALK[:1]) == "None<user>u<assistant>"


def test_a_tag_that_text_does_not_show_is_refused():
    tokenizer = byte_level()
    tag = tokenizers.AddedToken("<tool_call>", special=True, normalized=False)
    tokenizer.backend.add_tokens([tag])
    hidden = HuggingFaceTokenizer(tokenizer.backend, {"eos_token": "<|endoftext|>"})
    with pytest.raises(RequestError, match="<tool_call> as a special token"):
        rendered(PLAIN, TOOLS, tokenizer=hidden)


def test_variables_of_a_template():
    tokenizer = byte_level()
    tokenizer.chat_templates["default"] = "{% if think %}T{% endif %}" + PLAIN
    talk = [{"role": "user", "content": "u"}]
    ids = render_chat(tokenizer, talk, variables={"think": True})
    assert tokenizer.decode(ids) == "T<user>u<assistant>"
    with pytest.raises(RequestError, match="chat_template_kwargs: found messages"):
        render_chat(tokenizer, talk, variables={"messages": []})
