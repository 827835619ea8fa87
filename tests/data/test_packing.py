"""Each plan against a plain Python oracle, and every document put back together from its rows."""

import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ziggurat.data.concat import BLOCK, ConcatPlan
from ziggurat.data.order import Permutation
from ziggurat.data.packing import BestFit, Concat, FirstFit, Single, padding, plan
from ziggurat.data.pieces import Pieces, assemble

PACKINGS = [Concat(), FirstFit(window=7), BestFit(window=7), Single()]
IDS = ["concat", "first_fit", "best_fit", "none"]
LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=60)


def corpus(lengths):
    """Tokens that say where they come from: 1000 times the document plus the place in it."""
    documents = [[1000 * (d + 1) + i for i in range(n)] for d, n in enumerate(lengths)]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return documents, np.array([*itertools.chain(*documents)], np.uint32), offsets


def fill(packer, offsets, tokens, epoch, first, stop, row_tokens, **settings):
    pieces = packer.pieces(epoch, first, stop)
    begins = offsets[pieces.document]
    lengths = offsets[pieces.document + 1] - begins
    return pieces, assemble(
        pieces,
        tokens,
        begins,
        lengths,
        rows=stop - first,
        row_tokens=row_tokens,
        **settings,
    )


def oracle_concat(documents, order, row_tokens):
    """One token after the other, as slowly and plainly as possible."""
    stream = []
    for number in order:
        document = documents[number]
        for place, token in enumerate(document):
            following = document[place + 1] if place + 1 < len(document) else None
            stream.append((token, following, number, place))
    rows = []
    while stream:
        cut, stream = stream[:row_tokens], stream[row_tokens:]
        row = {"tokens": [], "targets": [], "segment_ids": [], "positions": [], "loss_mask": []}
        segment, last = 0, None
        for token, following, number, place in cut:
            segment += number != last
            last = number
            row["tokens"].append(token)
            row["targets"].append(following or 0)
            row["segment_ids"].append(segment)
            row["positions"].append(place)
            row["loss_mask"].append(float(following is not None))
        for values in row.values():
            values += [0] * (row_tokens - len(values))
        rows.append(row)
    return {key: np.array([row[key] for row in rows]) for key in rows[0]}


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(2, 17), st.integers(0, 3), st.booleans())
def test_concat_equals_the_oracle(lengths, row_tokens, epoch, shuffle):
    documents, tokens, offsets = corpus(lengths)
    packer = plan(Concat(), np.array(lengths), row_tokens, 5, shuffle)
    count = len(lengths)
    order = Permutation(count, 5, epoch)(np.arange(count)) if shuffle else range(count)
    expected = oracle_concat(documents, order, row_tokens)
    _, rows = fill(packer, offsets, tokens, epoch, 0, packer.rows, row_tokens)
    assert set(rows) == set(expected)
    turn = np.arange(packer.rows)
    turn = Permutation(packer.rows, 5, epoch, "rows")(turn) if shuffle else turn
    for key, values in expected.items():
        np.testing.assert_array_equal(rows[key], values[turn], err_msg=key)


@pytest.mark.parametrize("packing", PACKINGS, ids=IDS)
@settings(max_examples=40, deadline=None)
@given(lengths=LENGTHS, row_tokens=st.integers(2, 17), epoch=st.integers(0, 2))
def test_documents_come_back_whole_and_once(packing, lengths, row_tokens, epoch):
    documents, tokens, offsets = corpus(lengths)
    packer = plan(packing, np.array(lengths), row_tokens, 1, True)
    _, rows = fill(packer, offsets, tokens, epoch, 0, packer.rows, row_tokens)
    kept = rows["segment_ids"] > 0
    found = sorted(rows["tokens"][kept].tolist())
    limit = row_tokens if isinstance(packing, Single) else 10**6
    assert found == sorted(itertools.chain(*(d[:limit] for d in documents)))
    # Position and target follow from the token itself.
    assert (rows["positions"] == rows["tokens"] % 1000)[kept].all()
    ends = {document[-1] for document in documents}
    learned = np.array([t not in ends for t in rows["tokens"][kept].tolist()])
    np.testing.assert_array_equal(rows["loss_mask"][kept], learned)
    np.testing.assert_array_equal(rows["targets"][kept], (rows["tokens"][kept] + 1) * learned)
    for key in rows:
        assert not rows[key][~kept].any(), key


