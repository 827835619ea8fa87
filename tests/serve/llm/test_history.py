"""Bias, penalties and masks, against transformers' and vLLM's formulas written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ziggurat.serve.errors import RequestError
from ziggurat.serve.llm import history
from ziggurat.serve.llm.history import History, all_but, bias_of
from ziggurat.serve.llm.sampling import SamplingArrays, SamplingParams, SamplingRow

VOCAB = 70
CASES = [
    SamplingParams(presence_penalty=0.7),
    SamplingParams(frequency_penalty=-0.4),
    SamplingParams(repetition_penalty=1.7),
    SamplingParams(logit_bias=((3, 5.0), (69, -100.0))),
    SamplingParams(
        presence_penalty=-1.0,
        frequency_penalty=0.3,
        repetition_penalty=0.6,
        logit_bias=((2, 1.5),),
    ),
    SamplingParams(),
]


def by_definition(logits, params, prompt, output):
    z = np.array(logits, np.float64)
    for token, value in params.logit_bias:
        z[token] += value
    for token in set(prompt) | set(output):
        z[token] *= 1 / params.repetition_penalty if z[token] > 0 else params.repetition_penalty
    for token in set(output):
        z[token] -= params.frequency_penalty * output.count(token) + params.presence_penalty
    return z


@pytest.fixture(scope="module")
def load():
    return jax.jit(history.load)


def test_shaped_logits_are_those_of_the_definition(load):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (len(CASES), VOCAB)).astype(np.float32)
    kept, sequences = History.empty(len(CASES), VOCAB), []
    for slot, params in enumerate(CASES[:-1]):
        tokens = rng.integers(0, VOCAB, 30)
        prompt, total = 5 + slot, 20 + slot
        sequences.append((tokens[:prompt].tolist(), tokens[prompt:total].tolist()))
        sizes = np.int32(prompt), np.int32(total)
        kept = load(kept, np.int32(slot), tokens.astype(np.int32), *sizes, bias_of(params, VOCAB))
    sequences.append(([], []))
    banned = [[], [0, 69], [], [31, 32], list(range(1, 70)), []]
    words = np.stack([all_but(ids, VOCAB) for ids in banned])
    sampling = SamplingArrays.stack([SamplingRow.of(p) for p in CASES], len(CASES))
    shaped = jax.jit(history.shape_logits)(
        logits, kept, np.arange(6, dtype=np.int32), sampling, words
    )
    for row, (params, (prompt, output), ids) in enumerate(zip(CASES, sequences, banned)):
        expected = by_definition(logits[row], params, prompt, output)
        expected[ids] = -np.inf
        np.testing.assert_allclose(shaped[row], expected, atol=1e-5)


def test_a_drawn_token_counts_from_the_next_on():
    kept = History.empty(2, VOCAB)
    step = jax.jit(history.sample_shaped)
    logits = np.zeros((2, VOCAB), np.float32)
    logits[:, 4], logits[:, 9] = 1.0, 0.9
    greedy = SamplingParams(temperature=0, frequency_penalty=0.25)
    sampling = SamplingArrays.stack(
        [SamplingRow.of(greedy), SamplingRow.of(SamplingParams(temperature=0))], 2
    )
    drawn = []
    for _ in range(4):
        words = np.stack([all_but([], VOCAB)] * 2)
        places = np.array([1, 2], np.int32)  # the second asks for nothing: the common row
        kept, tokens = step(kept, logits, places, sampling, words, np.zeros(2, np.int32))
        drawn.append(tokens.tolist())
    assert drawn == [[4, 4], [9, 4], [4, 4], [9, 4]]
    assert kept.counts[1].sum() == 4
    assert not kept.counts[0].any()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("presence_penalty", 2.1),
        ("frequency_penalty", float("nan")),
        ("repetition_penalty", 0.0),
        ("logit_bias", ((1, 101.0),)),
        ("logit_bias", ((-1, 1.0),)),
        ("logit_bias", ((1, 1.0), (1, 2.0))),
        ("logit_bias", tuple((i, 1.0) for i in range(301))),
        ("min_tokens", -1),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(RequestError) as caught:
        SamplingParams(**{field: value})
    assert caught.value.param == field


def test_more_least_tokens_than_most_are_refused():
    with pytest.raises(RequestError, match="min_tokens: found 5; expected a number from 0 to"):
        SamplingParams(min_tokens=5, max_tokens=4)


@pytest.mark.parity
def test_repetition_penalty_is_that_of_transformers(load):
    torch = pytest.importorskip("torch")
    processors = pytest.importorskip("transformers.generation.logits_process")
    logits = np.random.default_rng(1).normal(0, 2, (1, VOCAB)).astype(np.float32)
    tokens = np.random.default_rng(2).integers(0, VOCAB, 12).astype(np.int32)
    params = SamplingParams(repetition_penalty=1.3)
    kept = History.empty(1, VOCAB)
    kept = load(kept, np.int32(0), tokens, np.int32(7), np.int32(12), bias_of(params, VOCAB))
    sampling = jax.tree.map(jnp.asarray, SamplingArrays.of(params))
    found = history.shape_logits(
        jnp.asarray(logits), kept, jnp.array([0]), sampling, jnp.asarray(all_but([], VOCAB))[None]
    )
    theirs = processors.RepetitionPenaltyLogitsProcessor(1.3)
    expected = theirs(torch.tensor(tokens, dtype=torch.long)[None], torch.tensor(logits))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)
