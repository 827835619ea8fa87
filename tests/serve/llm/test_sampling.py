"""The sampler against a plain numpy account of it, and against transformers' warpers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ziggurat.serve.errors import RequestError
from ziggurat.serve.llm.sampling import (
    SamplingArrays,
    SamplingParams,
    device_seed,
    log_probabilities,
)
from ziggurat.serve.llm.sampling import kept_tokens as kept_eagerly
from ziggurat.serve.llm.sampling import sample as sample_eagerly

sample, kept_tokens = jax.jit(sample_eagerly), jax.jit(kept_eagerly)

CASES = [
    {},
    {"top_k": 1},
    {"top_k": 3},
    {"top_k": 1000},
    {"top_k": -1},
    {"top_p": 1e-6},
    {"top_p": 0.5},
    {"top_p": 0.999},
    {"min_p": 0.3},
    {"min_p": 1.0},
    {"top_k": 8, "top_p": 0.7},
    {"top_k": 8, "top_p": 0.7, "min_p": 0.2},
    {"temperature": 0.3, "top_p": 0.9},
    {"temperature": 3.0, "top_p": 0.9, "min_p": 0.05},
]


def rows(params, count, **changes):
    sampling = SamplingArrays.of(params)
    joined = jax.tree.map(lambda x: jnp.repeat(x, count), sampling)
    return joined._replace(numbers={**joined.numbers, **changes})


def kept_by_definition(logits, p):
    """Token by token, as the words of SamplingParams say."""
    z = logits / p.temperature
    order = np.argsort(-z, kind="stable")
    kept = list(order[: p.top_k] if p.top_k > 0 else order)
    weight = np.exp(z - z.max())
    total, so_far, chosen = sum(weight[i] for i in kept), 0.0, []
    for token in kept:
        if chosen and so_far / total >= p.top_p:
            break
        chosen.append(token)
        so_far += weight[token]
    return {int(i) for i in chosen if weight[i] >= p.min_p * weight.max()}


def kept_by_us(logits, p):
    sampling = SamplingArrays.of(p)
    scaled = jnp.asarray(logits)[None] / p.temperature
    mask = kept_tokens(scaled, *(sampling.numbers[name] for name in ("top_k", "top_p", "min_p")))
    return set(np.flatnonzero(np.asarray(mask)[0]).tolist())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kept_tokens_are_those_of_the_definition(case):
    params = SamplingParams(**case)
    for seed in range(20):
        logits = np.random.default_rng(seed).normal(0, 2, 40).astype(np.float32)
        assert kept_by_us(logits, params) == kept_by_definition(logits, params)


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES, ids=str)
def test_kept_tokens_are_those_of_transformers(case):
    torch = pytest.importorskip("torch")
    logits_process = pytest.importorskip("transformers.generation.logits_process")
    p = SamplingParams(**case)
    warpers = [logits_process.TemperatureLogitsWarper(p.temperature)]
    if p.top_k > 0:
        warpers.append(logits_process.TopKLogitsWarper(p.top_k))
    if p.top_p < 1:
        warpers.append(logits_process.TopPLogitsWarper(p.top_p))
    if p.min_p > 0:
        warpers.append(logits_process.MinPLogitsWarper(p.min_p))
    for seed in range(20):
        logits = np.random.default_rng(seed).normal(0, 2, 40).astype(np.float32)
        scores = torch.tensor(logits)[None]
        for warper in warpers:
            scores = warper(None, scores)
        expected = set(torch.isfinite(scores[0]).nonzero()[:, 0].tolist())
        assert kept_by_us(logits, p) == expected


def test_ties_with_the_kth_token_all_stay():
    logits = np.array([1.0, 2.0, 2.0, 2.0, 0.0], np.float32)
    assert kept_by_us(logits, SamplingParams(top_k=2)) == {1, 2, 3}


@pytest.mark.parametrize("case", [{}, {"temperature": 0.5}, {"top_k": 4, "top_p": 0.9}], ids=str)
def test_draws_follow_the_distribution(case):
    """Chi-square over 20000 draws; the bound is the 1 - 1e-6 quantile for 11 degrees of freedom."""
    params = SamplingParams(seed=5, **case)
    logits = np.random.default_rng(3).normal(0, 1, 12).astype(np.float32)
    count = 20000
    batch = jnp.broadcast_to(jnp.asarray(logits), (count, 12))
    drawn = np.asarray(sample(batch, rows(params, count), jnp.arange(count)))
    kept = sorted(kept_by_definition(logits, params))
    weight = np.exp(logits[kept] / params.temperature)
    expected = count * weight / weight.sum()
    counts = np.bincount(drawn, minlength=12)
    assert counts.sum() == counts[kept].sum(), "a token outside the kept set was drawn"
    assert ((counts[kept] - expected) ** 2 / expected).sum() < 49.0


def test_a_row_depends_on_its_own_seed_position_and_choice_only():
    logits = jax.random.normal(jax.random.key(1), (6, 50))
    mixed = jax.tree.map(
        lambda *x: jnp.concatenate(x),
        *(
            SamplingArrays.of(
                SamplingParams(seed=i, temperature=0.5 + i, top_p=1 - i / 10), choice=i % 2
            )
            for i in range(6)
        ),
    )
    positions = jnp.arange(10, 16)
    together = sample(logits, mixed, positions)
    for i in range(6):
        alone = jax.tree.map(lambda x, i=i: x[i : i + 1], mixed)
        assert sample(logits[i : i + 1], alone, positions[i])[0] == together[i]


@pytest.mark.parametrize("change", ["seed", "choice", "position"])
def test_another_seed_choice_or_position_draws_anew(change):
    logits = jnp.zeros((64, 100))
    sampling, positions = rows(SamplingParams(seed=1), 64), jnp.arange(64)
    other, elsewhere = sampling, positions
    if change == "position":
        elsewhere = positions + 64
    else:
        other = sampling._replace(**{change: getattr(sampling, change) + 1})
    same = sample(logits, sampling, positions) == sample(logits, other, elsewhere)
    assert int(same.sum()) < 10


def test_greedy_takes_the_first_of_the_greatest_beside_rows_that_draw():
    logits = jnp.array([[0.0, 5.0, 5.0, 1.0]] * 2)
    sampling = rows(SamplingParams(seed=0), 2, temperature=jnp.array([0.0, 1e-4]))
    first, second = sample(logits, sampling, jnp.array(3)).tolist()
    assert first == 1
    assert second in (1, 2)


def test_seeds_of_64_bits_are_told_apart_and_small_ones_kept():
    seeds = [0, 1, 2**31 - 1, 2**31, 2**63, 2**64 - 1, -1, -(2**63)]
    assert len({device_seed(seed) for seed in seeds}) == len(seeds)
    assert [device_seed(seed) for seed in seeds[:3]] == seeds[:3]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -2),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("seed", 2**64),
        ("stop", ("",)),
        ("stop", ("x",) * 17),
        ("stop_token_ids", (-1,)),
        ("logprobs", 21),
        ("n", 0),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(RequestError) as caught:
        SamplingParams(**{field: value})
    assert caught.value.param == field
    assert str(caught.value).startswith(f"{field}: found ")


def test_log_probabilities():
    logits = np.random.default_rng(0).normal(0, 1, (3, 30)).astype(np.float32)
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    chosen, top, ids = log_probabilities(jnp.asarray(logits), jnp.array([4, 5, 6]), 5)
    np.testing.assert_allclose(chosen, expected[np.arange(3), [4, 5, 6]], atol=1e-5)
    np.testing.assert_array_equal(ids, np.argsort(-expected, axis=-1)[:, :5])
    np.testing.assert_allclose(top, np.sort(expected, axis=-1)[:, ::-1][:, :5], atol=1e-5)
