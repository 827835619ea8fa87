"""Log-probabilities of prompts: those of one forward pass, however the prompt was computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ziggurat.serve.llm.engine import Engine, EngineConfig
from ziggurat.serve.llm.prompt_logprobs import prompt_log_probabilities
from ziggurat.serve.llm.sampling import SamplingParams

CLOSE = 2e-5
"""Of log-probabilities in float32 by programs that add up in another order."""


def asked(top=3, **more):
    return SamplingParams(temperature=0.0, max_tokens=2, prompt_logprobs=top, **more)


def prompts(*lengths):
    rng = np.random.default_rng(5)
    return [rng.integers(0, 256, length).tolist() for length in lengths]


def check(found, prompt, whole, top=3):
    """Compare with the logits of one forward pass."""
    scores = np.asarray(jax.nn.log_softmax(whole(prompt), axis=-1))[:-1]
    own = scores[np.arange(len(prompt) - 1), prompt[1:]]
    assert found.chosen.shape == (len(prompt) - 1,)
    np.testing.assert_allclose(found.chosen, own, atol=CLOSE)
    np.testing.assert_array_equal(found.ranks, (scores > own[:, None]).sum(1) + 1)
    if len(prompt) > 1:
        best = -np.sort(-scores, axis=-1)[:, :top]
        np.testing.assert_allclose(found.top, best, atol=CLOSE)
        np.testing.assert_array_equal(found.ids[:, 0], scores.argmax(-1))


@pytest.mark.parametrize("length", [1, 2, 17, 32, 33, 64, 65, 90])
def test_they_are_those_of_one_forward_pass(engine, whole, length):
    (prompt,) = prompts(length)
    for _ in range(2):  # the second finds its beginning in the prefix cache, and does not use it
        first, last = list(engine.submit(prompt, asked()))
        check(first.prompt_logprobs, prompt, whole)
        assert last.prompt_logprobs is None


def test_beside_others_that_ask_for_none_and_with_several_choices(engine, whole):
    some = prompts(40, 50, 60, 5, 6, 7)
    plain = SamplingParams(temperature=0.0, max_tokens=8)
    given = [(p, asked(n=3) if i % 2 else plain) for i, p in enumerate(some)]
    made = engine.submit_together(given, lambda place: None)
    for (prompt, params), request in zip(given, made):
        events = list(request)
        firsts = {event.choice: event for event in reversed(events)}
        for event in firsts.values():
            if params is plain:
                assert event.prompt_logprobs is None
            else:
                check(event.prompt_logprobs, prompt, whole)


@pytest.mark.slow
def test_prompts_that_lose_their_blocks_are_scored_once_and_whole(model, params, tokenizer, whole):
    settings = EngineConfig(
        max_sequence_length=96, max_prefill_chunk=16, max_running=4, cache_tokens=128
    )
    some = prompts(30, 31, 29, 28)
    with Engine(model, params, tokenizer, settings) as engine:
        more = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True, prompt_logprobs=3)
        made = engine.submit_together([(p, more) for p in some], lambda place: None)
        for prompt, request in zip(some, made):
            events = list(request)
            check(events[0].prompt_logprobs, prompt, whole)
        assert engine.statistics().preemptions > 0


def test_the_prefix_cache_is_written_but_not_read(model, params, tokenizer):
    settings = EngineConfig(max_sequence_length=96, max_prefill_chunk=32, max_running=2)
    (prompt,) = prompts(64)
    plain = SamplingParams(temperature=0.0, max_tokens=1)
    with Engine(model, params, tokenizer, settings) as engine:
        for _ in range(2):
            list(engine.submit(prompt, asked()))
            assert engine.statistics().prefix_hits == 0
        list(engine.submit(prompt, plain))
        assert engine.statistics().prefix_hits > 0


def test_programs_that_score_prompts_are_made_when_one_is_scored(model, params, tokenizer):
    settings = EngineConfig(max_sequence_length=96, max_prefill_chunk=32, max_running=2)
    with Engine(model, params, tokenizer, settings) as engine:
        names = []
        engine.warm_up(lambda name, done, every: names.append(name))
        assert names
        assert not [name for name in names if name.startswith("prompt logprobs")]


@pytest.mark.parametrize("count", [1, 16, 20])
def test_scores_of_parts_are_those_of_the_whole(count):
    rng = np.random.default_rng(0)
    table = jnp.asarray(rng.normal(size=(8, 30)), jnp.float32)
    hidden = jnp.asarray(rng.normal(size=(count, 8)), jnp.float32)
    tokens = jnp.asarray(rng.integers(0, 30, count), jnp.int32)
    chosen, ranks, top, ids = prompt_log_probabilities(lambda x: x @ table, hidden, tokens)
    scores = jax.nn.log_softmax(hidden @ table, axis=-1)
    own = scores[jnp.arange(count), tokens]
    np.testing.assert_allclose(chosen, own, atol=1e-6)
    np.testing.assert_array_equal(ranks, (scores > own[:, None]).sum(1) + 1)
    np.testing.assert_allclose(top, jax.lax.top_k(scores, 20)[0], atol=1e-6)
    assert ids.shape == (count, 20)