@pytest.mark.parametrize("packing", PACKINGS, ids=IDS)
def test_segments_count_from_one_and_never_mix_documents(packing):
    lengths = np.random.default_rng(0).integers(1, 30, 200)
    _, tokens, offsets = corpus(lengths.tolist())
    packer = plan(packing, lengths, 16, 0, True)
    pieces, rows = fill(packer, offsets, tokens, 0, 0, packer.rows, 16)
    for row in range(packer.rows):
        segments = rows["segment_ids"][row]
        used = segments[segments > 0]
        assert sorted(set(used.tolist())) == list(range(1, used.max() + 1))
        for segment in set(used.tolist()):
            held = rows["tokens"][row][segments == segment]
            assert len(set((held // 1000).tolist())) == 1
            assert (np.diff(held) == 1).all()
    assert len(set(zip(pieces.row.tolist(), pieces.column.tolist()))) == len(pieces.row)


@pytest.mark.parametrize("packing", PACKINGS, ids=IDS)
def test_any_range_of_rows_is_a_slice_of_the_whole(packing):
    lengths = np.random.default_rng(1).integers(1, 50, 3 * BLOCK)
    _, tokens, offsets = corpus(lengths.tolist())
    packer = plan(packing, lengths, 32, 9, True)
    _, whole = fill(packer, offsets, tokens, 1, 0, packer.rows, 32)
    cuts = [0, 1, 2, 10, 11, packer.rows // 2, packer.rows - 1, packer.rows]
    for first, stop in itertools.pairwise(cuts):
        _, part = fill(packer, offsets, tokens, 1, first, stop, 32)
        for key in whole:
            np.testing.assert_array_equal(part[key], whole[key][first:stop])


@pytest.mark.parametrize("packing", PACKINGS, ids=IDS)
def test_epochs_have_equal_size_and_another_order(packing):
    lengths = np.random.default_rng(2).integers(1, 50, 300)
    packer = plan(packing, lengths, 32, 9, True)
    one, two = (packer.pieces(epoch, 0, packer.rows) for epoch in (0, 1))
    assert not np.array_equal(one.document, two.document)
    again = packer.pieces(0, 0, packer.rows)
    np.testing.assert_array_equal(one.document, again.document)


def test_positions_from_the_row():
    _, tokens, offsets = corpus([5, 4])
    packer = plan(Concat(), np.array([5, 4]), 3, 0, False)
    _, rows = fill(packer, offsets, tokens, 0, 0, 3, 3, positions="row")
    assert rows["positions"].tolist() == [[0, 1, 2], [0, 1, 0], [0, 1, 2]]
    _, rows = fill(packer, offsets, tokens, 0, 0, 3, 3)
    assert rows["positions"].tolist() == [[0, 1, 2], [3, 4, 0], [1, 2, 3]]


def test_best_fit_cuts_only_what_is_too_long_and_fills_rows():
    lengths = np.random.default_rng(3).integers(1, 200, 4000)
    packer = plan(BestFit(window=1000), lengths, 128, 0, True)
    pieces = packer.pieces(0, 0, packer.rows)
    whole = lengths[pieces.document] <= 128
    assert (pieces.length[whole] == lengths[pieces.document][whole]).all()
    assert (pieces.column + pieces.length <= 128).all()
    assert lengths.sum() / (packer.rows * 128) > 0.97


def test_best_fit_takes_the_tightest_row():
    # Longest first into 10: 7 | 6 | then 4 fits exactly beside 6, 3 exactly beside 7.
    packer = plan(BestFit(), np.array([7, 6, 4, 3]), 10, 0, False)
    pieces = packer.pieces(0, 0, packer.rows)
    assert packer.rows == 2
    assert pieces.document.tolist() == [0, 3, 1, 2]
    assert pieces.column.tolist() == [0, 7, 0, 6]


def test_plan_survives_pickling_for_worker_processes():
    packer = ConcatPlan(np.array([3, 4, 5]), 4, 0, True)
    packer.pieces(3, 0, 1)
    copy = pickle.loads(pickle.dumps(packer))
    np.testing.assert_array_equal(copy.pieces(7, 0, 3).start, packer.pieces(7, 0, 3).start)


def test_no_pieces_make_empty_rows():
    empty = Pieces.join([])
    none = np.zeros(0, np.int64)
    rows = assemble(empty, np.zeros(3, np.uint16), none, none, rows=2, row_tokens=4)
    assert all(values.shape == (2, 4) and not values.any() for values in rows.values())


@pytest.mark.parametrize("packing", PACKINGS, ids=IDS)
@settings(max_examples=25, deadline=None)
@given(lengths=LENGTHS, row_tokens=st.integers(2, 17), seed=st.integers(0, 99))
def test_what_is_learned_survives_packing(packing, lengths, row_tokens, seed):
    _, tokens, offsets = corpus(lengths)
    learn = np.random.default_rng(seed).integers(0, 2, len(tokens)).astype(np.uint8)
    packer = plan(packing, np.array(lengths), row_tokens, 1, True)
    _, rows = fill(packer, offsets, tokens, 0, 0, packer.rows, row_tokens, learn=learn)
    ends = set((offsets[1:] - 1).tolist())
    by_token = {token: (at not in ends) and learn[at + 1] for at, token in enumerate(tokens)}
    kept = rows["segment_ids"] > 0
    expected = [by_token[token] for token in rows["tokens"][kept].tolist()]
    np.testing.assert_array_equal(rows["loss_mask"][kept], expected)
    assert not rows["loss_mask"][~kept].any()


@pytest.mark.parametrize("packing", [FirstFit(window=50), BestFit(window=50)], ids=lambda p: p.kind)
def test_bins_are_kept_reopened_and_made_anew_when_damaged(packing, tmp_path, caplog):
    lengths = np.random.default_rng(4).integers(1, 90, 300)
    memory = plan(packing, lengths, 64, 3, True)
    kept = plan(packing, lengths, 64, 3, True, tmp_path / "rows-key")
    again = plan(packing, lengths, 64, 3, True, tmp_path / "rows-key")
    copy = pickle.loads(pickle.dumps(again))
    assert len(pickle.dumps(again)) < 1000, "the rows are mapped, not copied"
    (tmp_path / "rows-key" / "part.bin").unlink()  # not truncated: others have it mapped
    (tmp_path / "rows-key" / "part.bin").write_bytes(b"")
    mended = plan(packing, lengths, 64, 3, True, tmp_path / "rows-key")
    assert "made anew" in caplog.text
    for other in (kept, again, copy, mended):
        assert (other.rows, other.tokens) == (memory.rows, lengths.sum())
        for epoch in (0, 1):
            one, two = memory.pieces(epoch, 0, memory.rows), other.pieces(epoch, 0, memory.rows)
            for name in ("row", "column", "document", "start", "length"):
                np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def naive_fit(lengths, row_tokens, kind):
    """Which documents share a row, by trying every row for each document, longest first."""
    rows = []
    for number in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        room = [row_tokens - sum(lengths[n] for n in row) for row in rows]
        fits = [n for n, free in enumerate(room) if free >= lengths[number]]
        if not fits:
            rows.append([number])
        else:
            rows[fits[0] if kind == "first_fit" else min(fits, key=lambda n: room[n])].append(
                number
            )
    return sorted(map(sorted, rows))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=40))
def test_first_fit_decreasing_equals_trying_every_row(lengths):
    made = plan(FirstFit(window=100), np.array(lengths), 20, 0, False)
    pieces = made.pieces(0, 0, made.rows)
    rows = [pieces.document[pieces.row == row].tolist() for row in range(made.rows)]
    assert sorted(map(sorted, rows)) == naive_fit(lengths, 20, "first_fit")


@pytest.mark.parametrize("packing", PACKINGS, ids=IDS)
def test_padding_is_what_stands_empty(packing):
    lengths = np.random.default_rng(5).integers(1, 40, 333)
    _, tokens, offsets = corpus(lengths.tolist())
    made = plan(packing, lengths, 32, 0, True)
    _, rows = fill(made, offsets, tokens, 2, 0, made.rows, 32)
    assert padding(made, 32) == pytest.approx((rows["segment_ids"] == 0).mean(), abs=1e-12)
