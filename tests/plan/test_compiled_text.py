"""Reading collectives out of HLO text, and what they take on the wires."""

import dataclasses

import numpy as np
import pytest

from ziggurat.plan.compiled_text import collectives, executions, first_group, parse
from ziggurat.plan.fabric import Fabric
from ziggurat.plan.topology import Topology

TEXT = """\
HloModule jit_step, is_scheduled=true, num_partitions=8

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%all-reduce-scatter.1 (input: bf16[8,256]) -> bf16[2,256] {
  %input = bf16[8,256]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.7 = bf16[8,256]{1,0:T(8,128)(2,1)} all-reduce(%input), channel_id=3, replica_groups={{0,2,4,6},{1,3,5,7}}, to_apply=%add
  ROOT %slice = bf16[2,256]{1,0} dynamic-slice(%all-reduce.7, %input), dynamic_slice_sizes={2,256}
}

%inner (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %p = (s32[], f32[4]{0}) parameter(0)
  %all-gather.2 = bf16[64,128]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=1, replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}
  ROOT %t = (s32[], f32[4]{0}) tuple(%p, %p)
}

%inner_condition (p: (s32[], f32[4])) -> pred[] {
  %limit = s32[]{:T(128)} constant(3)
  %p = (s32[], f32[4]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %less = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%outer (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %p = (s32[], f32[4]{0}) parameter(0)
  %while.1 = (s32[], f32[4]{0}) while(%p), condition=%inner_condition, body=%inner
  %fusion.1 = bf16[2,256]{1,0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %t = (s32[], f32[4]{0}) tuple(%p, %p)
}

%outer_condition (p: (s32[], f32[4])) -> pred[] {
  %p = (s32[], f32[4]{0}) parameter(0)
  ROOT %less = pred[] constant(true)
}

ENTRY %main (a: f32[4]) -> f32[] {
  %a = f32[4]{0} parameter(0)
  %while.2 = (s32[], f32[4]{0}) while(%a), condition=%outer_condition, body=%outer, backend_config={"known_trip_count":{"n":"5"}}
  %all-reduce.9 = (f32[100]{0}, f32[28]{0}) all-reduce(%a, %a), channel_id=9, replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1'}, to_apply=%add
  %start = (f32[4]{0}, f32[16]{0}) all-gather-start(%a), channel_id=10, replica_groups={{0,2,4,6},{1,3,5,7}}, dimensions={0}
  %done = f32[16]{0} all-gather-done(%start)
  %permute = (f32[32]{0}, f32[32]{0}, u32[], u32[]) collective-permute-start(%a), channel_id=11, source_target_pairs={{0,1},{1,0}}
  %alone = f32[32]{0} all-reduce(%a), channel_id=12, replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%add
  ROOT %sum = f32[] reduce(%a), to_apply=%add
}
"""  # noqa: E501


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a device of a topology says of itself."""

    coords: tuple[int, int, int]
    slice_index: int = 0


@dataclasses.dataclass(frozen=True)
class Grid:
    """What a mesh says of itself."""

    devices: np.ndarray
    axis_names: tuple[str, ...]


def grid(shape, mesh, names, slices=1):
    """Chips of a torus in order of their last axis, as a mesh; slices lie along the first axis."""
    places = list(np.ndindex(*shape))
    chips = [Chip(tuple(map(int, p)), s) for s in range(slices) for p in places]
    array = np.empty(len(chips), object)
    array[:] = chips
    return Grid(array.reshape(mesh), names)


@pytest.fixture
def fabric():
    return Fabric(Topology.parse("v5p:2x2x2"), grid((2, 2, 2), (4, 2), ("fsdp", "tensor")))


def test_loops_multiply():
    counts = executions(parse(TEXT))
    assert counts["outer"] == 5
    assert counts["inner"] == 15
    assert counts["all-reduce-scatter.1"] == 5
    assert counts["add"] == 0


def test_every_collective_with_its_size_count_and_axes(fabric):
    found = {(c.kind, c.route.axes): (c.bytes, c.count) for c in collectives(TEXT, fabric)}
    assert found == {
        ("reduce-scatter", ("fsdp",)): (8 * 256 * 2, 5),
        ("all-gather", ("fsdp",)): (16 * 4, 1),
        ("all-reduce", ("tensor",)): (128 * 4, 1),
        ("collective-permute", ("tensor",)): (32 * 4, 1),
    } | {
        ("all-gather", ("fsdp",)): found["all-gather", ("fsdp",)],
    }
    gathers = sorted(
        (c.bytes, c.count) for c in collectives(TEXT, fabric) if c.kind == "all-gather"
    )
    assert gathers == [(16 * 4, 1), (64 * 128 * 2, 15)]


@pytest.mark.parametrize(
    ("rest", "group"),
    [
        ("replica_groups={}", [0, 1, 2, 3]),
        ("replica_groups=[2,2]<=[4]", [0, 1]),
        ("replica_groups=mesh['a'=2,'b'=2] {'b','a'}", [0, 1, 2, 3]),
        ("source_target_pairs={{0,0}}", [0]),
    ],
)
def test_groups(rest, group):
    assert first_group(rest, 4) == group


def test_transfers_across_slices(fabric):
    """libtpu hands them to the host; the text is as it writes it, attributes shortened."""
    names = ("data", "fsdp")
    two = Fabric(Topology.parse("v5p:2x2x2", 2), grid((2, 2, 2), (2, 8), names, slices=2))
    assert two.across_slices == [0, 8]
    send = (
        "%send = (bf16[4,8,128]{2,1,0:T(8,128)(2,1)}, u32[]{:S(2)}, token[]) send(%a, %after), "
        "channel_id=6, is_host_transfer=true, frontend_attributes="
        '{_xla_host_transfer_handler_name="xla_megascale_runtime",'
        '_xla_megascale_target="{1,2}x{0:7}",_xla_megascale_transfer_type="KIND"}'
    )
    text = "ENTRY %main (a: f32[4]) -> f32[] {\n  LINE\n}\n"
    size = 4 * 8 * 128 * 2
    for kind, whole in (("ALL_REDUCE", size), ("ALL_GATHER", 2 * size)):
        (found,) = collectives(text.replace("LINE", send.replace("KIND", kind)), two)
        assert (found.kind, found.bytes) == (kind.lower().replace("_", "-"), whole)
        assert found.route.axes == ("data",)
        assert found.ici_s == 0
    assert found.dcn_s == pytest.approx(size / 6.25e9)


def test_routes_use_the_links_of_the_axes_they_span():
    """A v5p chip has six links of 100 GB/s each way."""
    names = ("data", "fsdp", "tensor")
    ring = Fabric(Topology.parse("v5p:4x4x4"), grid((4, 4, 4), (4, 4, 4), names))
    assert ring.along(("tensor",)).ici_bytes_per_s == 200e9  # closed: both ways around
    assert ring.along(("fsdp", "tensor")).ici_bytes_per_s == 400e9
    assert ring.along(("fsdp", "tensor")).axes == ("fsdp", "tensor")
    half = Fabric(Topology.parse("v5p:4x4x4"), grid((4, 4, 4), (4, 8, 2), names))
    assert half.along(("tensor",)).ici_bytes_per_s == 100e9  # part of an axis: open
    flat = Fabric(Topology.parse("v5e:4x4"), grid((4, 4, 1), (4, 2, 2), names))
    assert flat.along(("data",)).ici_bytes_per_s == 50e9  # v5e closes at 16 only


def test_seconds_of_collectives():
    names = ("data", "fsdp")
    two = Fabric(Topology.parse("v5p:2x2x2", 2), grid((2, 2, 2), (2, 8), names, slices=2))
    route = two.along(("data",))
    assert (route.ways, route.slices) == (1, 2)
    inside = two.along(("fsdp",))
    rate = inside.ici_bytes_per_s
    assert (inside.ways, inside.slices, rate) == (8, 1, 300e9)
    from ziggurat.plan.fabric import Collective

    gather = Collective(kind="all-gather", bytes=8e9, route=inside, count=3.0)
    assert gather.ici_s == pytest.approx(3 * 7e9 / rate)
    assert gather.dcn_s == 0
    reduce = Collective(kind="all-reduce", bytes=1e9, route=route, count=2.0)
    assert reduce.ici_s == 0
    assert reduce.dcn_s == pytest.approx(2 * 2 * 0.5e9 / 6.25e9)
    both = Collective(
        kind="reduce-scatter", bytes=8e9, route=two.along(("data", "fsdp")), count=1.0
    )
    assert both.ici_s == pytest.approx(7e9 / rate)
    assert both.dcn_s == pytest.approx(8e9 / 8 / 2 / 6.25e9)
