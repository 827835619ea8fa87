"""A checkpoint step and a bundle written before layers declared their state (commit 9b983be).

``tests/oracle/earlier.tar.xz`` holds a step of a tiny language model after two steps of training,
its last logits for tokens 0 to 11, and a bundle of ``x @ w + 1``. Their keys and names must load
for good; a later form of either is stored beside this one, never in its place.
"""

import tarfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ziggurat.checkpoint import read_arrays, read_records, verify_step
from ziggurat.core.pytrees import named_leaves
from ziggurat.models.loading import pretrained
from ziggurat.serve.predict import LoadedBundle

ARCHIVE = Path(__file__).parents[1] / "oracle/earlier.tar.xz"


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


def test_a_step_is_whole_and_its_model_computes_the_same(earlier):
    step = earlier / "step_00000002"
    verify_step(step)
    found = pretrained.load(step)
    logits = jax.jit(found.model.logits)(found.params, jnp.arange(12)[None])[:, -1]
    expected = np.load(earlier / "expected.npz")["logits"]
    np.testing.assert_allclose(logits, expected, atol=1e-5)  # float32 in another order


def test_its_optimizer_state_has_the_names_of_the_parameters(earlier):
    step = earlier / "step_00000002"
    assert read_records(step)
    names = named_leaves(read_arrays(step, "optimizer"))
    for parameter in named_leaves(read_arrays(step, "params")):
        assert any(name.endswith(parameter) for name in names), parameter


def test_a_bundle_answers_as_it_did(earlier):
    bundle = LoadedBundle.load(earlier / "bundle")  # which replays the stored pairs
    x = np.ones((2, 3), np.float32)
    (y,) = bundle({"x": x}).values()
    np.testing.assert_allclose(y, x @ np.arange(6, dtype=np.float32).reshape(3, 2) + 1)
