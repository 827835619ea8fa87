"""Training of recurrent layers over every kind of mesh: loss and gradients of one device."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.serve.llm.test_layer_states import CONTEXT, MixedConfig

from ziggurat import mesh
from ziggurat.models import LanguageModel
from ziggurat.nn import Packed

MODEL = LanguageModel.build(MixedConfig())
AT = jnp.arange(CONTEXT)
SEGMENTS = jnp.broadcast_to(1 + (AT >= 50).astype(int) + (AT >= 80).astype(int), (4, CONTEXT))
"""Documents that cross the border between two devices' parts of a sequence, at 48."""
POSITIONS = jnp.broadcast_to(AT % 50, (4, CONTEXT))


@pytest.fixture(scope="module")
def alone():
    params = MODEL.init(jax.random.key(3))
    return params, jax.jit(jax.value_and_grad(loss))(params)


def loss(params):
    tokens = jax.random.randint(jax.random.key(2), (4, CONTEXT), 0, 258)
    logits = MODEL.logits(params, tokens, POSITIONS, Packed(SEGMENTS))
    return jax.nn.log_softmax(logits)[..., 0].mean()


@pytest.mark.parametrize(
    "axes", [{"tensor": 2}, {"context": 2}, {"fsdp": 2, "data": 2}, {"context": 2, "tensor": 2}]
)
def test_loss_and_gradients_are_those_of_one_device(alone, axes):
    params, (expected, gradients) = alone
    layout = mesh.build(mesh.MeshConfig(**axes), jax.devices()[: math.prod(axes.values())])
    placed = jax.device_put(params, MODEL.shardings(layout))
    with layout.active():
        found, sharded = jax.jit(jax.value_and_grad(lambda p: loss(p)))(placed)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(sharded), jax.tree.leaves(gradients)):
        # float32 in another order, magnified where vectors are scaled to length one
        np.testing.assert_allclose(a, b, atol=2e-3 * float(jnp.abs(b).max()))
