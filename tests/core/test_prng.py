"""Random streams: keyed by purpose, step and index, and by nothing else."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ziggurat.core.prng import host_stream, purpose_id, stream

POINTS = list(itertools.product((0, 1), ("init", "dropout"), (0, 1, 2), (0, 1)))


def data(*point) -> tuple[int, ...]:
    return tuple(jax.random.key_data(stream(*point)).tolist())


def test_every_coordinate_counts():
    keys = {data(*point) for point in POINTS}
    assert len(keys) == len(POINTS)
    draws = {host_stream(*point).integers(2**60) for point in POINTS}
    assert len(draws) == len(POINTS)


def test_step_and_index_do_not_commute():
    assert data(0, "init", 3, 5) != data(0, "init", 5, 3)
    assert host_stream(0, "init", 3, 5).random() != host_stream(0, "init", 5, 3).random()


def test_streams_are_the_same_on_every_machine_and_in_every_version():
    """Numbers written down once: a change here would alter every run that resumes."""
    assert purpose_id("dropout") == 1943526429
    assert data(7, "dropout", 3, 1) == (1138719296, 4291361443)
    assert host_stream(7, "shuffle", 3, 1).integers(0, 1000, 4).tolist() == [675, 210, 602, 537]


def test_traced_coordinates_give_the_same_key():
    traced = jax.jit(lambda seed, step, index: stream(seed, "sample", step, index))
    found = traced(jnp.int32(7), jnp.int32(3), jnp.int32(1))
    assert tuple(jax.random.key_data(found).tolist()) == data(7, "sample", 3, 1)
    keys = jax.vmap(lambda index: stream(0, "sample", 2, index))(jnp.arange(3))
    assert [tuple(k) for k in jax.random.key_data(keys).tolist()] == [
        data(0, "sample", 2, index) for index in range(3)
    ]


def test_default_implementation_of_keys_does_not_matter():
    with jax.default_prng_impl("rbg"):
        assert jax.random.key_impl(stream(0, "init")) == "threefry2x32"


def test_host_streams_do_not_run_into_each_other():
    """The steps differ in the counter's high words: a long draw of one never reaches the next."""
    first = host_stream(0, "shuffle", step=0).integers(2**63, size=4096)
    second = host_stream(0, "shuffle", step=1).integers(2**63, size=4096)
    assert not np.isin(first, second).any()


@pytest.mark.parametrize("purpose", ["", "a", "init", "ünï"])
def test_purpose_ids_fit_31_bits(purpose):
    assert 0 <= purpose_id(purpose) < 2**31
