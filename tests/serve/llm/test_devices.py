"""Engines on meshes of two to eight devices: the tokens and logits of one device, and meshes that do
not fit."""

import functools

import jax
import numpy as np
import pytest
from tests.models.family_cases import ours
from tests.serve.llm.test_layer_states import MixedConfig

from ziggurat import mesh
from ziggurat.core.errors import ConfigError, ShardingError
from ziggurat.models import LanguageModel, LlamaConfig
from ziggurat.serve.llm.devices import check_divides, serving_layout, sizes_of
from ziggurat.serve.llm.engine import Engine, EngineConfig
from ziggurat.serve.llm.sampling import SamplingParams

SETTINGS = EngineConfig(
    max_sequence_length=32, max_running=1, max_prefill_chunk=16, max_batched_tokens=17, block_size=8
)
GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, logprobs=5)


@functools.cache
def dense(vocab=257, kv_heads=2):
    """Two key/value heads for eight query heads, and a vocabulary that divides over nothing."""
    sizes = {"d_model": 64, "n_layers": 2, "n_heads": 8, "n_kv_heads": kv_heads, "init_std": 0.2}
    model = LanguageModel.build(LlamaConfig(vocab_size=vocab, max_sequence_length=32, **sizes))
    return model, model.init(jax.random.key(0))


@functools.cache
def published(case):
    made = ours(case)
    return made.model, made.params


@functools.cache
def recurrent():
    """Gated delta nets and attention in turn, with fewer key heads than value heads."""
    model = LanguageModel.build(MixedConfig(stack="delta_net"))
    return model, model.init(jax.random.key(3))


MODELS = {
    "dense": dense,
    "experts": lambda: published("mixtral/plain"),
    "latent": lambda: published("deepseek/v2"),
    "mamba": lambda: published("granite_hybrid/experts"),
    "delta_net": recurrent,
}
"""Models by kind."""
MESHES = ("tensor=2", "tensor=4", "expert=2", "tensor=2,expert=2")


def answer(name, where, tokenizer):
    """Greedy tokens, and the log-probabilities of the five most likely at each."""
    model, params = MODELS[name]()
    prompt = np.random.default_rng(0).integers(0, 96, 20).tolist()
    layout = None if where is None else serving_layout(where)
    with Engine(model, params, tokenizer, SETTINGS, mesh=layout) as engine:
        events = list(engine.generate(prompt, GREEDY))
        weights, cache = engine._runner._weights, engine._runner._cache
    tops = [[each.logprob for each in one.top] for event in events for one in event.logprobs]
    return [event.token for event in events], np.array(tops), weights, cache


@functools.cache
def alone(name, tokenizer):
    return answer(name, None, tokenizer)[:2]


@pytest.mark.sweep
@pytest.mark.parametrize("where", MESHES)
@pytest.mark.parametrize("name", MODELS)
def test_a_mesh_gives_the_tokens_of_one_device(name, where, tokenizer):
    if "expert" in where and not MODELS[name]()[0].has_experts:
        with pytest.raises(ShardingError, match="a model without experts; expected 1"):
            answer(name, where, tokenizer)
        return
    expected, near = alone(name, tokenizer)
    tokens, tops, _, _ = answer(name, where, tokenizer)
    assert tokens == expected
    np.testing.assert_allclose(tops, near, atol=1e-5)
