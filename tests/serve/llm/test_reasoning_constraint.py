"""Forms that begin after the reasoning, token by token."""

import pytest
from tests.serve.conftest import allowed_ids

from ziggurat.data.tokenizers import byte_level
from ziggurat.serve.llm.grammar import Grammars
from ziggurat.serve.llm.reasoning_constraint import AfterReasoning
from ziggurat.serve.llm.reasoning_parsers import REASONING_PARSERS
from ziggurat.serve.llm.structured import Form

pytest.importorskip("llguidance")
VOCAB = 257
EVERY = set(range(VOCAB))


@pytest.fixture(scope="module")
def after():
    """Makes a constraint for a regex, behind reasoning."""
    tokenizer = byte_level({"eos_token": "<|end|>"})
    grammars = Grammars(tokenizer, VOCAB)

    def make(regex, opened):
        maker = grammars.compile(Form("regex", regex, "structured_outputs")).result()
        return AfterReasoning(maker, REASONING_PARSERS["qwen3"], opened, tokenizer, VOCAB)

    return make


def allowed(constraint):
    return {i for i in allowed_ids(constraint.mask()) if i < VOCAB}


def push(constraint, text):
    for byte in text.encode():
        assert byte in allowed(constraint)
        constraint.accept(byte)


def test_everything_but_an_end_may_be_thought(after):
    constraint = after("[ab]c", True)
    push(constraint, "Well \N{EURO SIGN}: <b </thin")
    assert EVERY - allowed(constraint) == {256}
    assert not constraint.finished
    push(constraint, "g</think>")
    assert allowed(constraint) == set(b"ab")
    push(constraint, "bc")
    assert constraint.finished


def test_the_form_may_come_at_once_or_after_a_tag(after):
    constraint = after("<t(a|hb)", None)
    assert allowed(constraint) == set(b"<")
    push(constraint, "<t")
    assert allowed(constraint) == set(b"ah")
    push(constraint, "h")
    assert allowed(constraint) == set(b"ib")
    push(constraint, "ink>")
    assert EVERY - allowed(constraint) == {256}
    push(constraint, "</think><thb")
    assert constraint.finished
    constraint = after("<t(a|hb)", None)
    push(constraint, "<ta")
    assert constraint.finished


def test_behind_a_closed_prompt_it_is_the_form_itself(after):
    constraint = after("x", False)
    assert allowed(constraint) == set(b"x")
    push(constraint, "x")
    assert constraint.finished
