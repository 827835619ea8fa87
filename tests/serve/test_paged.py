"""The attention context over tables of blocks; its attention is tested with the kernel."""

import jax
import jax.numpy as jnp

from ziggurat.serve.llm.paged import Paged


def test_positions_of_padding_repeat_the_last():
    pages = Paged(jnp.zeros((2, 1), jnp.int32), jnp.array([5, 0]), jnp.array([2, 0]))
    assert pages.positions(4).tolist() == [[5, 6, 6, 6], [0, 0, 0, 0]]
    moved = pages.advance((), 4)
    assert jax.tree.leaves(moved.start)[0].tolist() == [7, 0]
