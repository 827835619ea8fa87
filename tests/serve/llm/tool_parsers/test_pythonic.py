"""Python calls of Llama 4 and others, and texts that look like them."""

import pytest
from tests.serve.llm.tool_parsers.reading import check

from ziggurat.serve.llm.tool_parsers.pythonic import PARSER

CASES = {
    '[get_weather(city="San Francisco", metric="celsius")]': [
        ["get_weather", '{"city": "San Francisco", "metric": "celsius"}']
    ],
    "[f(), my.tool-2(x=1)]": [["f", "{}"], ["my.tool-2", '{"x": 1}']],
    "[f(\n  a=[1, 'b', None], b={'c': (True, false)}, d=-1.5\n)]\n": [
        ["f", '{"a": [1, "b", null], "b": {"c": [true, false]}, "d": -1.5}']
    ],
    r"""[f(x="a)]\"'", y='it\'s é')]""": [["f", r"""{"x": "a)]\"'", "y": "it's é"}"""]],
    "<|python_start|>[f(x=1)]<|python_end|>": [["f", '{"x": 1}']],
    "[f(x=1)] Done.": [["f", '{"x": 1}'], "Done."],
    # Damaged, or none.
    "[f(x=1), g(y=": [["f", '{"x": 1}'], "g(y="],
    "[f(x=": ["[f(x="],
    "[f(1)]": ["[f(1)]"],
    "[f(**x)]": ["[f(**x)]"],
    "[f(x=g())]": ["[f(x=g())]"],
    "[f(x=1 2)] end": ["[f(x=1 2)] end"],
    "[1, 2]": ["[1, 2]"],
    "[see] the list": ["[see] the list"],
    "I call [f(x=1)]": ["I call [f(x=1)]"],
    "[]": ["[]"],
    "": [],
}


@pytest.mark.parametrize("text", CASES)
def test_what_is_found(text):
    check(PARSER.stream, text, CASES[text])
