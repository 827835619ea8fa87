"""A stream's batches depend on configuration, seed and step; resuming reads one window again."""

import itertools
import json

import numpy as np
import pytest

from ziggurat.core import config
from ziggurat.core.errors import ConfigError, DataError
from ziggurat.core.protocols import BatchSource
from ziggurat.data.config import DataConfig
from ziggurat.data.filter import Filter
from ziggurat.data.opening import build
from ziggurat.data.packing import BestFit, Concat, FirstFit, Single
from ziggurat.data.sources import JsonLines, TextFiles
from ziggurat.data.tokenizers import byte_level

PACKINGS = [Concat(), FirstFit(), BestFit(window=5), Single()]
COUNTS = (17, 1, 30, 8, 25)
WINDOW, BATCH = 12, 6


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    directory = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for file, count in enumerate(COUNTS):
        lines = [
            json.dumps({"text": f"{file}.{i} " + "x" * int(rng.integers(1, 70))}) + "\n"
            for i in range(count)
        ]
        lines.insert(count // 2, "\n")
        (directory / f"{file}.jsonl").write_text("".join(lines))
    return directory


@pytest.fixture
def make(corpus, tmp_path):
    def make(seed=0, **settings):
        defaults = {
            "sources": (JsonLines(path=str(corpus)),),
            "sequence_length": 32,
            "batch_size": BATCH,
            "tokenize": "stream",
            "stream_window": WINDOW,
            "prefetch": 0,
        }
        return build(DataConfig(**defaults | settings), byte_level(), seed, tmp_path / "none")

    return make


def same(one, other):
    assert set(one) == set(other)
    for name in one:
        assert one[name].dtype == other[name].dtype
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.parametrize("packing", PACKINGS, ids=lambda packing: packing.kind)
def test_every_document_once_in_every_epoch_and_no_store(make, corpus, tmp_path, packing):
    data = make(packing=packing, epochs=2)
    assert isinstance(data, BatchSource)
    batches = list(data.iterate(0))
    assert not (tmp_path / "none").exists()
    found = {}
    for step, batch in enumerate(batches):
        for number, row in enumerate(data.documents(step)):
            for segment, piece in enumerate(row, 1):
                tokens = batch["tokens"][number][batch["segment_ids"][number] == segment]
                assert len(tokens) == piece.length
                found.setdefault((piece.file, piece.record), []).append((piece.start, tokens))
    assert len(found) == sum(COUNTS)
    for (file, record), parts in found.items():
        text = json.loads((corpus / file.split("/")[-1]).read_text().splitlines()[record - 1])
        whole = [*text["text"].encode(), 256]
        limit = 32 if isinstance(packing, Single) else None
        starts = sorted({start for start, _ in parts})
        # Both epochs hold the document; concat may cut it at other places in each.
        assert sum(len(tokens) for _, tokens in parts) == 2 * len(whole[:limit])
        for start, tokens in parts:
            assert tokens.tolist() == whole[start : start + len(tokens)]
        assert starts[0] == 0
    with pytest.raises(DataError, match=f"step {len(batches)}: found data for fewer steps"):
        data.batch(len(batches))


@pytest.mark.parametrize("packing", PACKINGS, ids=lambda packing: packing.kind)
@pytest.mark.parametrize("shuffle", [True, False])
def test_resume_makes_equal_batches_and_reads_one_window_again(make, packing, shuffle):
    settings = {"packing": packing, "shuffle": shuffle, "filter": Filter(min_tokens=12)}
    data = make(**settings)
    run, states, read = [], [], []
    for batch in itertools.islice(data.iterate(0), 18):
        read.append(data.report["documents"])
        run.append(batch)
        states.append(json.dumps(data.state(len(run))))
    assert data.report["documents"] == read[-1], "telling the state read nothing"
    for step in range(1, 18, 3):
        fresh = make(**settings)
        state = json.loads(states[step - 1])
        assert len(states[step - 1]) < 1024
        assert fresh.check_state(state) == step
        same(next(fresh.iterate(step)), run[step])
        # The window that holds the first row, and as many as the batch needed beyond.
        assert fresh.report["documents"] <= WINDOW + read[step] - read[step - 1]
        same(fresh.batch(step), run[step])
        assert json.dumps(fresh.state(step)) == states[step - 1]


@pytest.mark.parametrize("packing", PACKINGS, ids=lambda packing: packing.kind)
def test_host_counts_that_change_make_the_same_global_batches(make, packing):
    rng = np.random.default_rng(1)
    settings = {"packing": packing, "filter": Filter(max_tokens=50)}
    alone = make(**settings)
    expected = list(itertools.islice(alone.iterate(0), 12))
    state, step = alone.state(0), 0
    while step < len(expected):
        inner = rng.choice(np.arange(1, BATCH), rng.integers(0, 5), replace=False)
        cuts = [slice(*pair) for pair in itertools.pairwise([0, *sorted(inner.tolist()), BATCH])]
        hosts = [make(**settings) for _ in cuts]
        assert {host.check_state(state) for host in hosts} == {step}
        streams = [host.iterate(step, cut) for host, cut in zip(hosts, cuts, strict=True)]
        until = min(len(expected), step + int(rng.integers(1, 8)))
        for at in range(step, until):
            parts = [next(stream) for stream in streams]
            same({n: np.concatenate([p[n] for p in parts]) for n in parts[0]}, expected[at])
        step, state = until, json.loads(json.dumps(hosts[-1].state(until)))


def test_state_of_a_step_not_reached_and_batches_out_of_order(make):
    data, other = make(), make(prefetch=3)
    run = list(itertools.islice(other.iterate(0), 30))
    for step in (20, 3, 29, 0, 21):
        same(data.batch(step), run[step])
    assert make().state(25) == other.state(25)


def test_epochs_and_seeds_differ_and_windows_hold_together(make):
    orders = {}
    for seed in (0, 1):
        data = make(seed=seed, packing=Single(), batch_size=sum(COUNTS))
        orders[seed] = [
            [(piece.file, piece.record) for row in data.documents(step) for piece in row]
            for step in (0, 1)
        ]
    assert len({tuple(order) for pair in orders.values() for order in pair}) == 4
    assert len({frozenset(order) for pair in orders.values() for order in pair}) == 1
    straight = make(shuffle=False, packing=Single(), batch_size=sum(COUNTS)).documents(0)
    names = [(row[0].file, row[0].record) for row in straight]
    assert names == sorted(names)


def test_filter_and_padding_are_counted(make):
    data = make(filter=Filter(min_tokens=30, share=0.9), epochs=1, packing=BestFit())
    rows = np.concatenate([batch["segment_ids"] for batch in data.iterate(0)])
    report = data.report
    assert report["filtered"]["min_tokens"] > 0
    used = rows[: report["rows"]] > 0
    assert not rows[report["rows"] :].any()
    assert report["tokens"] == used.sum()
    assert report["padding"] == data.padding == pytest.approx(1 - used.mean(), abs=1e-12)
    with pytest.raises(DataError, match="no document that the filter lets through"):
        make(filter=Filter(min_tokens=1000)).batch(0)


def test_changes_are_noticed_on_resume(make, corpus):
    state = make().state(7)
    for change, part in [
        ({"seed": 1}, "found seed 1; expected seed 0"),
        ({"stream_window": 13}, "found stream_window 13; expected stream_window 12"),
        ({"packing": Single()}, "found order"),
        ({"filter": Filter(min_tokens=3)}, "found order"),
    ]:
        with pytest.raises(DataError, match=part):
            make(**change).check_state(state)
    other = make(sources=(JsonLines(path=str(corpus / "0.jsonl")),))
    with pytest.raises(DataError, match="found content"):
        other.check_state(state)


def test_damage_stops_or_is_counted(make, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "good"}\n{"text": 3}\n{"text": "better"}\n')
    with pytest.raises(DataError, match=r"bad.jsonl line 2: found 'text': int"):
        make(sources=(JsonLines(path=str(path)),)).batch(0)
    source = JsonLines(path=str(path), on_error="skip")
    data = make(sources=(source,), packing=Single(), epochs=1)
    assert sorted(p.record for row in data.documents(0) for p in row) == [1, 3]
    assert data.report["skipped"] == 1


def test_files_that_need_no_records(make):
    source = TextFiles(path="{stdlib}/json", glob="*.py")
    data = make(sources=(source,), sequence_length=256)
    same(data.batch(9), make(sources=(source,), sequence_length=256, prefetch=2).batch(9))


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("dedup={}", "dedup"),
        ("eval_fraction=0.1", "eval_fraction"),
        ("workers=1", "workers"),
        ("mixture={}", "mixture"),
        ("sources=[{kind='text', path='x', name='n', max_documents=3}]", "sources.max_documents"),
    ],
)
def test_what_cannot_be_streamed_is_refused(text, key):
    good = {"sources": "[{kind='text', path='x', name='n'}]", "tokenize": "'stream'"}
    good.pop(text.split("=")[0], None)
    lines = ["sequence_length=8", "batch_size=2", *(f"{k}={v}" for k, v in good.items())]
    with pytest.raises(ConfigError) as caught:
        config.parse(DataConfig, "\n".join([*lines, text]))
    assert f"{key}: found" in str(caught.value)
    assert 'together with tokenize = "stream"' in str(caught.value)
    assert "\n" not in str(caught.value)
