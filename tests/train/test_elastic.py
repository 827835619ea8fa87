"""Which numbers of hosts a run can use, and what it does with fewer than it was written for."""

import pytest
from tests.train.runs import run

from ziggurat.core.errors import ShardingError
from ziggurat.train.elastic import fit, usable

DATA = ("mesh.data=-1", "mesh.fsdp=1", "data.batch_size=12")


def test_the_micro_batch_of_a_device_stays_the_same():
    tiny = run(*DATA, "train.accumulate=1")
    fitted = {hosts: fit(tiny, hosts, 1, wanted=4) for hosts in (6, 4, 3, 2, 1)}
    assert {hosts: f.train.accumulate for hosts, f in fitted.items()} == {
        6: 1,
        4: 1,
        3: 2,
        2: 2,
        1: 4,
    }
    assert all(f.data == tiny.data for f in fitted.values())


def test_what_does_not_divide_is_refused():
    with pytest.raises(ShardingError, match=r"batch = 12.*multiple of 5"):
        fit(run(*DATA), 5, 1, wanted=5)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (DATA, [1, 2, 3, 4, 6]),
        # 32 channels of the parameters divide over 1, 2 and 4 shards only
        (("mesh.fsdp=-1", "data.batch_size=12"), [1, 2, 4]),
        (("mesh.data=2", "mesh.fsdp=1", "data.batch_size=12"), [2]),
    ],
)
def test_usable_numbers_of_hosts(overrides, expected):
    why_not = usable(run(*overrides), 1, wanted=4)
    assert [hosts for hosts in range(1, 7) if not why_not(hosts)] == expected
    assert "expected" in why_not(5)
