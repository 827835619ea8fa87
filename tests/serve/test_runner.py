"""The runner's cache and unrolled blocks against the model's own whole forward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.quick_jit import quick_jit

from ziggurat.kernels.attention import AttentionMask, attention
from ziggurat.models import LanguageModel, LlamaConfig
from ziggurat.nn.attention_context import AttentionRule
from ziggurat.serve.llm import cache
from ziggurat.serve.llm.cache import SlotContext
from ziggurat.serve.llm.runner import ModelRunner, bucket_table
from ziggurat.serve.llm.sampling import Knobs, SamplingParams

GREEDY = Knobs.of(SamplingParams(temperature=0))


@pytest.mark.parametrize("window", [None, 5, 40])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize(("length", "new"), [(0, 7), (16, 16), (37, 1), (50, 9)])
def test_attention_over_blocks_in_use_is_attention_over_all(
    monkeypatch, window, softcap, length, new
):
    monkeypatch.setattr(cache, "BLOCK", 16)
    draw = np.random.default_rng(0).normal
    total, slots = length + new, 64
    keys, values = (jnp.asarray(draw(0, 1, (1, total, 2, 8)), jnp.float32) for _ in range(2))
    query = jnp.asarray(draw(0, 1, (1, new, 6, 8)), jnp.float32)
    rule = AttentionRule(0.3, window=window, softcap=softcap)
    positions = length + jnp.arange(new)[None]

    def slotted(x):
        filled = jnp.full((1, 2, slots, 8), 99.0)  # slots out of use must not be seen
        return filled.at[:, :, :length].set(x[:, :length].transpose(0, 2, 1, 3))

    state = (slotted(keys), slotted(values))
    context = SlotContext(jnp.asarray(length))
    out, after = context.attend(query, keys[:, length:], values[:, length:], positions, rule, state)
    mask = AttentionMask(positions, jnp.arange(total)[None], window=window)
    expected = attention(query, keys, values, mask, scale=0.3, softcap=softcap)
    np.testing.assert_allclose(out, expected, atol=2e-6)
    np.testing.assert_array_equal(after[0][:, :, :total], keys.transpose(0, 2, 1, 3))


@pytest.mark.parametrize(
    ("switches", "block"), [({}, 16), ({"window": 6}, 16), ({"tie_embeddings": False}, 512)]
)
def test_prefill_in_chunks_and_decoding_give_the_logits_of_the_whole(monkeypatch, block, switches):
    monkeypatch.setattr("ziggurat.serve.llm.cache.BLOCK", block)
    monkeypatch.setattr("ziggurat.serve.llm.runner.BLOCK", block)
    config = LlamaConfig(
        vocab_size=64, d_model=32, n_layers=3, n_heads=4, n_kv_heads=2, init_std=0.2, **switches
    )
    model = LanguageModel.build(config)
    params = model.init(jax.random.key(0))
    runner, whole = ModelRunner(model, params, 60, max_chunk=16), quick_jit(model.logits)
    for size in (1, 16, 17, 41):  # one chunk, a full one, and several with a padded tail
        tokens = np.random.default_rng(size).integers(0, 64, size).tolist()
        assert runner.prefill(tokens, reuse=False)
        grown = [*tokens, runner.first(size, GREEDY)]
        for _ in range(60 - len(grown)):
            padded = jnp.asarray([[*grown[:-1], *[0] * (61 - len(grown))]])
            expected = whole(params, padded)[0, len(grown) - 2]
            np.testing.assert_allclose(runner.prompt_logits[0], expected, atol=1e-4)
            grown.append(runner.decode(GREEDY))
            if len(grown) > size + 6:
                break


def test_a_prefix_in_the_cache_is_not_read_again_and_changes_nothing(model, params, whole):
    runner = ModelRunner(model, params, max_length=64, max_chunk=16)
    first = list(range(1, 30))
    runner.prefill(first, reuse=True)
    newest = [runner.first(29, GREEDY), *(runner.decode(GREEDY) for _ in range(4))]
    chunks = []
    longer = [*first, *newest[:3], 7, 8]
    runner.prefill(longer, reuse=True, go_on=lambda: chunks.append(1) or True)
    assert len(chunks) == 1, "29 + 3 tokens were there, two are new"
    found = np.asarray(runner.prompt_logits)
    np.testing.assert_allclose(found[0], whole(longer)[-1], atol=1e-4)
    runner.prefill(longer, reuse=True)  # all there: the last token is read for its logits
    np.testing.assert_allclose(runner.prompt_logits, found, atol=1e-4)


def test_giving_up_a_prompt_leaves_the_cache_usable(model, params, whole):
    runner = ModelRunner(model, params, max_length=64, max_chunk=16)
    answers = iter([True, False])
    assert not runner.prefill(list(range(40)), reuse=True, go_on=lambda: next(answers))
    tokens = [*range(16), 99, 98]
    assert runner.prefill(tokens, reuse=True)
    np.testing.assert_allclose(runner.prompt_logits[0], whole(tokens)[-1], atol=1e-4)


def test_bfloat16_compute():
    from ziggurat.nn.precision import Precision

    config = LlamaConfig(vocab_size=64, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2)
    model = LanguageModel.build(config, Precision("bfloat16", "bfloat16"))
    runner = ModelRunner(model, model.init(jax.random.key(0)), max_length=600, max_chunk=16)
    runner.prefill([1, 2, 3], reuse=False)
    assert 0 <= runner.first(3, GREEDY) < 64
    assert 0 <= runner.decode(GREEDY) < 64


def test_bucket_table():
    assert bucket_table(512) == (16, 32, 64, 128, 256, 512)
    assert bucket_table(16) == (16,)
