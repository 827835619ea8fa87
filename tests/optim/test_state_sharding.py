"""Optimizer state gets the parameters' logical axes, and so their shardings."""

import jax
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tests.optim.stacked_parameters import AXES, gradients, parameters
from tests.optim.test_optimizers import OPTIMIZERS

from ziggurat.core.pytrees import leaf_name, named_leaves
from ziggurat.optim import Adafactor, AdamW, build, is_axes, state_axes

MESH_AXES = {"embed": "data", "mlp": "model", "heads": "model", "vocab": "model"}


def of(config):
    transform = build(config, total_steps=4, axes=AXES).transform
    state = jax.eval_shape(transform.init, parameters())
    return transform, state, state_axes(state, AXES)


def by_name(tree):
    pairs = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_axes)
    return {leaf_name(path): leaf for path, leaf in pairs}


@pytest.mark.parametrize("config", OPTIMIZERS, ids=lambda c: c.kind)
def test_every_moment_has_its_parameters_axes(config):
    _, state, axes = of(config)
    params = {k: v.shape for k, v in named_leaves(parameters()).items()}
    wanted = {
        leaf_name(p): a for p, a in jax.tree_util.tree_leaves_with_path(AXES, is_leaf=is_axes)
    }
    found = by_name(axes)
    moments = 0
    for path, leaf in named_leaves(state).items():
        owner = next((name for name in params if path.endswith("." + name)), None)
        assert len(found[path]) == len(leaf.shape)
        if owner and leaf.shape == params[owner]:
            assert found[path] == wanted[owner], path
            moments += 1
        elif owner:
            assert 1 in leaf.shape, "a reduced moment"
        else:
            assert set(found[path]) <= {None}
    assert bool(moments) is not (config.kind == "sgd" and not config.momentum)


def test_factored_moments_keep_the_axes_that_are_left():
    _, _, axes = of(Adafactor(lr=0.1, min_dim_to_factor=4))
    found = {k.split(".", 2)[-1]: v for k, v in by_name(axes).items()}
    kernel = "blocks.mlp.up.kernel"
    assert found[f"row.{kernel}"] == ("layers", "embed", None)
    assert found[f"column.{kernel}"] == ("layers", None, "mlp")
    assert found[f"full.{kernel}"] == (None, None, None)
    assert found["full.blocks.norm.scale"] == ("layers", "embed")


@pytest.mark.parametrize(
    "config", {c.kind: c for c in reversed(OPTIMIZERS)}.values(), ids=lambda c: c.kind
)
def test_sharded_steps_equal_unsharded(config):
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "model"))

    def place(axes):
        used: list = []
        for a in axes:
            name = MESH_AXES.get(a)
            used.append(None if name in used else name)
        return NamedSharding(mesh, P(*used))

    transform, _, axes = of(config)
    params_sharding = jax.tree.map(place, AXES, is_leaf=is_axes)
    state_sharding = jax.tree.map(place, axes, is_leaf=is_axes)

    def step(params, state, grads):
        updates, state = transform.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    fast = jax.jit(
        step,
        in_shardings=(params_sharding, state_sharding, params_sharding),
        out_shardings=(params_sharding, state_sharding),
        donate_argnums=(0, 1),
    )
    params = jax.device_put(parameters(), params_sharding)
    state = jax.jit(transform.init, out_shardings=state_sharding)(params)
    plain = parameters()
    plain_state, plain_step = transform.init(plain), jax.jit(step)
    for grads in gradients(2):
        params, state = fast(params, state, jax.device_put(grads, params_sharding))
        plain, plain_state = plain_step(plain, plain_state, grads)
    kernel = params["blocks"]["mlp"]["up"]["kernel"]
    assert not kernel.sharding.is_fully_replicated
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), params, plain)


def test_names_that_end_alike():
    """``b`` and ``a.b`` are different parameters; the longer path wins."""
    axes = {"a": {"b": ("embed", "mlp")}, "b": ("vocab", "embed")}
    transform = build(AdamW(lr=1.0), total_steps=1, axes=axes).transform
    shapes = {"a": {"b": np.zeros((2, 3))}, "b": np.zeros((4, 2))}
    found = by_name(state_axes(jax.eval_shape(transform.init, shapes), axes))
    assert {v for k, v in found.items() if k.endswith("mu.a.b")} == {("embed", "mlp")}
    assert {v for k, v in found.items() if k.endswith("mu.b")} == {("vocab", "embed")}
