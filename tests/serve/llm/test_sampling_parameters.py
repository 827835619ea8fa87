"""A sampling parameter that this file declares: a field of requests, checked, and applied by the
sampler, from OpenAI's API to the token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from tests.serve.conftest import CONTEXT, serving

from ziggurat.serve.composition import Generator, openai_parts
from ziggurat.serve.errors import RequestError
from ziggurat.serve.llm.engine import Engine, EngineConfig
from ziggurat.serve.llm.sampling import (
    NEVER,
    SAMPLING_PARAMETERS,
    SamplingArrays,
    SamplingParameter,
    SamplingParams,
    registered_parameters,
    sample,
)


def top_a(scaled, a):
    """Keep tokens at least ``a`` times the square of the greatest probability, and that token."""
    p = jax.nn.softmax(scaled, axis=-1)
    best = p.max(-1, keepdims=True)
    return jnp.where(p >= jnp.minimum(a[:, None] * best**2, best), scaled, NEVER)


TOP_A = SamplingParameter(
    default=0.0, good=lambda a: 0 <= a <= 1000, expected="a number in [0, 1000]", warp=top_a
)


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(SAMPLING_PARAMETERS, "_entries", {})
    registered_parameters.cache_clear()
    SAMPLING_PARAMETERS.add("top_a", TOP_A)
    yield
    registered_parameters.cache_clear()


def test_values_are_checked(registered):
    assert SamplingParams(extra={"top_a": 0.2}).extra == {"top_a": 0.2}
    with pytest.raises(RequestError, match=r"top_a: found -1; expected a number in \[0, 1000\]"):
        SamplingParams(extra={"top_a": -1})
    with pytest.raises(RequestError, match=r"found 'top_b'; expected a registered .*: top_a"):
        SamplingParams(extra={"top_b": 1})


def test_a_parameter_that_nothing_applies_is_refused(registered):
    SAMPLING_PARAMETERS.add(
        "idle", SamplingParameter(default=0.0, good=lambda a: True, expected="any")
    )
    with pytest.raises(ValueError, match="'idle' has no warp"):
        registered_parameters()


def test_rows_are_warped_by_their_own_values(registered):
    logits = jnp.tile(jnp.log(jnp.array([[0.5, 0.3, 0.2]])), (400, 1))
    values = jnp.where(jnp.arange(400) < 200, 1.0, 0.0)  # 1: keeps p >= 0.25
    row = SamplingArrays.of(SamplingParams(seed=1, extra={"top_a": 1.0}))
    rows = jax.tree.map(lambda x: jnp.repeat(x, 400), row)
    rows = rows._replace(numbers={**rows.numbers, "top_a": values})
    drawn = np.asarray(jax.jit(sample)(logits, rows, jnp.arange(400)))
    assert set(drawn[:200].tolist()) == {0, 1}
    assert set(drawn[200:].tolist()) == {0, 1, 2}


def test_from_the_request_to_the_token(registered, model, params, tokenizer):
    """At its greatest value only the most likely token is left, so a draw is the greedy answer."""
    openai = pytest.importorskip("openai")
    settings = EngineConfig(max_sequence_length=CONTEXT, max_running=2)
    registry, asked = CollectorRegistry(), {"model": "tiny", "prompt": "ab", "max_tokens": 12}
    with (
        Engine(model, params, tokenizer, settings) as engine,
        serving(openai_parts(registry, Generator("tiny", engine)), registry) as server,
        openai.OpenAI(base_url=server.url + "/v1", api_key="x", max_retries=0) as client,
    ):

        def answer(**fields):
            made = client.completions.create(**asked, seed=3, **fields)
            return made.choices[0].text

        greedy = answer(temperature=0)
        assert answer(extra_body={"top_a": 1000}) == greedy
        assert answer() != greedy
        assert answer(extra_body={"top_a": 0}) == answer()
        with pytest.raises(openai.BadRequestError, match=r"top_a: found -1.0; expected a num"):
            answer(extra_body={"top_a": -1})
        with pytest.raises(openai.BadRequestError, match="top_b: found an unknown field"):
            answer(extra_body={"top_b": 1})
