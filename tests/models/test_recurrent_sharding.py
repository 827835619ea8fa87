"""Training of recurrent layers over every kind of mesh: loss and gradients of one device."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.nn.test_recurrent_stacks import STACKS
from tests.serve.llm.test_layer_states import CONTEXT, MixedConfig

from ziggurat import mesh
from ziggurat.models import LanguageModel
from ziggurat.nn import Packed

AT = jnp.arange(CONTEXT)
SEGMENTS = jnp.broadcast_to(1 + (AT >= 50).astype(int) + (AT >= 80).astype(int), (4, CONTEXT))
"""Documents that cross the border between two devices' parts of a sequence, at 48."""
POSITIONS = jnp.broadcast_to(AT % 50, (4, CONTEXT))


@functools.cache
def alone(stack):
    model = LanguageModel.build(MixedConfig(stack=stack))
    params = model.init(jax.random.key(3))
    return model, params, jax.jit(jax.value_and_grad(lambda p: loss(model, p)))(params)


def loss(model, params):
    tokens = jax.random.randint(jax.random.key(2), (4, CONTEXT), 0, 258)
    logits = model.logits(params, tokens, POSITIONS, Packed(SEGMENTS))
    return jax.nn.log_softmax(logits)[..., 0].mean()


MESHES = [{"context": 2, "tensor": 2}, {"fsdp": 2, "data": 2}, {"tensor": 2}, {"context": 2}]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stack", "axes"),
    [(name, axes) for name in STACKS for axes in MESHES[: 4 if name == "delta_net" else 2]],
)
def test_loss_and_gradients_are_those_of_one_device(stack, axes):
    model, params, (expected, gradients) = alone(stack)
    layout = mesh.build(mesh.MeshConfig(**axes), jax.devices()[: math.prod(axes.values())])
    placed = jax.device_put(params, model.shardings(layout))
    with layout.active():
        found, sharded = jax.jit(jax.value_and_grad(lambda p: loss(model, p)))(placed)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(sharded), jax.tree.leaves(gradients)):
        # float32 in another order, magnified where vectors are scaled to length one
        np.testing.assert_allclose(a, b, atol=2e-3 * float(jnp.abs(b).max()))
