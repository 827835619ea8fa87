"""Hybrids of gated delta nets, gated attention and experts: depth, meshes, packed rows."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ziggurat import mesh
from ziggurat.core.errors import ConfigError, ModelError
from ziggurat.models import LanguageModel, Qwen3NextConfig, family_for_config
from ziggurat.models.conversion.weight_names import AxisSlice
from ziggurat.nn import Packed

CONFIG = Qwen3NextConfig(
    vocab_size=64,
    d_model=16,
    n_layers=4,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    rotary_dim=4,
    d_ff=24,
    n_experts=4,
    experts_per_token=2,
    d_ff_expert=8,
    d_ff_shared=12,
    delta_key_heads=2,
    delta_value_heads=4,
    delta_key_dim=4,
    delta_value_dim=6,
    pattern=("linear", "full"),
    init_std=0.3,
)
LENGTH = 32
AT = jnp.arange(LENGTH)
SEGMENTS = jnp.broadcast_to(1 + (AT >= 20).astype(int), (4, LENGTH))
POSITIONS = jnp.broadcast_to(AT % 20, (4, LENGTH))


def loss(model, params):
    tokens = jax.random.randint(jax.random.key(2), (4, LENGTH), 0, 64)
    logits = model.logits(params, tokens, POSITIONS, Packed(SEGMENTS))
    return jax.nn.log_softmax(logits)[..., 0].mean()


@pytest.mark.slow
@pytest.mark.parametrize("axes", [{"expert": 2, "tensor": 2}, {"context": 2, "fsdp": 2}])
def test_packed_rows_on_a_mesh_train_as_on_one_device(axes):
    model = LanguageModel.build(CONFIG)
    params = model.init(jax.random.key(3))
    expected, gradients = jax.jit(jax.value_and_grad(lambda p: loss(model, p)))(params)
    layout = mesh.build(mesh.MeshConfig(**axes), jax.devices()[: math.prod(axes.values())])
    placed = jax.device_put(params, model.shardings(layout))
    with layout.active():
        found, sharded = jax.jit(jax.value_and_grad(lambda p: loss(model, p)))(placed)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(sharded), jax.tree.leaves(gradients)):
        # float32 in another order, magnified where vectors are scaled to length one
        np.testing.assert_allclose(a, b, atol=2e-3 * float(jnp.abs(b).max()))


def test_a_program_does_not_grow_with_depth():
    """The scan goes over the period of four layers, so 64 compile like 8."""

    def equations(layers):
        pattern = ("linear", "linear", "linear", "full")
        model = LanguageModel.build(dataclasses.replace(CONFIG, n_layers=layers, pattern=pattern))
        traced = jax.make_jaxpr(lambda p: loss(model, p))(model.abstract)
        return str(traced).count(" = ")

    assert equations(64) == equations(8)


def test_groups_of_a_slice_are_of_every_head():
    query, gate = (AxisSlice(0, slice(a, a + 2), groups=3) for a in (0, 2))
    rows = np.arange(12)
    assert rows[query.of(12)].tolist() == [0, 1, 4, 5, 8, 9]
    assert sorted([*rows[query.of(12)], *rows[gate.of(12)]]) == rows.tolist()


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"rotary_dim": 3}, "rotary_dim: found 3, expected an even number, 2 to head_dim = 8"),
        ({"delta_value_heads": 3}, "delta_value_heads: found 3, expected a multiple of 2"),
        ({"pattern": ()}, "pattern: found \\(\\), expected at least one entry"),
        ({"d_ff_shared": 0}, "d_ff_shared: found 0, expected a number >= 1"),
    ],
)
def test_a_config_that_cannot_be(change, part):
    with pytest.raises((ConfigError, ValueError), match=part):
        dataclasses.replace(CONFIG, **change)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"layer_types": ["mamba"] * 4}, "layer_types"),
        ({"full_attention_interval": 0}, "full_attention_interval"),
        ({"partial_rotary_factor": "half"}, "partial_rotary_factor"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "type longrope"),
    ],
)
def test_a_published_config_that_is_not_read(change, part):
    family = family_for_config({"architectures": ["Qwen3NextForCausalLM"]})
    values = family.to_hf(CONFIG)
    values.pop("layer_types")
    with pytest.raises(ModelError, match=part) as caught:
        family.from_hf(values | change)
    assert "\n" not in str(caught.value)
