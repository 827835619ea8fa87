"""Calls of Mistral's models in both forms, and texts that look like them."""

import re

import pytest
from tests.serve.llm.tool_parsers.reading import check

from ziggurat.serve.llm.tool_parsers.mistral import PARSER

ITEM = '{"name": "get_weather", "arguments": {"city": "]}, Paris"}}'
READ = ["get_weather", '{"city": "]}, Paris"}']
NAMED = 'get_weather[ARGS]{"city": "]}, Paris"}'
CASES = {
    f"[TOOL_CALLS] [{ITEM}]": [READ],
    f"[TOOL_CALLS][{ITEM}, {ITEM}]\n": [READ, READ],
    f"[TOOL_CALLS] {ITEM}": [READ],
    '[TOOL_CALLS][{"name": "f", "arguments": {}, "id": "a}bcdefgh"}]': [["f", "{}"]],
    '[TOOL_CALLS][{"arguments": {"x": 1}, "name": "f"}]': [["f", '{"x": 1}']],
    f"Let me see. [TOOL_CALLS]{NAMED}": ["Let me see.", READ],
    f"[TOOL_CALLS]{NAMED}[TOOL_CALLS]{NAMED}": [READ, READ],
    '[TOOL_CALLS]f{"x": 1}': [["f", '{"x": 1}']],
    '[TOOL_CALLS]f[CALL_ID]abc123def[ARGS]{"x": 1} ok': [["f", '{"x": 1}'], "ok"],
    # Damaged, or none.
    '[TOOL_CALLS] [{"name": "f", "arguments": {"x": [1': [["f", '{"x": [1']],
    '[TOOL_CALLS] [{"name": "f"': ['[TOOL_CALLS][{"name": "f"'],
    "[TOOL_CALLS] [{'name': 'f'}]": ["[TOOL_CALLS][{'name': 'f'}]"],
    f"[TOOL_CALLS]no call[TOOL_CALLS]{NAMED}": ["[TOOL_CALLS]no call", READ],
    "[TOOL_CALLS]": ["[TOOL_CALLS]"],
    f"{ITEM} [TOOL": [f"{ITEM} [TOOL"],
    "": [],
}


@pytest.mark.parametrize("text", CASES)
def test_what_is_found(text):
    check(PARSER.stream, text, CASES[text])


def test_ids_are_those_of_mistrals_templates():
    made = {PARSER.new_id() for _ in range(50)}
    assert len(made) == 50
    assert all(re.fullmatch("[A-Za-z0-9]{9}", number) for number in made)
