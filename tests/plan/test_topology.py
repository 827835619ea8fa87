"""Names of topologies, and what is said of wrong ones."""

import itertools
import math
import types

import jax
import pytest

from ziggurat import mesh
from ziggurat.core.errors import ConfigError, ShardingError
from ziggurat.mesh import layout
from ziggurat.plan import GENERATIONS, Topology


def test_shapes_of_every_generation():
    assert [Topology.parse(n).chips for n in ("v5e:4x8", "v6e:16x16", "v5p:2x2x1")] == [32, 256, 4]
    assert Topology.parse("tpu7x:4x4x8", 2).chips == 256
    assert Topology.parse("v5p:8x4x4") != Topology.parse("v5p:4x4x8")
    for generation in GENERATIONS.values():
        assert generation.chip.torus_axes == len(generation.shapes[-1])
        assert all(chips > 0 for shape in generation.shapes for chips in shape)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("v5p", "expected GENERATION:SHAPE"),
        ("v5p:4x4x", "expected GENERATION:SHAPE"),
        ("v9:4x4", "expected one of v5e, v5p, v6e, tpu7x"),
        ("v5:4x4x4", "did you mean v5"),
        ("v5e:3x3", r"nearest: v5e:2x4 \(8 chips\) or v5e:4x4 \(16 chips\)"),
        ("v5p:4x4x6", r"nearest: v5p:4x4x4 \(64 chips\) or v5p:4x4x8 \(128 chips\)"),
        ("v6e:32x32", r"nearest: v6e:16x16 \(256 chips\)"),
        ("v5e:2x2x1", "a shape that v5e has; nearest: v5e:"),
        ("v5p:0x4x4", "a shape that v5p has; nearest: v5p:"),
    ],
)
def test_wrong_names_get_the_nearest(name, text):
    with pytest.raises(ConfigError, match=text) as caught:
        Topology.parse(name)
    assert "\n" not in str(caught.value)


def test_slices():
    with pytest.raises(ConfigError, match="--slices: found 0"):
        Topology.parse("v5e:2x2", 0)


def test_a_process_that_described_a_topology_can_still_be_profiled(tmp_path):
    """Left to JAX, libtpu's profiler would be registered too, and end the process."""
    pytest.importorskip("libtpu")
    assert len(Topology.parse("v5e:2x2").devices()) == 4
    with jax.profiler.trace(str(tmp_path)):
        jax.block_until_ready(jax.numpy.ones(3) + 1)
    assert list(tmp_path.rglob("*.xplane.pb"))


def test_larger_and_rings():
    assert [str(t) for t in Topology.parse("v5e:8x8").larger] == ["v5e:8x16", "v5e:16x16"]
    assert [Topology.parse("v5e:8x16").wraps(axis) for axis in (0, 1)] == [False, True]
    assert Topology.parse("v5p:4x4x8").wraps(0)
    assert not Topology.parse("v5p:2x4x4").wraps(1)


def devices_of(topology):
    """Devices with the attributes by which a mesh is laid out, without libtpu."""
    edges = (*topology.shape, 1)[:3]
    places = itertools.product(*(range(edge) for edge in reversed(edges)))
    cores = range(topology.chip.devices)
    return [
        types.SimpleNamespace(
            coords=list(reversed(place)),
            core_on_chip=core,
            id=number,
            process_index=number // 4,
            platform="tpu",
            device_kind=topology.chip.kinds[0],
            slice_index=0,
        )
        for number, (place, core) in enumerate(itertools.product(places, cores))
    ]


SHAPES = [(g.name, s) for g in GENERATIONS.values() for s in g.shapes if math.prod(s) <= 1536]
MESHES = ({"fsdp": -1}, {"tensor": 8}, {"data": 2}, {"tensor": 8, "context": 8})


def test_every_shape_on_offer_has_a_mesh_or_one_line():
    """``mesh_utils`` cannot split axes such as 20 or 28; then chips lie in order."""
    primes = (5, 7, 11)
    odd = [(n, s) for n, s in SHAPES if any(e % p == 0 for e in s for p in primes)]
    plain = [(n, s) for n, s in SHAPES if (n, s) not in odd]
    assert ("v5p", (4, 4, 20)) in odd
    for name, shape in odd + plain[::4]:
        topology = Topology(GENERATIONS[name], shape)
        devices = devices_of(topology)
        for sizes in MESHES if math.prod(shape) <= 640 else MESHES[:1]:
            wanted = mesh.MeshConfig(**sizes)
            if len(devices) % math.prod(n for n in sizes.values() if n > 0):
                with pytest.raises(ShardingError, match="a product of"):
                    layout._fill(wanted, len(devices), 1)
                continue
            parts = tuple(layout._fill(wanted, len(devices), 1).values())
            found = layout._arrange(devices, parts, (1,) * len(parts))
            assert found.shape == parts
            assert sorted(d.id for d in found.flat) == list(range(len(devices))), (topology, sizes)
