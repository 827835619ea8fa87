"""The real SmolLM2-135M-Instruct from a GGUF file: stored answers, and transformers beside it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.oracle import smollm2 as oracle

from ziggurat.models import LlamaConfig
from ziggurat.models.loading import pretrained
from ziggurat.nn import RopeConfig

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        oracle.gguf_file() is None, reason=f"package {oracle.PACKAGE}, which holds the weights"
    ),
]
SLOTS = 128


@pytest.fixture(scope="module")
def smollm2() -> pretrained.Pretrained:
    file = oracle.gguf_file()
    assert file is not None
    return pretrained.load(file)


@pytest.fixture(scope="module")
def first(smollm2):
    """Logits and cache after the prompts, which share one batch: rows are padded on the right and
    their true lengths set afterwards."""
    prompts = [answer.prompt for answer in oracle.load()]
    width = max(map(len, prompts))
    tokens = jnp.asarray([prompt + [0] * (width - len(prompt)) for prompt in prompts])
    lengths = jnp.asarray([len(prompt) for prompt in prompts])
    model = smollm2.model

    @jax.jit
    def prefill(params, tokens, lengths):
        rows = jnp.arange(len(prompts))
        positions = jnp.broadcast_to(jnp.arange(width)[None], tokens.shape)
        cache = model.cache(len(prompts), SLOTS)
        hidden, cache = model.hidden(params, tokens, positions, cache)
        logits = model.project(params, hidden[rows, lengths - 1])
        return logits, dataclasses.replace(cache, lengths=lengths)

    return prefill(smollm2.params, tokens, lengths)


def test_config(smollm2):
    config = smollm2.model.config
    assert config == LlamaConfig(
        vocab_size=49152,
        d_model=576,
        n_layers=30,
        n_heads=9,
        n_kv_heads=3,
        head_dim=64,
        d_ff=1536,
        max_sequence_length=8192,
        rope=RopeConfig(theta=1e5),
        tie_embeddings=True,
        norm_eps=config.norm_eps,
    )
    assert config.norm_eps == pytest.approx(1e-5, rel=1e-6)
    assert smollm2.model.parameter_count == 134_515_008


def test_prompts_become_the_stored_ids(smollm2):
    for text, answer in zip(oracle.PROMPTS, oracle.load(), strict=True):
        assert smollm2.tokenizer.encode(text) == answer.prompt


def test_greatest_logits_are_the_stored_ones(first):
    """Tolerance 1e-4 on logits up to 42."""
    for row, answer in zip(np.asarray(first[0]), oracle.load(), strict=True):
        np.testing.assert_allclose(row[answer.top], answer.logits, atol=1e-4, rtol=0)
        assert np.argsort(-row)[: oracle.TOP].tolist() == answer.top


def test_greedy_continuations_are_the_stored_ones(smollm2, first):
    """Rows of different length decode together. The stored continuations never come to a choice
    closer than their margin, far above the difference of logits."""
    logits, cache = first
    answers, model = oracle.load(), smollm2.model
    assert min(answer.margin for answer in answers) > 1e-3

    @jax.jit
    def decode(params, logits, cache):
        def step(carry, _):
            token, cache = carry
            hidden, cache = model.hidden(params, token[:, None], cache.lengths[:, None], cache)
            following = model.project(params, hidden[:, 0]).argmax(-1)
            return (following, cache), following

        token = logits.argmax(-1)
        _, rest = jax.lax.scan(step, (token, cache), length=oracle.NEW_TOKENS - 1)
        return jnp.concatenate([token[None], rest]).T

    found = np.asarray(decode(smollm2.params, logits, cache)).tolist()
    for row, answer in zip(found, answers, strict=True):
        assert row[: len(answer.greedy)] == answer.greedy


@pytest.mark.parity
class TestAgainstTransformers:
    @pytest.fixture(scope="class")
    def theirs(self):
        pytest.importorskip("torch")
        pytest.importorskip("transformers")
        file = oracle.gguf_file()
        assert file is not None
        return oracle.torch_model(file), oracle.torch_tokenizer(file)

    def test_stored_answers_are_what_transformers_computes(self, theirs):
        tokenizer = theirs[1]
        prompts = [
            tokenizer(text, add_special_tokens=False)["input_ids"] for text in oracle.PROMPTS
        ]
        assert prompts == [answer.prompt for answer in oracle.load()]
        found = [oracle.confirmed(theirs[0], answer) for answer in oracle.load()]
        oracle.compare(found, oracle.load())

    def test_all_logits(self, smollm2, theirs):
        """At most 3e-4 apart on logits up to 42: 30 layers in float32, and at the first position
        activations in the thousands."""
        import torch

        forward = jax.jit(smollm2.model.logits)
        rng = np.random.default_rng(0)
        for answer in oracle.load():
            tokens = [answer.prompt + rng.integers(0, 49000, 32 - len(answer.prompt)).tolist()]
            with torch.no_grad():
                expected = theirs[0](torch.tensor(tokens)).logits.numpy()
            found = np.asarray(forward(smollm2.params, jnp.asarray(tokens)))
            np.testing.assert_allclose(found, expected, atol=3e-4, rtol=0)

    def test_tokenizer(self, smollm2, theirs):
        for text in oracle.TEXTS:
            expected = theirs[1](text, add_special_tokens=False)["input_ids"]
            found = smollm2.tokenizer.encode(text)
            assert found == expected, text
            assert smollm2.tokenizer.decode(found, skip_special_tokens=False) == theirs[1].decode(
                expected, clean_up_tokenization_spaces=False
            )
