"""Calls of Qwen3-Coder, with values by their schemas, and texts that look like them."""

import pytest
from tests.serve.llm.tool_parsers.reading import check, read

from ziggurat.serve.llm.tool_parsers.qwen3_coder import PARSER
from ziggurat.serve.llm.tools import Function, Tool, ToolUse

TYPES = {
    "city": {"type": "string"},
    "days": {"type": "integer"},
    "tags": {"type": "array"},
    "on": {"type": "boolean"},
}
WEATHER = Tool("function", Function("weather", parameters={"properties": TYPES}))
USE = ToolUse((WEATHER,))


def call(*parameters, name="weather"):
    inner = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in parameters)
    return f"<tool_call>\n<function={name}>\n{inner}</function>\n</tool_call>"


PARIS, READ = call(("city", "Paris")), ["weather", '{"city": "Paris"}']
CASES = {
    PARIS: [READ],
    f"I look.\n\n{PARIS}\n{PARIS}": ["I look.", READ, READ],
    call(("city", "12"), ("days", "3"), ("tags", '["a", 1]'), ("on", "True")): [
        ["weather", '{"city": "12", "days": 3, "tags": ["a", 1], "on": true}']
    ],
    call(("city", "a\n<b>\n c")): [["weather", '{"city": "a\\n<b>\\n c"}']],
    call(): [["weather", "{}"]],
    call(("days", "three")): [["weather", '{"days": "three"}']],
    call(("x", "1"), name="other"): [["other", '{"x": 1}']],
    # Damaged, or none.
    PARIS.removeprefix("<tool_call>\n"): [READ],
    PARIS.removesuffix("</tool_call>") + "Done.": [READ, "Done."],
    PARIS.replace("</parameter>\n", ""): [READ],
    PARIS.removesuffix("</function>\n</tool_call>"): [READ],
    call(("city", "Paris"), ("days", "3"))[:75]: [READ],
    "<tool_call>\n<function=weather>\n<para": [["weather", "{}"]],
    "<tool_call>\n<func": ["<tool_call>\n<func"],
    "a <tool_call>no call</tool_call>": ["a<tool_call>no call</tool_call>"],
    "x < y <tool": ["x < y <tool"],
    "": [],
}


@pytest.mark.parametrize("text", CASES)
def test_what_is_found(text):
    check(lambda: PARSER.reader(USE), text, CASES[text])


def test_without_schemas_json_is_json():
    found = read(PARSER.stream(), [call(("city", "Paris"), ("days", "3"))])
    assert found == [["weather", '{"city": "Paris", "days": 3}']]
