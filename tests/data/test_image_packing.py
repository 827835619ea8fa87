"""Rows of whole records within several limits."""

import numpy as np
import pytest

from ziggurat.data.image_packing import ImageRows

NEEDS = np.random.default_rng(0).integers([1, 0], [40, 3], (60, 2))
ROOM = (64, 3)


@pytest.mark.parametrize("shuffle", [False, True])
def test_each_epoch_holds_each_record_once_within_the_limits(shuffle):
    rows = ImageRows(NEEDS, ROOM, 16, 5, shuffle)
    for epoch in range(2):
        held = rows.records(epoch * rows.count, (epoch + 1) * rows.count)
        assert sorted(np.concatenate(held).tolist()) == list(range(60))
        assert all((NEEDS[row].sum(0) <= ROOM).all() for row in held)
    assert rows.count < 60


def test_rows_depend_on_their_number_alone():
    rows = ImageRows(NEEDS, ROOM, 16, 5, True)
    whole = rows.records(0, 2 * rows.count)
    again = ImageRows(NEEDS, ROOM, 16, 5, True).records(rows.count - 2, rows.count + 3)
    for one, other in zip(whole[rows.count - 2 :], again):
        np.testing.assert_array_equal(one, other)
    epochs = [np.concatenate(whole[: rows.count]), np.concatenate(whole[rows.count :])]
    assert not np.array_equal(*epochs)


def test_a_window_of_one_gives_each_record_a_row():
    held = ImageRows(NEEDS, ROOM, 1, 5, False).records(0, 60)
    assert [row.tolist() for row in held] == [[number] for number in range(60)]
