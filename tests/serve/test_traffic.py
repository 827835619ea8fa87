"""Many requests at once: nothing of one shows in another, and everything is given back."""

import dataclasses
import random
import threading

import jax
import numpy as np
import pytest

from ziggurat.models import Gemma2Config, Gpt2Config, LanguageModel, LlamaConfig
from ziggurat.nn.precision import Precision
from ziggurat.serve.errors import RequestError
from ziggurat.serve.llm.engine import Engine, EngineConfig
from ziggurat.serve.llm.history import all_but
from ziggurat.serve.llm.sampling import SamplingParams

SMALL = EngineConfig(
    max_sequence_length=96,
    max_prefill_chunk=16,
    max_batched_tokens=24,
    max_running=4,
    max_queue=200,
    block_size=8,
    cache_tokens=96,
)
"""A cache that holds one longest sequence: several of them take blocks from each other."""


FIELDS = {"vocab_size": 257, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_sequence_length": 256}
FAMILIES = {
    "sliding window": LlamaConfig(**FIELDS, n_kv_heads=2, init_std=0.3, window=13),
    "windows in turn, soft caps": Gemma2Config(
        **FIELDS,
        n_kv_heads=2,
        head_dim=8,
        d_ff=64,
        init_std=0.3,
        window=9,
        query_scale=8.0,
        attention_softcap=5.0,
        logit_softcap=10.0,
    ),
    "learned positions": Gpt2Config(**FIELDS, init_std=0.3),
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The same settings, with programs compiled once for all engines here."""
    directory = str(tmp_path_factory.mktemp("programs"))
    return dataclasses.replace(SMALL, compile_cache=directory)


@pytest.fixture(scope="module")
def small(model, params, tokenizer, kept):
    with Engine(model, params, tokenizer, kept) as made:
        yield made


def prompts(count, seed, longest=60):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, rng.integers(1, longest)).tolist() for _ in range(count)]


def together(engine, asked):
    """Tokens of every choice of every request, all submitted at once."""
    generations = [engine.submit(prompt, params) for prompt, params in asked]
    answers = []
    for generation in generations:
        choices = [[] for _ in range(generation.params.n)]
        for event in generation:
            choices[event.choice].append(event.token)
        answers.append(choices)
    return answers


def settled(engine):
    """Statistics once the engine's thread has come to rest."""
    list(engine.generate([1], SamplingParams(max_tokens=1)))
    return engine.statistics()


def greedy_by_hand(whole, prompt, count):
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(whole(tokens)[-1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.slow
def test_greedy_tokens_are_the_models_although_blocks_are_taken_away(small, whole):
    before = small.statistics().preemptions
    asked = [
        (prompt, SamplingParams(temperature=0, max_tokens=25, ignore_eos=True))
        for prompt in prompts(10, 1)
    ]
    answers = together(small, asked)
    assert small.statistics().preemptions > before
    for (prompt, _), (tokens,) in zip(asked, answers):
        assert tokens == greedy_by_hand(whole, prompt, 25)
    assert settled(small).blocks_free == 12


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_decodes_as_its_whole_forward_pass(family, tokenizer):
    model = LanguageModel.build(FAMILIES[family])
    params = model.init(jax.random.key(1))
    run = jax.jit(model.logits)

    def whole(tokens):
        padded = np.zeros((1, 64), np.int32)
        padded[0, : len(tokens)] = tokens
        return np.asarray(run(params, padded))[0, : len(tokens)]

    settings = dataclasses.replace(SMALL, max_running=1, max_sequence_length=64)
    with Engine(model, params, tokenizer, settings) as engine:
        params_ = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
        asked = [(prompt, params_) for prompt in prompts(3, 2, 44)]
        for (prompt, _), (tokens,) in zip(asked, together(engine, asked)):
            assert tokens == greedy_by_hand(whole, prompt, 20)


MIXED = [
    {"seed": 1},
    {"seed": 2, "temperature": 0.6, "top_k": 20, "top_p": 0.9},
    {"seed": 3, "presence_penalty": 1.0, "frequency_penalty": 0.5, "n": 3},
    {"temperature": 0, "repetition_penalty": 1.5},
    {"seed": 4, "logit_bias": ((65, 6.0), (66, 6.0))},
    {"seed": 5, "min_p": 0.1, "min_tokens": 12, "n": 2},
    {"temperature": 0, "logprobs": 3},
]


@pytest.mark.slow
@pytest.mark.parametrize("prefix_cache", [True, False])
def test_alone_or_in_a_mix_the_same_request_has_the_same_tokens(
    small, model, params, tokenizer, kept, prefix_cache
):
    """Steps of other shapes may differ in the last bits of float32 logits; no draw here is so close
    that it matters. The mixed engine is the one whose lanes lose their blocks."""
    asked = [
        (prompt, SamplingParams(max_tokens=20, ignore_eos=i % 2 == 0, **MIXED[i % len(MIXED)]))
        for i, prompt in enumerate(prompts(14, 3, 40))
    ]
    if prefix_cache:
        mixed = together(small, asked)
        assert settled(small).blocks_free == 12
        alone = [together(small, [one])[0] for one in asked]
        assert settled(small).prefix_hits > 0
    else:
        settings = dataclasses.replace(kept, prefix_cache=False)
        with Engine(model, params, tokenizer, settings) as naive:
            mixed = together(naive, asked)
            assert settled(naive).prefix_hits == 0
        alone = together(small, asked)
    assert mixed == alone


def test_min_tokens_bias_and_penalties_are_honoured(small, tokenizer):
    (end,) = tokenizer.eos_ids
    sure = ((end, 100.0),)
    (tokens,) = together(
        small, [([1, 2], SamplingParams(logit_bias=sure, min_tokens=7, max_tokens=30))]
    )[0]
    assert tokens.index(end) == len(tokens) - 1 == 7
    (tokens,) = together(small, [([1], SamplingParams(logit_bias=sure, max_tokens=9))])[0]
    assert tokens == [end]
    never = SamplingParams(
        temperature=0, presence_penalty=2.0, frequency_penalty=2.0, max_tokens=20
    )
    often = SamplingParams(temperature=0, frequency_penalty=-2.0, max_tokens=20, ignore_eos=True)
    (few,), (many,) = (together(small, [([5, 6, 7], p)])[0] for p in (often, never))
    assert len(set(few)) < len(set(many))


class Letters:
    """Allows ``a`` to ``c`` in turn and is finished after some."""

    def __init__(self, count, fail=None):
        self.left, self.told, self.fail = count, [], fail

    def mask(self):
        if self.fail == "mask":
            raise RuntimeError("no mask")
        return ~all_but([97 + len(self.told) % 3], 257)

    def accept(self, token):
        if self.fail == "accept":
            raise RuntimeError("not told")
        self.told.append(token)
        self.left -= 1

    @property
    def finished(self):
        return self.left == 0


@pytest.mark.slow
def test_a_constraint_rules_its_own_choices_and_ends_them(small):
    made = []

    def make():
        made.append(Letters(5))
        return made[-1]

    others = [(prompt, SamplingParams(seed=1, max_tokens=12)) for prompt in prompts(3, 5)]
    free = together(small, others)
    bound = SamplingParams(constraint=make, n=2, max_tokens=40, seed=9)
    generation = small.submit([1, 2, 3], bound)
    assert together(small, others) == free
    events = list(generation)
    texts = ["".join(e.text for e in events if e.choice == c) for c in (0, 1)]
    assert texts == ["abcab", "abcab"]
    assert [e.finish_reason for e in events if e.finish_reason] == ["stop", "stop"]
    assert [m.told for m in made] == [[97, 98, 99, 97, 98]] * 2


@pytest.mark.parametrize("fail", ["mask", "accept"])
def test_a_failing_constraint_ends_its_own_request_only(small, fail):
    bad = SamplingParams(constraint=lambda: Letters(5, fail), max_tokens=10)
    other = small.submit([1, 2], SamplingParams(max_tokens=15, ignore_eos=True))
    with pytest.raises(RequestError, match="constraint: found RuntimeError"):
        list(small.submit([3, 4], bad))
    assert len(list(other)) == 15
    assert settled(small).blocks_free == 12


def test_a_failing_listener_ends_its_own_request_only(small, caplog):
    def listener(event):
        raise RuntimeError("nobody there")

    small.submit([1, 2, 3], SamplingParams(ignore_eos=True), listener)
    other = small.submit([1, 2], SamplingParams(max_tokens=15, ignore_eos=True))
    assert len(list(other)) == 15
    assert settled(small).blocks_free == 12
    assert "a listener failed" in caplog.text


def test_random_traffic_with_cancels_gives_every_block_back(small):
    """From several threads; some stop to listen, some cancel at once, some ask for several."""
    errors = []

    def client(number):
        rng = random.Random(number)
        try:
            for _ in range(8):
                prompt = [rng.randrange(256) for _ in range(rng.randint(1, 50))]
                params = SamplingParams(
                    max_tokens=rng.randint(1, 30),
                    n=rng.choice([1, 1, 2]),
                    seed=rng.choice([None, 3]),
                    temperature=rng.choice([0, 1.0]),
                    presence_penalty=rng.choice([0, 0, 1.0]),
                )
                generation = small.submit(prompt, params)
                stop_after = rng.choice([0, 2, 1000, 1000])
                for count, _ in enumerate(generation):
                    if count >= stop_after:
                        generation.cancel()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=client, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "a request hangs"
    assert not errors
    found = settled(small)
    assert (found.running, found.waiting, found.blocks_free, found.cache_usage) == (0, 0, 12, 0)
    assert len(small._scheduler._slots) == 4


def test_draining_finishes_what_is_queued(model, params, tokenizer, kept):
    engine = Engine(model, params, tokenizer, kept)
    generations = [
        engine.submit([i], SamplingParams(max_tokens=5, ignore_eos=True)) for i in range(6)
    ]
    engine.close(drain=True)
    assert [len(list(g)) for g in generations] == [5] * 6


def test_parameters_of_a_mesh_are_served_from_one_device(small, model, params, tokenizer, kept):
    mesh = jax.make_mesh((len(jax.devices()),), ("data",), (jax.sharding.AxisType.Auto,))
    everywhere = jax.NamedSharding(mesh, jax.P())
    greedy = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
    asked = [(prompt, greedy) for prompt in prompts(2, 6)]
    with Engine(model, jax.device_put(params, everywhere), tokenizer, kept) as engine:
        assert together(engine, asked) == together(small, asked)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "close"), [("float32", 1e-3), ("bfloat16", 0.3)])
def test_how_much_of_a_seeded_answer_depends_on_the_load(tokenizer, tmp_path, dtype, close):
    """What docs/how-to/serve-llm.md says of seeds: in float32 the tokens are the same, and in
    either type the log-probabilities of the same tokens are close."""
    config = LlamaConfig(**FIELDS, n_kv_heads=2, init_std=0.3)
    model = LanguageModel.build(config, Precision(dtype, dtype))
    settings = dataclasses.replace(SMALL, max_running=8, cache_tokens=1024, prefix_cache=False)
    asked = [
        (
            prompt[:20],
            SamplingParams(seed=seed, max_tokens=40, ignore_eos=True, logprobs=0),
        )
        for seed, prompt in enumerate(prompts(16, 7))
    ]
    with Engine(model, model.init(jax.random.key(0)), tokenizer, settings) as engine:

        def read(generation):
            events = list(generation)
            scores = [entry.logprob for event in events for entry in event.logprobs]
            return [event.token for event in events], scores

        alone = [read(engine.submit(*each)) for each in asked]
        mixed = [read(each) for each in engine.submit_together(asked, lambda place: None)]
    for (tokens, scores), (others, other_scores) in zip(alone, mixed):
        same = next((n for n, (a, b) in enumerate(zip(tokens, others)) if a != b), len(tokens))
        assert dtype == "bfloat16" or same == len(tokens)
        np.testing.assert_allclose(scores[:same], other_scores[:same], atol=close, rtol=0)
