"""Duplicates: the first one stays, whatever the store; near ones by an estimate that is checked."""

import numpy as np
import pytest

from ziggurat.core import config
from ziggurat.core.errors import ConfigError
from ziggurat.data import deduplicate
from ziggurat.data.deduplicate import Deduplicate, duplicates, keep, minhashes, shingles
from ziggurat.data.sources import TextFiles
from ziggurat.data.store import tokenise
from ziggurat.data.tokenizers import byte_level


@pytest.fixture
def make(tmp_path):
    """A store of texts."""

    def make_(name, texts):
        directory = tmp_path / name
        directory.mkdir()
        for number, text in enumerate(texts):
            (directory / f"{number:05}.txt").write_text(text)
        return tokenise([TextFiles(path=str(directory))], byte_level(), tmp_path / "cache")

    return make_


def words(rng, count):
    return [f"w{number}" for number in rng.integers(0, 5000, count)]


def jaccard(left, right, ngram):
    sets = [
        {tuple(ids[i : i + ngram]) for i in range(max(1, len(ids) - ngram + 1))}
        for ids in (left.tolist(), right.tolist())
    ]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_exact_over_stores(make, tmp_path):
    one = make("one", ["a", "b", "a", "c", "b"])
    two = make("two", ["d", "a", "d", "e"])
    found = duplicates([one, two], Deduplicate(), tmp_path / "cache")
    assert [flags.tolist() for flags in found.keep] == [
        [True, True, False, True, False],
        [True, False, False, True],
    ]
    report = found.report
    assert (report["documents"], report["exact"], report["near"]) == (9, 4, 0)
    assert report["pairs"][2] == {
        "original": one.identity(0),
        "duplicate": two.identity(1),
        "similarity": 1.0,
    }
    other = keep([two, one], Deduplicate(), tmp_path / "cache")
    assert [flags.tolist() for flags in other] == [
        [True, True, False, True],
        [False, True, False, True, False],
    ]


def test_exact_equals_a_set_over_many_chunks(make, tmp_path, monkeypatch):
    monkeypatch.setattr(deduplicate, "CHUNK_TOKENS", 50)
    rng = np.random.default_rng(0)
    texts = [str(number) * int(number % 7 + 1) for number in rng.integers(0, 150, 300)]
    (flags,) = keep([make("many", texts)], Deduplicate(), tmp_path / "cache")
    seen = set()
    expected = [not (text in seen or seen.add(text)) for text in texts]
    assert flags.tolist() == expected


def test_stores_of_two_widths(make, tmp_path):
    store = make("one", ["a", "b"])
    wide = type(store)(
        store.path,
        store.meta | {"content": "other"},
        store.tokens.astype("<u4"),
        store.offsets,
        store.files,
        store.records,
        store.identities,
    )
    kept = keep([wide, store], Deduplicate(), tmp_path / "cache")
    assert [flags.tolist() for flags in kept] == [[True, True], [False, False]]


def test_near_duplicates_are_found_and_others_are_not(make, tmp_path, monkeypatch):
    monkeypatch.setattr(deduplicate, "CHUNK_TOKENS", 5000)
    rng = np.random.default_rng(1)
    texts, near = [], []
    for number in range(60):
        text = words(rng, int(rng.integers(60, 200)))
        texts.append(text)
        if number % 4 == 0:
            changed = list(text)
            changed[int(rng.integers(len(text)))] = "changed"
            near.append(len(texts))
            texts.append(changed)
        if number % 6 == 0:
            half = list(text)
            half[::2] = words(rng, len(half[::2]))
            texts.append(half)
    store = make("near", [" ".join(text) for text in texts])
    node = Deduplicate(near=True, threshold=0.7, ngram=8)
    found = duplicates([store], node, tmp_path / "cache")
    assert np.flatnonzero(~found.keep[0]).tolist() == near
    assert found.report["near"] == len(near)
    for pair in found.report["pairs"]:
        numbers = [pair[which][0][-9:-4] for which in ("original", "duplicate")]
        documents = [store.document(int(number)) for number in numbers]
        assert abs(jaccard(*documents, 8) - pair["similarity"]) < 0.2


