"""Steps that are under way before the tokens of the one before are known: same tokens, nothing
lost, and no more of them than there is use for."""

import dataclasses

import numpy as np
import pytest
from tests.serve.test_traffic import SMALL, prompts, settled, together

from ziggurat.serve.llm.engine import Engine
from ziggurat.serve.llm.sampling import SamplingParams


@pytest.fixture(scope="module")
def engine(model, params, tokenizer, tmp_path_factory):
    directory = str(tmp_path_factory.mktemp("programs"))
    with Engine(model, params, tokenizer, dataclasses.replace(SMALL, compile_cache=directory)) as e:
        yield e


@pytest.fixture
def follows(engine, monkeypatch):
    """Every step that was begun ahead: how many lanes it had."""
    seen, runner = [], engine._runner
    real = runner.follow

    def follow(flight, lanes):
        seen.append(len(lanes))
        return real(flight, lanes)

    monkeypatch.setattr(runner, "follow", follow)
    return seen


def ending_anywhere(count, seed):
    """Requests of which nobody knows when they end: one id in sixteen stops them."""
    rng = np.random.default_rng(seed)
    for number, prompt in enumerate(prompts(count, seed, 30)):
        ends = tuple(rng.choice(257, 16, replace=False).tolist())
        yield prompt, SamplingParams(seed=number, max_tokens=40, stop_token_ids=ends)


def test_lanes_that_end_unforeseen_leave_the_others_their_tokens(engine, follows, monkeypatch):
    """Twelve blocks for four lanes: what one gives back is another's at the next step, and full
    blocks are found again by the second round's prompts."""
    asked = list(ending_anywhere(24, 11))
    ahead = together(engine, asked)
    assert len(follows) > 40
    assert settled(engine).blocks_free == 12
    again = together(engine, asked)
    assert settled(engine).prefix_hits > 0
    count = len(follows)
    monkeypatch.setattr(engine._runner, "can_follow", lambda lane: False)
    engine._pages.forget_prefixes()
    assert together(engine, asked) == ahead == again
    assert len(follows) == count
    assert len({len(tokens) for (tokens,) in ahead}) > 5


def test_one_alone_runs_ahead_to_its_last_token_and_not_beyond(engine, follows):
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    ((tokens,),) = together(engine, [([1, 2, 3], params)])
    assert len(tokens) == 20
    assert follows == [1] * 18  # the prompt's step draws one, the first decoding step another


@pytest.mark.parametrize(
    "asks",
    [{"logprobs": 1}, {"presence_penalty": 0.5}, {"min_tokens": 20}, {"logit_bias": ((5, 1.0),)}],
)
def test_what_needs_the_token_first_waits_for_it(engine, follows, asks):
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, **asks)
    together(engine, [([1, 2, 3], params)])
    assert follows == []


def test_a_request_cancelled_half_way_is_gone_and_nobody_else(engine, follows):
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    (alone,) = together(engine, [([9, 8, 7], params)])
    heard = []

    def listen(event):
        heard.append(event)
        if len(heard) == 6:
            first.cancel()

    first = engine.submit([1, 2, 3], params, listen)
    (tokens,) = together(engine, [([9, 8, 7], params)])
    assert tokens == alone
    assert settled(engine).blocks_free == 12
    assert len([event for event in heard if event is not None]) <= 7
    assert follows


def test_cancelled_between_two_steps_nothing_counts_as_read_that_is_not_there(engine, monkeypatch):
    runner, pages, left, seen = engine._runner, engine._pages, [], []
    follow, advance = runner.follow, pages.advance

    def cancel_then(flight, lanes):
        seen.append(1)
        if len(seen) == 5:
            lanes[0].generation.cancel()
        return follow(flight, lanes)

    def noting(lane, count):
        advance(lane, count)
        left.append(lane.pending)

    monkeypatch.setattr(runner, "follow", cancel_then)
    monkeypatch.setattr(pages, "advance", noting)
    together(engine, [([4, 5, 6], SamplingParams(temperature=0, max_tokens=40, ignore_eos=True))])
    assert min(left) == 0
    assert settled(engine).blocks_free == 12
