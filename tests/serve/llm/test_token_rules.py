"""Tokens that may come, stop texts that are shown, and special tokens in the text."""

import numpy as np
import pytest
from tests.serve.conftest import allowed_ids

from ziggurat.serve.llm.output_text import OutputText
from ziggurat.serve.llm.sampling import SamplingParams
from ziggurat.serve.llm.token_rules import TokenRules, spellings

PROMPT = [100, 101, 102, 103]


def tokens(engine, **fields):
    params = SamplingParams(**{"max_tokens": 24, "ignore_eos": True, "seed": 3, **fields})
    return [event.token for event in engine.submit(PROMPT, params)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_only_allowed_tokens_come(engine, temperature):
    allowed = (7, 40, 200)
    found = tokens(engine, temperature=temperature, allowed_token_ids=allowed)
    assert set(found) <= set(allowed)
    assert len(found) == 24


def test_a_bad_word_is_not_completed_and_nothing_else_changes(engine, tokenizer):
    free = tokens(engine, temperature=0.0)
    text = tokenizer.decode(free, skip_special_tokens=False)
    place = next(i for i in range(4, 12) if all(32 < ord(c) < 127 for c in text[i : i + 2]))
    word = text[place : place + 2]
    found = tokens(engine, temperature=0.0, bad_words=(word,))
    assert word not in tokenizer.decode(found, skip_special_tokens=False)
    first = tokenizer.decode(free, skip_special_tokens=False).find(word)
    assert found[: first + 1] == free[: first + 1]


def test_masks_follow_the_tokens_that_came(tokenizer):
    params = SamplingParams(allowed_token_ids=(97, 98, 99), bad_words=("ab",))
    rules = TokenRules(params, tokenizer, 257)
    assert allowed_ids(rules.mask([]))[:3] == [97, 98, 99]
    assert [i for i in allowed_ids(rules.mask([97])) if i < 257] == [97, 99]
    assert [i for i in allowed_ids(rules.mask([97, 99])) if i < 257] == [97, 98, 99]
    assert TokenRules.of(SamplingParams(), tokenizer, 257) is None


def test_a_word_of_one_token_never_comes(engine):
    assert 101 not in tokens(engine, allowed_token_ids=(101, 102), bad_words=("e",))


def test_words_are_spelt_as_vllm_spells_them(tokenizer):
    # A byte tokenizer spells a space as a token of its own: only the word itself is forbidden.
    assert spellings(tokenizer, "ab") == [[97, 98]]
    assert spellings(tokenizer, " ab") == [[97, 98]]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "one "),
        ({"include_stop_str_in_output": True}, "one END"),
    ],
)
def test_a_stop_text_is_shown_if_asked_for(tokenizer, fields, said):
    output = OutputText(tokenizer, SamplingParams(stop=("END",), **fields), 50, 0)
    events = [output.push(token) for token in b"one END" if output.finish_reason is None]
    assert "".join(event.text for event in events) == said
    assert events[-1].finish_reason == "stop"
    assert [event.stop_text for event in events] == [None] * (len(events) - 1) + ["END"]


def test_the_text_of_a_stop_id_is_shown_if_asked_for(tokenizer):
    for shown, said in ((False, "a"), (True, "ab")):
        params = SamplingParams(stop_token_ids=(98,), include_stop_str_in_output=shown)
        output = OutputText(tokenizer, params, 50, 0)
        assert "".join(output.push(token).text for token in (97, 98)) == said


def test_special_tokens_are_shown_if_asked_for(tokenizer):
    (end,) = tokenizer.eos_ids
    for skipped, said in ((True, "ab"), (False, "a<|end|>b")):
        params = SamplingParams(ignore_eos=True, skip_special_tokens=skipped)
        output = OutputText(tokenizer, params, 3, 0)
        assert "".join(output.push(token).text for token in (97, end, 98)) == said


def test_unknown_ids_are_refused(engine):
    from ziggurat.serve.errors import RequestError

    with pytest.raises(RequestError, match="allowed_token_ids: found 257"):
        engine.submit(PROMPT, SamplingParams(allowed_token_ids=(3, 257)))
    assert np.all(np.array(tokens(engine, allowed_token_ids=(256,))) == 256)
