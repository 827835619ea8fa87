"""Classes of distances against the definition and against transformers' own."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ziggurat.nn import Precision
from ziggurat.nn.relative_positions import RelativeEmbeddings, RelativeEmbeddingsConfig

SIZES = [(None, 5), (None, 40), (2, 9), (6, 40), (8, 8), (32, 128), (256, 512), (256, 1024)]
TOKENS = 700


def classes(buckets, longest):
    c = RelativeEmbeddingsConfig(longest=longest, buckets=buckets)
    module = RelativeEmbeddings(c, 4, 0.1, Precision(), nnx.Rngs(0))
    assert module.table.shape == (c.rows, 4)
    return np.asarray(module(jnp.arange(TOKENS)).classes), c


@pytest.mark.parametrize(("buckets", "longest"), SIZES)
def test_near_distances_have_a_class_each_and_far_ones_share(buckets, longest):
    found, c = classes(buckets, longest)
    exact = longest if buckets is None else buckets // 2
    for distance in range(min(exact, c.span - 1) + 1):
        assert found[distance, 0] == c.span + distance
        assert found[0, distance] == c.span - distance
    assert found.min() >= 0
    assert found.max() <= c.rows - 1
    assert (np.diff(found[:, 0]) >= 0).all(), "a farther key is in no nearer class"


@pytest.mark.parity
@pytest.mark.parametrize(("buckets", "longest"), SIZES)
def test_classes_are_those_of_transformers(buckets, longest):
    """To the unit for every pair of 700 tokens: a border is where a float32 logarithm falls."""
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("transformers.models.deberta_v2.modeling_deberta_v2")
    rows = torch.zeros(1, TOKENS, 4)
    given = theirs.build_relative_position(rows, rows, buckets or -1, longest)[0]
    found, c = classes(buckets, longest)
    expected = torch.clamp(given + c.span, 0, 2 * c.span - 1).numpy()
    np.testing.assert_array_equal(found, expected)
