"""Rollouts: their draws depend on weights and keys alone, and their log-probabilities are the
model's."""

import dataclasses

import jax
import numpy as np
import pytest

from ziggurat.core.errors import ConfigError
from ziggurat.models import LanguageModel
from ziggurat.nn.rope import DynamicScaling, RopeConfig
from ziggurat.post.rl.rollouts import Sampler, draw_seed

PROMPTS = [list(b"1 + 2 ="), list(b"a longer prompt, that does not fit"), list(b"1 + 3 =")]
GROUP, TOKENS = 4, 9
TEMPERATURE = 0.7


def drawn(sampler, params, version=1, prompts=PROMPTS, step=3, temperature=TEMPERATURE):
    seeds = [draw_seed(0, step, place) for place in range(len(prompts))]
    options = dict(group=GROUP, seeds=seeds, temperature=temperature, max_tokens=TOKENS)
    groups = sampler.draw(params, version, prompts, **options)
    return [[(c.tokens, c.log_probs, c.versions) for c in group] for group in groups]


@pytest.mark.slow
def test_draws_depend_on_weights_and_keys_alone(sampler, weights):
    other = drawn(sampler, weights[1], version=2)
    first = drawn(sampler, weights[0])
    assert other != first
    assert drawn(sampler, weights[0], step=4) != first
    assert drawn(sampler, weights[0]) == first  # bit for bit, whatever came between
    compiled = set(sampler.engine._programs._made)
    assert drawn(sampler, weights[1], version=2) == other  # no trace of the weights before
    assert set(sampler.engine._programs._made) == compiled, "new weights compile nothing"
    tokens = [tuple(completion[0]) for group in first for completion in group]
    assert len(set(tokens)) == len(PROMPTS) * GROUP
    assert {v for group in other for c in group for v in c[2]} == {2}
    alone = drawn(sampler, weights[0], prompts=PROMPTS[:1])
    assert [c[0] for c in alone[0]] == [c[0] for c in first[0]]  # whoever else is served


def test_log_probabilities_are_those_of_the_model_at_the_temperature(sampler, model, weights):
    groups = drawn(sampler, weights[0])
    rows = [(p, c) for p, group in zip(PROMPTS, groups) for c in group]
    tokens = np.zeros((len(rows), 48), np.int32)
    for row, (prompt, (completion, _, _)) in enumerate(rows):
        ids = [*prompt, *completion]
        tokens[row, : len(ids)] = ids
    logits = jax.jit(model.logits)(weights[0], tokens)
    scores = np.asarray(jax.nn.log_softmax(logits / TEMPERATURE))
    for row, (prompt, (completion, log_probs, _)) in enumerate(rows):
        places = np.arange(len(prompt) - 1, len(prompt) + len(completion) - 1)
        # float32; the engine reads its cache by blocks, in another order of sums
        np.testing.assert_allclose(log_probs, scores[row, places, completion], atol=1e-4)


def test_a_prompt_without_room_is_refused_and_nothing_hangs(sampler, weights):
    from ziggurat.serve.errors import ContextTooLong

    with pytest.raises(ContextTooLong):
        drawn(sampler, weights[0], prompts=[list(b"x" * 47)])
    assert drawn(sampler, weights[0], prompts=[]) == []


def test_a_model_that_rotates_otherwise_in_training_is_refused(model, weights, tokenizer):
    def sampler_of(**scaling):
        rope = RopeConfig(scaling=DynamicScaling(factor=2.0, original_length=16, **scaling))
        other = LanguageModel.build(dataclasses.replace(model.config, rope=rope))
        return Sampler(other, weights[0], tokenizer, longest=48, running=2)

    with pytest.raises(ConfigError, match="context_length: found none"):
        sampler_of()
    sampler_of(context_length=48).close()