def test_a_chain_is_compared_with_what_stays(make, tmp_path):
    rng = np.random.default_rng(2)
    chain = [words(rng, 300)]
    for step in range(12):
        chain.append(list(chain[-1]))
        chain[-1][step * 20 : step * 20 + 8] = words(rng, 8)
    store = make("chain", [" ".join(text) for text in chain])
    (flags,) = keep([store], Deduplicate(near=True, threshold=0.8), tmp_path / "cache")
    assert flags[0]
    assert 2 <= flags.sum() <= 6
    standing = np.flatnonzero(flags).tolist()
    for number in np.flatnonzero(~flags).tolist():
        before = [i for i in standing if i < number]
        similar = [jaccard(store.document(i), store.document(number), 5) for i in before]
        assert max(similar) > 0.65


def test_minhashes_equal_those_of_datasketch():
    from datasketch import MinHash

    rng = np.random.default_rng(3)
    documents = [rng.integers(0, 1000, n).astype(np.uint16) for n in (1, 3, 5, 50, 700, 2)]
    grams, starts = shingles(documents, 5)
    assert np.diff(starts, append=len(grams)).tolist() == [1, 1, 1, 46, 696, 1]
    a, b = MinHash(64).permutations
    least = minhashes(grams, starts, a, b)
    for number, start in enumerate(starts):
        other = MinHash(64, hashfunc=int)
        stop = starts[number + 1] if number + 1 < len(starts) else len(grams)
        other.update_batch(grams[start:stop].tolist())
        assert np.array_equal(least[number], other.hashvalues)


def test_shingles_follow_from_the_document_alone():
    rng = np.random.default_rng(4)
    documents = [rng.integers(0, 9, n).astype(np.uint16) for n in (2, 7, 4, 1, 30)]
    together, _ = shingles(documents, 4)
    alone = [shingles([document], 4)[0] for document in documents]
    assert np.array_equal(together, np.concatenate(alone))
    assert len({int(shingles([np.array(ids)], 4)[0][0]) for ids in ([1], [1, 0], [0, 1])}) == 3


def test_kept_in_the_cache_and_made_anew_when_damaged(make, tmp_path, caplog):
    store = make("one", ["a", "b", "a"])
    cache = tmp_path / "cache"
    calls = []
    for _ in range(2):
        keep([store], Deduplicate(), cache, lambda *counts: calls.append(counts))
    assert calls == [(3, 6)]
    keep([store], Deduplicate(near=True), cache)
    found = sorted(cache.glob("duplicates-*"))
    assert len(found) == 2
    assert sorted(path.name for path in found[0].iterdir()) == ["keep.npy", "report.json"]
    for path in found:
        (path / "keep.npy").write_bytes(b"")
    assert keep([store], Deduplicate(), cache)[0].tolist() == [True, True, False]
    assert "made anew" in caplog.text


def test_near_alone_finds_exact_ones_too(make, tmp_path):
    store = make("one", ["some text here", "b", "some text here"])
    found = duplicates([store], Deduplicate(exact=False, near=True), tmp_path / "cache")
    assert found.keep[0].tolist() == [True, True, False]
    assert (found.report["exact"], found.report["near"]) == (0, 1)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("exact = false", "exact: found False, expected exact or near"),
        ("threshold = 0.0", "threshold: found 0.0"),
        ("ngram = 0", "ngram: found 0"),
        ("permutations = 8", "permutations: found 8"),
    ],
)
def test_settings_are_checked(text, part):
    with pytest.raises(ConfigError) as caught:
        config.parse(Deduplicate, text)
    assert part in str(caught.value)
