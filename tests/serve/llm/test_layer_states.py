"""The engine over states of every kind: recurrent layers, rounded keys and values, a mesh."""

import dataclasses

import jax
import numpy as np
import pytest
from tests.nn.test_recurrent_stacks import STACKS

from ziggurat import mesh
from ziggurat.core.errors import ShardingError
from ziggurat.kernels.key_values import ROUNDED
from ziggurat.models import LanguageModel, LlamaConfig
from ziggurat.nn import DecoderConfig, RecurrentSpec
from ziggurat.nn.rope import LongRopeScaling, RopeConfig
from ziggurat.serve.llm.engine import Engine, EngineConfig
from ziggurat.serve.llm.sampling import SamplingParams

CONTEXT = 96
SETTINGS = EngineConfig(max_sequence_length=CONTEXT, max_prefill_chunk=16, max_running=4)
ROUNDINGS = {"int8": 0.05, "fp8_e4m3": 0.2, "fp8_e5m2": 0.5}
"""Tolerance of a log-probability, three times what these prompts show. Int8 is off by a part in 254
of each head's largest channel at most; a float8 channel by a part in 16 (e4m3, three bits of
mantissa) or in 8 (e5m2, two) of itself."""
TENSOR = mesh.build(mesh.MeshConfig(tensor=2), jax.devices()[:2])


@dataclasses.dataclass(frozen=True)
class MixedConfig:
    """A family of one: recurrent layers and attention in turn."""

    kind: str = "mixed"
    stack: str = "delta_net"
    vocab_size: int = 258  # even, for a mesh of two
    max_sequence_length: int = CONTEXT

    def decoder(self) -> DecoderConfig:
        return dataclasses.replace(STACKS[self.stack], vocab_size=258, tie_embeddings=False)


def prompts(*sizes):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, size).tolist() for size in sizes]


def together(engine, asked, count=12, **params):
    """Greedy tokens of several requests served at once, by request and choice."""
    wanted = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, **params)
    requests = [engine.submit(prompt, wanted) for prompt in asked]
    found = []
    for request in requests:
        events = list(request)
        choices = sorted({e.choice for e in events})
        found += [[e.token for e in events if e.choice == c] for c in choices]
    return found


@pytest.fixture(scope="module")
def dense():
    sizes = {"d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "init_std": 0.3}
    model = LanguageModel.build(LlamaConfig(vocab_size=258, max_sequence_length=256, **sizes))
    return model, model.init(jax.random.key(0))


@pytest.fixture(scope="module", params=STACKS)
def mixed(request):
    model = LanguageModel.build(MixedConfig(stack=request.param))
    return model, model.init(jax.random.key(3))


@pytest.fixture(scope="module")
def by_hand(mixed):
    model, params = mixed
    logits = jax.jit(model.logits)

    def tokens(prompt, count=12):
        made = list(prompt)
        for _ in range(count):
            row = np.zeros((1, CONTEXT), np.int32)
            row[0, : len(made)] = made
            made.append(int(np.asarray(logits(params, row))[0, len(made) - 1].argmax()))
        return made[len(prompt) :]

    return tokens


@pytest.mark.slow
def test_recurrent_layers_serve_beside_attention(mixed, by_hand, tokenizer):
    """Prompts in chunks, rows side by side, slots used again, sequences that lose their blocks."""
    asked = prompts(3, 40, 17, 5, 33, 16)
    with Engine(*mixed, tokenizer, dataclasses.replace(SETTINGS, cache_tokens=112)) as engine:
        found = together(engine, asked)
        again = together(engine, asked[:2], n=2)
        long = together(engine, prompts(14, 15, 13, 12), 32)
        statistics = engine.statistics()
    assert found == [by_hand(prompt) for prompt in asked]
    assert again == [by_hand(prompt) for prompt in asked[:2] for _ in range(2)]
    assert long == [by_hand(prompt, 32) for prompt in prompts(14, 15, 13, 12)]
    assert statistics.prefix_hits == 0, "blocks alone are not such a sequence's state"
    assert statistics.preemptions > 0


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "close"), ROUNDINGS.items())
def test_a_rounded_cache_agrees_to_its_rounding(dense, tokenizer, kind, close):
    """The largest difference of the most likely token's log-probability over these prompts."""
    asked = prompts(3, 40, 17)
    wanted = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, logprobs=5)
    settings = dataclasses.replace(SETTINGS, kv_cache_dtype=kind)
    with Engine(*dense, tokenizer, settings) as rounded:
        (pool,) = rounded._runner._cache.pools
        near = [list(rounded.generate(prompt, wanted)) for prompt in asked]
    with Engine(*dense, tokenizer, SETTINGS) as engine:
        exact = [list(engine.generate(prompt, wanted)) for prompt in asked]
    assert pool.keys.dtype == pool.values.dtype == ROUNDED[kind]
    for a, b in zip(near, exact):
        assert a[0].token == b[0].token
        error = abs(a[0].logprobs[0].logprob - b[0].logprobs[0].logprob)
        assert 0 < error < close


