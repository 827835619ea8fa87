"""Names of topologies, and what is said of wrong ones."""

import jax
import pytest

from ziggurat.core.errors import ConfigError
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
