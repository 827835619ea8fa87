"""Stop texts, however the text is cut."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from ziggurat.serve.llm.stop import StopMatcher

LETTERS = "ab"


@settings(max_examples=400, deadline=None)
@given(
    pieces=st.lists(st.text(LETTERS, max_size=4), max_size=20),
    stops=st.lists(st.text(LETTERS, min_size=1, max_size=5), max_size=3),
)
@example(pieces=["a", "a", "b"], stops=["aab"])
@example(pieces=["aab", "aab"], stops=["abaabb"])
def test_text_up_to_the_first_stop_and_nothing_of_it(pieces, stops):
    matcher, out, seen = StopMatcher(stops), "", ""
    for piece in pieces:
        seen += piece
        out += matcher.push(piece)
        starts = [seen.find(stop) for stop in stops if stop in seen]
        assert matcher.stopped == bool(starts)
        if starts:
            assert out == seen[: min(starts)]
            assert matcher.push("more") == ""
            return
        held = seen[len(out) :]
        assert seen.startswith(out)
        assert not held or any(stop.startswith(held) for stop in stops), "held back for nothing"
        assert not any(
            seen.endswith(stop[:size]) and len(held) < size
            for stop in stops
            for size in range(1, len(stop))
        ), "let out what may begin a stop text"
    assert out + matcher.flush() == seen