def on_both(tree):
    """Leaves of two dimensions and more of which each device holds a half."""
    return [
        leaf.sharding.shard_shape(leaf.shape) != leaf.shape
        for leaf in jax.tree.leaves(tree)
        if leaf.ndim > 1
    ]


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["auto", "int8", "fp8_e4m3"])
def test_a_mesh_of_two_gives_the_tokens_of_one_device(dense, tokenizer, storage, tmp_path):
    asked = prompts(3, 40, 17, 5)
    settings = dataclasses.replace(SETTINGS, kv_cache_dtype=storage, compile_cache=str(tmp_path))
    with Engine(*dense, tokenizer, settings) as alone:
        expected = together(alone, asked)
    for start in ("compiled", "from disk"):
        with Engine(*dense, tokenizer, settings, mesh=TENSOR) as sharded:
            found = together(sharded, asked)
            shaped = together(sharded, asked[:1], presence_penalty=1.0)
            runner, loaded = sharded._runner, sharded._programs.loaded
        assert found == expected
        assert (loaded > 0) == (start == "from disk")
    with Engine(*dense, tokenizer, settings) as alone:
        assert together(alone, asked[:1], presence_penalty=1.0) == shaped
    assert all(on_both(runner._cache))
    assert len(runner._weights.layers) == 2
    for layer in runner._weights.layers:
        assert all(on_both(layer)), "every matrix is shared out"


@pytest.mark.slow
def test_recurrent_states_are_sharded_too(mixed, by_hand, tokenizer):
    with Engine(*mixed, tokenizer, SETTINGS, mesh=TENSOR) as engine:
        assert together(engine, prompts(5, 30)) == [by_hand(p) for p in prompts(5, 30)]
        cache = engine._runner._cache
    named = []
    for spec in dict.fromkeys(spec.layout for spec in cache.specs):
        recurrent = isinstance(spec, RecurrentSpec)
        named += [any(array.axes) for array in spec.arrays] if recurrent else [True, True]
    assert on_both(cache) == named, "every state with a logical axis is shared out"


def test_heads_that_do_not_divide_over_the_mesh_are_refused(dense, tokenizer):
    layout = mesh.build(mesh.MeshConfig(tensor=8), jax.devices())
    with pytest.raises(ShardingError, match="heads = 4; expected a multiple of 8"):
        Engine(*dense, tokenizer, SETTINGS, mesh=layout)


@pytest.mark.slow
@pytest.mark.parametrize("original", [CONTEXT // 2, CONTEXT])
def test_the_engines_longest_sequence_chooses_rotary_factors(dense, tokenizer, original):
    """Prompts in several chunks and of one token: all rotate by the engine's length."""
    _, params = dense
    scaling = LongRopeScaling(
        short_factor=(1.0, 1.1, 1.3, 1.7), long_factor=(1.0, 2.0, 5.0, 9.0),
        original_length=original,
    )  # fmt: skip

    def tokens(scaling):
        config = dataclasses.replace(dense[0].config, rope=RopeConfig(scaling=scaling))
        with Engine(LanguageModel.build(config), params, tokenizer, SETTINGS) as engine:
            return together(engine, prompts(40, 3))

    free = tokens(scaling)
    assert free == tokens(dataclasses.replace(scaling, context_length=CONTEXT))
    other = 1 if original < CONTEXT else CONTEXT + 1
    assert free != tokens(dataclasses.replace(scaling, context_length=other))
