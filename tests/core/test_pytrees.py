"""Dotted names of leaves, in both directions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ziggurat.core.pytrees import leaf_name, map_named, named_leaves, nested, size_bytes


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
    params: dict
    step: jax.Array


TREE = {"blocks": {"up": {"kernel": np.ones((2, 3)), "bias": np.zeros(3)}}, "norm": np.ones(2)}


def test_names_through_every_kind_of_node():
    state = State(params={"a": [jnp.ones(1), (jnp.ones(2),)]}, step=jnp.int32(3))
    assert list(named_leaves(state)) == ["params.a.0", "params.a.1.0", "step"]


def test_leaf_name_of_the_root():
    (path, _), *_ = jax.tree_util.tree_leaves_with_path(1.0)
    assert leaf_name(path) == ""


def test_nested_is_the_inverse():
    flat = named_leaves(TREE)
    assert list(flat) == ["blocks.up.bias", "blocks.up.kernel", "norm"]
    assert jax.tree.structure(nested(flat)) == jax.tree.structure(TREE)
    jax.tree.map(np.testing.assert_array_equal, nested(flat), TREE)
    assert nested({}) == {}


def test_nested_refuses_a_leaf_where_a_branch_stands():
    with pytest.raises((TypeError, AttributeError)):
        nested({"a": 1, "a.b": 2})


def test_map_named_sees_names_and_further_trees():
    doubled = map_named(lambda name, x, y: (name, float(x.sum() + y.sum())), TREE, TREE)
    assert doubled["blocks"]["up"]["kernel"] == ("blocks.up.kernel", 12.0)
    assert doubled["norm"] == ("norm", 4.0)


def test_size_in_bytes_of_arrays_and_of_shapes_alone():
    tree = {
        "a": jnp.ones((2, 3), jnp.bfloat16),
        "b": jax.ShapeDtypeStruct((5,), jnp.float32),
        "c": jnp.zeros((0, 4)),
        "d": None,
    }
    assert size_bytes(tree) == 2 * 6 + 4 * 5
