"""Built meshes on eight virtual devices: sizes, order of devices, specs, constraints, errors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ziggurat.core.dimensions import DIMENSIONS
from ziggurat.core.errors import ShardingError
from ziggurat.mesh import DcnConfig, MeshConfig, build, constrain
from ziggurat.mesh.config import AXES, DEFAULT_RULES

SPECS = {
    "batch": ("data", "fsdp", "expert"),
    "sequence": "context",
    "embed": "fsdp",
    "mlp": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "vocab": "tensor",
    "experts": "expert",
    "layers": "pipeline",
    "head_dim": None,
    "latent": None,
}


def line(error: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("mesh", "sizes"),
    [
        (MeshConfig(), {"fsdp": 8}),
        (MeshConfig(fsdp=1, data=-1), {"data": 8}),
        (MeshConfig(fsdp=2, tensor=2, data=2), {"fsdp": 2, "tensor": 2, "data": 2}),
        (MeshConfig(tensor=2, context=2), {"fsdp": 2, "tensor": 2, "context": 2}),
        (MeshConfig(fsdp=1, expert=2, pipeline=-1), {"expert": 2, "pipeline": 4}),
        (MeshConfig(fsdp=2, dcn=DcnConfig(data=2, fsdp=2)), {"data": 2, "fsdp": 4}),
        (MeshConfig(dcn=DcnConfig(pipeline=2)), {"pipeline": 2, "fsdp": 4}),
    ],
)
def test_sizes_fill_eight_devices(mesh, sizes):
    layout = build(mesh)
    assert {axis: size for axis, size in layout.sizes.items() if size > 1} == sizes
    assert layout.mesh.size == 8


def test_one_device():
    layout = build(MeshConfig(), jax.devices()[:1])
    assert set(layout.sizes.values()) == {1}
    assert layout.sharding(("batch", "embed"), (3, 5)).is_fully_replicated


@pytest.mark.parametrize(
    ("mesh", "parts"),
    [
        (MeshConfig(fsdp=3), ["fsdp=3", "8 devices", "set one axis to -1"]),
        (MeshConfig(tensor=3), ["fsdp=-1 x tensor=3", "8 devices"]),
        (MeshConfig(fsdp=1), ["found 1 device", "8 devices"]),
        (MeshConfig(fsdp=16), ["fsdp=16", "8 devices"]),
        (MeshConfig(dcn=DcnConfig(data=3)), ["mesh.dcn", "3 slices", "divisor of 8"]),
        (MeshConfig(fsdp=3, dcn=DcnConfig(data=2)), ["4 devices in each of 2 slices"]),
    ],
)
def test_a_mesh_of_another_size_is_refused(mesh, parts):
    with pytest.raises(ShardingError) as caught:
        build(mesh)
    for part in parts:
        assert part in line(caught), line(caught)


def test_neighbours_on_the_last_axes_are_neighbouring_devices():
    ids = np.vectorize(lambda d: d.id)(build(MeshConfig(data=2, fsdp=2, tensor=2)).mesh.devices)
    assert ids.reshape(2, 2, 2).tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]


@pytest.mark.parametrize(
    ("mesh", "slice_of"),
    [
        (MeshConfig(dcn=DcnConfig(data=2)), lambda at: at["data"]),
        (MeshConfig(data=2, fsdp=2, dcn=DcnConfig(fsdp=2)), lambda at: at["fsdp"] // 2),
        (MeshConfig(fsdp=4, dcn=DcnConfig(fsdp=2)), lambda at: at["fsdp"] // 4),
        (MeshConfig(dcn=DcnConfig(pipeline=2, data=2)), lambda at: 2 * at["pipeline"] + at["data"]),
    ],
)
def test_only_the_dcn_part_of_an_axis_crosses_slices(mesh, slice_of):
    layout = build(mesh)
    per_slice = 8 // (mesh.dcn.data * mesh.dcn.fsdp * mesh.dcn.pipeline)
    for index, device in np.ndenumerate(layout.mesh.devices):
        at = dict(zip(layout.mesh.axis_names, index))
        assert device.id // per_slice == slice_of(at), (at, device)


def test_rules_are_for_dimensions_of_the_glossary():
    assert DEFAULT_RULES.keys() <= {dimension.axis for dimension in DIMENSIONS}
    assert DEFAULT_RULES.keys() == SPECS.keys()


def test_the_order_of_axes_is_that_of_the_wire():
    assert AXES == ("pipeline", "data", "fsdp", "expert", "context", "tensor")
    assert DcnConfig.__annotations__.keys() < set(AXES)


@pytest.mark.parametrize(("axis", "spec"), SPECS.items())
def test_spec_of_each_axis(axis, spec):
    layout = build(MeshConfig(fsdp=2, tensor=2, context=2))
    assert layout.spec((axis,)) == P(spec)
    assert layout.spec((None, axis)) == P(None, spec)
    mesh_axes = spec if isinstance(spec, tuple) else (spec,) if spec else ()
    assert layout.ways(axis) == np.prod([layout.sizes[a] for a in mesh_axes])


def test_a_mesh_axis_is_used_once_by_the_first_that_asks():
    layout = build(MeshConfig(fsdp=2, tensor=2, data=2))
    assert layout.spec(("batch", "embed")) == P(("data", "fsdp", "expert"), None)
    assert layout.spec(("embed", "batch")) == P("fsdp", ("data", "expert"))
    assert layout.spec(("heads", "mlp")) == P("tensor", None)


def test_rules_may_be_replaced_one_by_one():
    rules = {"kv_heads": (), "embed": ("fsdp", "tensor")}
    layout = build(MeshConfig(fsdp=2, tensor=4, rules=rules))
    assert layout.spec(("kv_heads",)) == P(None)
    assert layout.spec(("embed", "mlp")) == P(("fsdp", "tensor"), None)
    assert layout.spec(("heads",)) == P("tensor")
    assert layout.ways("embed") == 8
    layout.require_divides("heads", {"kv_heads": 3, "heads": 4})


def test_a_dimension_that_does_not_divide_is_named():
    layout = build(MeshConfig(fsdp=2, tensor=4))
    with pytest.raises(ShardingError) as caught:
        layout.sharding(("embed", "mlp"), (64, 30), "blocks.mlp.up.kernel")
    expected = "cannot shard blocks.mlp.up.kernel over the mesh: found mlp = 30; expected a "
    assert line(caught) == expected + (
        "multiple of 4 (tensor=4); change the mesh or set mesh.rules.mlp"
    )
    with pytest.raises(ShardingError, match=r"batch = 3; expected a multiple of 2 .*data=1"):
        layout.sharding(("batch",), (3,))
    with pytest.raises(ShardingError, match="heads = 6"):
        layout.require_divides("the heads", {"heads": 6})


def test_tree_names_the_leaf():
    layout = build(MeshConfig(fsdp=8))
    axes = {"a": {"kernel": ("embed", "mlp")}, "b": ("vocab", "embed")}

    def shapes(width):
        return {
            "a": {"kernel": jax.ShapeDtypeStruct((16, 3), jnp.float32)},
            "b": jax.ShapeDtypeStruct((5, width), jnp.float32),
        }

    shardings = layout.tree(axes, shapes(8))
    assert shardings["a"]["kernel"].spec == P("fsdp", "tensor")
    assert shardings["b"].spec == P("tensor", "fsdp")
    with pytest.raises(ShardingError, match="cannot shard b over"):
        layout.tree(axes, shapes(9))


def test_arrays_land_where_the_layout_says():
    layout = build(MeshConfig(fsdp=2, tensor=4))
    x = jax.device_put(jnp.arange(32.0).reshape(4, 8), layout.sharding(("embed", "mlp"), (4, 8)))
    assert {shard.data.shape for shard in x.addressable_shards} == {(2, 2)}
    np.testing.assert_array_equal(np.asarray(x), np.arange(32.0).reshape(4, 8))
    assert jax.device_put(x, layout.replicated()).is_fully_replicated


def test_constrain_places_activations_under_jit():
    layout = build(MeshConfig(fsdp=2, tensor=2, context=2))
    x = jnp.arange(64.0).reshape(4, 4, 4)

    def place(x):
        return constrain(x * 2, ("batch", "sequence", "mlp"))

    with layout.active():
        y = jax.jit(place)(x)
    assert y.sharding.is_equivalent_to(layout.sharding(("batch", "sequence", "mlp")), 3)
    assert {shard.data.shape for shard in y.addressable_shards} == {(2, 2, 2)}
    np.testing.assert_array_equal(np.asarray(y), 2 * np.asarray(x))


def test_constrain_does_nothing_outside_a_layout_or_on_one_device():
    x = jnp.ones((3, 5, 7))
    assert constrain(x, ("batch", "sequence", "mlp")) is x
    with build(MeshConfig(), jax.devices()[:1]).active():
        assert constrain(x, ("batch", "sequence", "mlp")) is x
    layout = build(MeshConfig())
    with pytest.raises(KeyError), layout.active():  # leaves the block through an error
        raise KeyError
    assert constrain(x, ("batch", "sequence", "mlp")) is x


def test_constrain_names_the_dimension_that_does_not_divide():
    with build(MeshConfig()).active(), pytest.raises(ShardingError) as caught:
        jax.jit(lambda x: constrain(x, ("batch", "sequence", "embed")))(jnp.ones((3, 4, 8)))
    assert "batch = 3" in line(caught)
    assert "fsdp=8" in line(caught)


def test_layouts_nest():
    outer, inner = build(MeshConfig(fsdp=8)), build(MeshConfig(fsdp=1, tensor=8))
    axes = ("batch", "sequence", "mlp")

    def placed_by(layout):
        y = jax.jit(lambda x: constrain(x, axes))(jnp.ones((8, 1, 8)))
        return y.sharding.is_equivalent_to(layout.sharding(axes), 3)

    with outer.active():
        with inner.active():
            assert placed_by(inner)
            assert not placed_by(outer)
        assert placed_by(outer)


def test_what_may_be_replicated_hands_its_axes_to_another_dimension():
    layout = build(MeshConfig(fsdp=1, tensor=4), jax.devices()[:4])
    layout = dataclasses.replace(layout, replicable=frozenset({"vocab", "kv_heads"}))
    assert layout.sharding(("vocab", "embed"), (97, 16)).spec == P(None, "tensor")
    assert layout.sharding(("vocab", "embed"), (96, 16)).spec == P("tensor", "fsdp")
    assert layout.sharding(("kv_heads", "heads"), (2, 16)).spec == P(None, "tensor")
    assert layout.sharding(("vocab",), (97,)).spec == P(None)
    layout.require_divides("the heads", {"heads": 8, "kv_heads": 2})
    with pytest.raises(ShardingError, match="heads = 6"):
        layout.require_divides("the heads", {"heads": 6, "kv_heads": 2})
