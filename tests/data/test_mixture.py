"""Mixtures in closed form against counting, and against a simulation that deals row by row."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ziggurat.core import config
from ziggurat.core.errors import ConfigError, DataError
from ziggurat.data.config import DataConfig
from ziggurat.data.mixture import PERIOD, Mixture, Schedule, Stage, quantise
from ziggurat.data.opening import build
from ziggurat.data.packing import BestFit, Single
from ziggurat.data.sources import JsonLines
from ziggurat.data.tokenizers import byte_level

SIZES = {"web": 40, "code": 23, "books": 9}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    directory = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for name, count in SIZES.items():
        lines = [
            json.dumps({"text": f"{name} {i} " + "y" * int(rng.integers(1, 60))}) + "\n"
            for i in range(count)
        ]
        (directory / f"{name}.jsonl").write_text("".join(lines))
    return directory


@pytest.fixture(scope="module")
def make(corpus, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")

    def make(mixture, seed=0, names=tuple(SIZES), split="train", **changes):
        sources = tuple(JsonLines(path=str(corpus / f"{n}.jsonl"), name=n) for n in names)
        defaults = {"sources": sources, "sequence_length": 32, "batch_size": 6}
        return build(
            DataConfig(mixture=mixture, **defaults | changes), byte_level(), seed, cache, split
        )

    return make


def given_out(data, steps):
    """Rows of each component, counted from what the rows hold; the last may be empty."""
    rows = dict.fromkeys(SIZES, 0)
    for step in range(steps):
        for row in data.documents(step):
            names = {piece.component for piece in row}
            if not names and step == steps - 1:
                continue
            assert len(names) == 1, "a row holds documents of one component"
            assert {piece.file.split("/")[-1] for piece in row} == {f"{n}.jsonl" for n in names}
            rows[names.pop()] += 1
    return rows


def deal(counts, rows):
    """Smooth dealing, naively: the next row goes to the component whose turn comes first."""
    given = [0] * len(counts)
    dealing = [(k, m) for k, m in enumerate(counts) if m]
    dealt = []
    for _ in range(rows):
        k = min(
            (given[k] // m, (given[k] % m + (turn + 0.5) / len(dealing)) / m, k)
            for turn, (k, m) in enumerate(dealing)
        )[2]
        given[k] += 1
        dealt.append(k)
    return dealt


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any),
    st.integers(0, 60),
    st.integers(0, 60),
)
def test_dealing_in_closed_form_equals_dealing_one_by_one(weights, first, more):
    names = [str(k) for k in range(len(weights))]
    shares = [float(w) for w in weights]
    schedule = Schedule(names, [(0, shares)], [None] * len(weights))
    counts = quantise(shares, names)
    expected = deal(counts, first + more)
    assert schedule.owners(first, first + more).tolist() == expected[first:]
    assert schedule.counters(first) == tuple(expected[:first].count(k) for k in range(len(counts)))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_counters_are_what_owners_count_through_stages_and_caps(data):
    parts = data.draw(st.integers(1, 4))
    share = st.lists(st.sampled_from([0.0, 1.0, 2.5, 7.0]), min_size=parts, max_size=parts)
    firsts = [0, *sorted(data.draw(st.sets(st.integers(1, 150), max_size=3)))]
    stages = [(first, data.draw(share.filter(any))) for first in firsts]
    caps = data.draw(st.lists(st.none() | st.integers(1, 40), min_size=parts, max_size=parts))
    stop = data.draw(st.sampled_from(["first", "all"]))
    schedule = Schedule([str(k) for k in range(parts)], stages, caps, stop)
    last = 300 if schedule.end is None else schedule.end
    owners = schedule.owners(0, last)
    assert len(owners) == last
    totals = np.zeros(parts, int)
    for row, owner in enumerate(owners.tolist()):
        assert schedule.counters(row) == tuple(totals)
        shares = [shares for first, shares in stages if first <= row][-1]
        assert shares[owner] > 0
        totals[owner] += 1
    spent = [cap is not None and n >= cap for cap, n in zip(caps, totals.tolist())]
    assert all(cap is None or n <= cap for cap, n in zip(caps, totals.tolist()))
    if schedule.end is not None:
        shares = [shares for first, shares in stages if first <= last][-1]
        usable = [share > 0 and not out for share, out in zip(shares, spent)]
        assert not any(usable) or (stop == "first" and any(spent))
    for first, stop_ in itertools.pairwise(range(0, last + 1, 7)):
        assert np.array_equal(schedule.owners(first, stop_), owners[first:stop_])


def test_shares_hold_over_any_stretch():
    weights = [0.61, 0.3, 0.09]
    schedule = Schedule(["a", "b", "c"], [(0, weights)], [None] * 3)
    for rows in (1, 10, 999, 10**6, 10**12):
        counted = np.array(schedule.counters(rows))
        assert np.abs(counted - rows * np.array(weights)).max() <= 2 + rows / PERIOD


def test_temperature_evens_the_weights_out():
    names = ["a", "b"]
    for temperature, expected in [(1.0, 0.9), (2.0, 0.75), (1e9, 0.5)]:
        shares = Mixture(temperature=temperature).shares({"a": 9.0, "b": 1.0}, names)
        np.testing.assert_allclose(shares, [expected, 1 - expected], rtol=1e-6)


def test_weights_that_round_to_nothing_are_refused():
    with pytest.raises(ConfigError) as caught:
        quantise([1.0, 1e-6], ["web", "rare"])
    assert str(caught.value) == (
        "data.mixture: weight of rare: found a share of 1e-06 of the rows; "
        "expected 0, or at least 1/65536; raise the weight or take the source out"
    )
    assert quantise([1.0, 1e-6], ["web", "rare"], refuse=False) == (PERIOD - 1, 1)
    assert sum(quantise([0.1] * 7, list("abcdefg"))) in (7, PERIOD)


def test_state_counts_what_was_given_out(make):
    data = make(Mixture(weights={"web": 3.0, "code": 1.0, "books": 1.0}))
    for steps in (0, 1, 7, 40):
        state = data.state(steps)
        rows = given_out(data, steps)
        assert {name: entry["rows"] for name, entry in state["taken"].items()} == rows
        for part in data.components:
            entry = state["taken"][part.name]
            assert entry["epoch"] * part.rows + entry["row"] == rows[part.name]
            assert entry["row"] < part.rows
    assert sum(rows.values()) == 40 * 6


def test_state_of_eight_components_is_small(make, corpus, tmp_path):
    names = [f"component_{k}" for k in range(8)]
    sources = tuple(JsonLines(path=str(corpus / "web.jsonl"), name=name) for name in names)
    settings_ = DataConfig(sources=sources, sequence_length=32, batch_size=6, mixture=Mixture())
    data = build(settings_, byte_level(), 0, tmp_path)
    state = data.state(10**9)
    assert len(json.dumps(state)) < 1024
    assert build(settings_, byte_level(), 0, tmp_path).check_state(json.loads(json.dumps(state)))
    # The same documents under two names still come in two orders.
    first, second = (part.pieces(0, part.rows).document.tolist() for part in data.components[:2])
    assert first != second
    assert set(first) == set(second) == set(range(SIZES["web"]))


def test_every_epoch_of_a_component_holds_its_documents_once(make):
    data = make(Mixture(weights={"web": 1.0, "code": 2.0, "books": 1.0}), packing=Single())
    seen = {name: [] for name in SIZES}
    for step in range(60):
        for row in data.documents(step):
            seen[row[0].component].append(row[0].record)
    for name, records in seen.items():
        count = SIZES[name]
        for epoch in range(len(records) // count):
            part = records[epoch * count : (epoch + 1) * count]
            assert sorted(part) == list(range(1, count + 1))


def test_tokens_are_the_weights_if_none_are_given(make):
    data = make(Mixture())
    tokens = np.array([part.tokens for part in data.components])
    entries = [entry["rows"] for entry in data.state(10**6)["taken"].values()]
    np.testing.assert_allclose(entries / tokens.sum(), 6e6 * tokens / tokens.sum() ** 2, rtol=1e-3)


def test_caps_end_a_component_and_its_weight_goes_to_the_others(make):
    mixture = Mixture(weights={"web": 1.0, "code": 1.0, "books": 2.0}, epochs={"books": 2.0})
    data = make(mixture, packing=BestFit(window=8))
    assert data.steps is None
    books = data.components[2].rows
    taken = data.state(10_000)["taken"]
    assert taken["books"]["rows"] == 2 * books
    assert abs(taken["web"]["rows"] - taken["code"]["rows"]) <= 1
    ended = make(Mixture(epochs={"web": 1.5}, stop="all"), epochs=2)
    counts = given_out(ended, ended.steps)
    rows = {part.name: part.rows for part in ended.components}
    assert counts == {
        "web": round(1.5 * rows["web"]),
        "code": 2 * rows["code"],
        "books": 2 * rows["books"],
    }
    with pytest.raises(DataError, match=f"found data for {ended.steps} steps"):
        ended.batch(ended.steps)
    assert len(list(ended.iterate(0))) == ended.steps


def test_stop_at_the_first(make):
    data = make(
        Mixture(
            weights={"web": 1.0, "code": 1.0, "books": 1.0}, epochs={"books": 1.0}, stop="first"
        )
    )
    counts = given_out(data, data.steps)
    assert counts["books"] == data.components[2].rows
    assert abs(counts["web"] - counts["books"]) <= 1
    assert not data.batch(data.steps - 1)["segment_ids"][-1].any() or sum(counts.values()) % 6 == 0


def test_schedule_changes_weights_at_its_step(make):
    stages = (
        Stage(step=5, weights={"code": 1.0}),
        Stage(step=8, weights={"books": 1.0, "web": 1.0}),
    )
    data = make(Mixture(weights={"web": 1.0}, schedule=stages))
    names = [{p.component for row in data.documents(s) for p in row} for s in range(12)]
    assert names == [{"web"}] * 5 + [{"code"}] * 3 + [{"web", "books"}] * 4


def test_later_stages_may_be_added_on_resume_and_earlier_ones_not_changed(make):
    before = Mixture(weights={"web": 2.0, "code": 1.0, "books": 1.0})
    state = json.loads(json.dumps(make(before).state(20)))
    later = Mixture(weights=before.weights, schedule=(Stage(step=20, weights={"code": 1.0}),))
    assert make(later).check_state(state) == 20
    assert {p.component for row in make(later).documents(20) for p in row} == {"code"}
    earlier = Mixture(weights=before.weights, schedule=(Stage(step=19, weights={"code": 1.0}),))
    with pytest.raises(DataError, match="mixture up to step 20: found rows web 57, code 35") as one:
        make(earlier).check_state(state)
    assert "\n" not in str(one.value)


def test_evaluation_is_each_held_out_document_once_whatever_the_mixture(make):
    mixture = Mixture(weights={"web": 1.0, "code": 5.0, "books": 1.0}, epochs={"code": 0.5})
    held = make(mixture, eval_fraction=0.4, split="eval", packing=Single())
    seen = [
        (p.component, p.record)
        for step in range(held.steps)
        for row in held.documents(step)
        for p in row
    ]
    train = make(mixture, eval_fraction=0.4, packing=Single())
    assert len(seen) == len(set(seen)) == held.documents_per_epoch
    assert held.documents_per_epoch + train.documents_per_epoch == sum(SIZES.values())
    plain = make(Mixture(), eval_fraction=0.4, split="eval", packing=Single())
    for name, values in plain.batch(0).items():
        np.testing.assert_array_equal(values, held.batch(0)[name])


def test_report_names_components(make):
    data = make(Mixture(), packing=Single())
    report = data.report
    assert report["documents"] == report["used"] == sum(SIZES.values())
    assert {n: r["documents"] for n, r in report["components"].items()} == SIZES
    counted = {part.name: part.pieces(0, part.rows).length.sum() for part in data.components}
    assert report["tokens"] == sum(counted.values())
    assert report["padding"] == data.padding == 1 - report["tokens"] / (72 * 32)
    assert report["cut"] > 0


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("weights={wev=1}", "'wev', expected the name of a source, did you mean web?"),
        ("epochs={cod=1}", "mixture.epochs: found 'cod'"),
        ("schedule=[{step=3, weights={x=1}}]", "mixture.schedule.0.weights: found 'x'"),
        ("weights={web=1}", "no weight for code"),
        ("weights={web=-1, code=1}", "mixture.weights.web: found -1.0"),
        ("weights={web=0, code=0}", "at least one above 0"),
        ("temperature=0", "mixture.temperature: found 0"),
        ("epochs={web=0}", "mixture.epochs.web: found 0"),
        ("schedule=[{step=0, weights={web=1}}]", "step: found 0, expected at least 1"),
        ("schedule=[{step=3, weights={web=1}}, {step=3, weights={code=1}}]", "steps that rise"),
        ("stop='first'", "mixture.stop: found 'first'"),
    ],
)
def test_settings_are_checked(text, part):
    run = f"""
    sequence_length = 8
    batch_size = 2
    sources = [{{kind='text', path='x', name='web'}}, {{kind='text', path='y', name='code'}}]
    mixture = {{{text}}}
    """
    with pytest.raises(ConfigError) as caught:
        config.parse(DataConfig, run)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sources_need_names():
    run = """
    sequence_length = 8
    batch_size = 2
    sources = [{kind='text', path='x', name='web'}, {kind='text', path='y'}]
    mixture = {}
    """
    with pytest.raises(ConfigError, match="a name for each source"):
        config.parse(DataConfig, run)
