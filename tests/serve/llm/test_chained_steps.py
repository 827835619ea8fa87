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
def chained(engine, monkeypatch):
    """Every step that was begun ahead: how many sequences it had."""
    seen, runner = [], engine._runner
    real = runner.chain_step

    def chain_step(step, seqs):
        seen.append(len(seqs))
        return real(step, seqs)

    monkeypatch.setattr(runner, "chain_step", chain_step)
    return seen


def ending_anywhere(count, seed):
    """Requests of which nobody knows when they end: one id in sixteen stops them."""
    rng = np.random.default_rng(seed)
    for number, prompt in enumerate(prompts(count, seed, 30)):
        ends = tuple(rng.choice(257, 16, replace=False).tolist())
        yield prompt, SamplingParams(seed=number, max_tokens=40, stop_token_ids=ends)


@pytest.mark.slow
def test_lanes_that_end_unforeseen_leave_the_others_their_tokens(engine, chained, monkeypatch):
    """Twelve blocks for four sequences: what one gives back is another's at the next step, and full
    blocks are found again by the second round's prompts."""
    asked = list(ending_anywhere(24, 11))
    ahead = together(engine, asked)
    assert len(chained) > 40
    assert settled(engine).blocks_free == 12
    again = together(engine, asked)
    assert settled(engine).prefix_hits > 0
    count = len(chained)
    monkeypatch.setattr(engine._runner, "can_chain", lambda seq: False)
    engine._kv_cache.reset_prefix_cache()
    assert together(engine, asked) == ahead == again
    assert len(chained) == count
    assert len({len(tokens) for (tokens,) in ahead}) > 5


@pytest.mark.slow
def test_one_alone_runs_ahead_to_its_last_token_and_not_beyond(engine, chained):
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    ((tokens,),) = together(engine, [([1, 2, 3], params)])
    assert len(tokens) == 20
    assert chained == [1] * 18  # the prompt's step draws one, the first decoding step another


@pytest.mark.parametrize(
    "asks",
    [{"logprobs": 1}, {"presence_penalty": 0.5}, {"min_tokens": 20}, {"logit_bias": ((5, 1.0),)}],
)
def test_what_needs_the_token_first_waits_for_it(engine, chained, asks):
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, **asks)
    together(engine, [([1, 2, 3], params)])
    assert chained == []


def test_a_request_cancelled_half_way_is_gone_and_nobody_else(engine, chained):
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
    assert chained


def test_cancelled_between_two_steps_nothing_counts_as_read_that_is_not_there(engine, monkeypatch):
    runner, kv_cache, left, seen = engine._runner, engine._kv_cache, [], []
    chain_step, advance = runner.chain_step, kv_cache.advance

    def cancel_then(step, seqs):
        seen.append(1)
        if len(seen) == 5:
            seqs[0].request.cancel()
        return chain_step(step, seqs)

    def noting(seq, count):
        advance(seq, count)
        left.append(seq.pending)

    monkeypatch.setattr(runner, "chain_step", cancel_then)
    monkeypatch.setattr(kv_cache, "advance", noting)
    together(engine, [([4, 5, 6], SamplingParams(temperature=0, max_tokens=40, ignore_eos=True))])
    assert min(left) == 0
    assert settled(engine).blocks_free == 12
