"""Windows of attention in both directions: never ignored, and those of transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ziggurat.kernels.attention import AttentionMask
from ziggurat.nn import Bidirectional, Causal
from ziggurat.nn.attention_context import AttentionRule

LENGTH = 9


def seen(context, window: int | None) -> np.ndarray:
    """Who sees whom, ``[t, t]``: values are rows of the identity, scores all equal."""
    ones = jnp.ones((1, LENGTH, 1, 4))
    values, positions = jnp.eye(LENGTH)[None, :, None], jnp.arange(LENGTH)[None]
    out, _ = context.attend(ones, ones, values, positions, AttentionRule(1.0, window=window), ())
    return np.asarray(out[0, :, 0] > 0)


@pytest.mark.parametrize("window", [None, 1, 3, 20])
@pytest.mark.parametrize("padding", [0, 2])
def test_both_directions_with_a_window(window, padding):
    mask = jnp.arange(LENGTH)[None] < LENGTH - padding
    distance = np.subtract.outer(np.arange(LENGTH), np.arange(LENGTH))
    expected = (abs(distance) < (window or LENGTH)) & np.asarray(mask)
    rows = slice(LENGTH - padding)  # what padding sees means nothing
    found = seen(Bidirectional(mask.astype(int)), window)
    np.testing.assert_array_equal(found[rows], expected[rows])
    if not padding:
        np.testing.assert_array_equal(seen(Bidirectional(), window), expected)
        causal = seen(Causal(), window)
        np.testing.assert_array_equal(causal, expected & (distance >= 0))


@pytest.mark.parity
@pytest.mark.parametrize("reach", [0, 1, 4])
def test_reach_of_transformers(reach):
    """Theirs counts the tokens beside the query's own."""
    torch = pytest.importorskip("torch")
    masking_utils = pytest.importorskip("transformers.masking_utils")
    rule = masking_utils.sliding_window_bidirectional_mask_function(reach)
    at = torch.arange(LENGTH)
    expected = rule(0, 0, at[:, None], at[None]).numpy()
    positions = jax.numpy.arange(LENGTH)[None]
    mask = AttentionMask(positions, positions, causal=False, window=reach + 1)
    np.testing.assert_array_equal(mask.dense()[0], expected)
