"""Calls of Llama 3.1 to 3.3, and texts that look like them."""

import pytest
from tests.serve.llm.tool_parsers.reading import check

from ziggurat.serve.llm.tool_parsers.llama3_json import PARSER

CALL = '{"name": "get_weather", "parameters": {"city": "San Francisco, CA", "unit": "{"}}'
ARGUMENTS = '{"city": "San Francisco, CA", "unit": "{"}'
READ = ["get_weather", ARGUMENTS]
CASES = {
    CALL: [READ],
    f"\n<|python_tag|>{CALL}": [READ],
    f"{CALL}; {CALL}": [READ, READ],
    f"<|python_tag|>{CALL};<|python_tag|>{CALL}\n": [READ, READ],
    f"{CALL} Done.": [READ, "Done."],
    '{"type": "function", "name": "f", "parameters": {}}': [["f", "{}"]],
    '{"parameters": {"x": 1}, "name": "f"}': [["f", '{"x": 1}']],
    '{"name": "f", "arguments": {"x": 1}}': [["f", '{"x": 1}']],
    '{"name": "f", "parameters": "{\\"x\\": 1}"}': [["f", '{"x": 1}']],
    # Damaged, or none.
    '{"name": "f", "parameters": {"x": "a': [["f", '{"x": "a']],
    '{"name": "f", "param': ['{"name": "f", "param'],
    '{"answer": 42}\nend': ['{"answer": 42}\nend'],
    '{"name": "f", "parameters": [1]}': ['{"name": "f", "parameters": [1]}'],
    '{"name": "f\', "x"}': ['{"name": "f\', "x"}'],
    f"I call {CALL}": [f"I call {CALL}"],
    " <|pyth": [" <|pyth"],
    "": [],
}


@pytest.mark.parametrize("text", CASES)
def test_what_is_found(text):
    check(PARSER.stream, text, CASES[text])
