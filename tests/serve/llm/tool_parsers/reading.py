"""Reads a model's text through a tool-call parser, for the tests of each."""

import itertools

from ziggurat.serve.llm.tool_parsers import TextDelta


def read(stream, pieces):
    """Texts between calls, and each call as a list of name and arguments."""
    found = []
    for delta in [d for piece in pieces for d in stream.push(piece)] + stream.finish():
        if isinstance(delta, TextDelta):
            assert delta.text
            if found and isinstance(found[-1], str):
                found[-1] += delta.text
            else:
                found.append(delta.text)
        elif delta.name is not None:
            assert delta.index == sum(not isinstance(entry, str) for entry in found)
            found.append([delta.name, delta.arguments])
        else:
            found[-1][1] += delta.arguments
    assert stream.calls == sum(not isinstance(entry, str) for entry in found)
    return found


def check(make, text, expected):
    """The text is read so whole, letter by letter, and in any three pieces of some sizes."""
    assert read(make(), [text]) == expected
    assert read(make(), list(text)) == expected
    for a, b in itertools.combinations(range(0, len(text) + 1, 17), 2):
        assert read(make(), [text[:a], text[a:b], text[b:]]) == expected
