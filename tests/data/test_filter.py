"""Which documents are used: split, filter and duplicates, counted and applied exactly."""

import json

import numpy as np
import pytest

from ziggurat.core import config
from ziggurat.core.errors import ConfigError, DataError
from ziggurat.data.config import DataConfig
from ziggurat.data.deduplicate import Deduplicate
from ziggurat.data.filter import Filter
from ziggurat.data.opening import build
from ziggurat.data.packing import BestFit, Concat, Single
from ziggurat.data.sources import JsonLines
from ziggurat.data.tokenizers import byte_level

LENGTHS = [3, 10, 25, 40, 7, 10, 90, 1, 33, 10]
"""Characters of each document; a token more with eos."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "a.jsonl"
    texts = ["x" * length for length in LENGTHS] + [f"document {i}" for i in range(200)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture
def make(corpus, tmp_path):
    def make(split="train", first=None, **settings):
        source = JsonLines(path=str(corpus), max_documents=first)
        defaults = {"sources": (source,), "sequence_length": 16, "batch_size": 4, "epochs": 1}
        made = DataConfig(**defaults | settings)
        return build(made, byte_level(), 0, tmp_path / "cache", split)

    return make


def records(data):
    return sorted(
        {p.record for step in range(data.steps) for row in data.documents(step) for p in row}
    )


@pytest.mark.parametrize("packing", [Concat(), BestFit(), Single()], ids=lambda p: p.kind)
def test_lengths(make, packing):
    data = make(first=10, packing=packing, filter=Filter(min_tokens=8, max_tokens=41))
    assert records(data) == [2, 3, 4, 5, 6, 9, 10]
    assert data.report["filtered"] == {"min_tokens": 2, "max_tokens": 1}
    assert (data.report["used"], data.report["documents"]) == (7, 10)
    assert data.documents_per_epoch == 7


def test_a_document_against_two_rules_counts_for_both(make):
    data = make(first=10, filter=Filter(min_tokens=9, min_learned=9))
    assert data.report["filtered"] == {"min_tokens": 3, "min_learned": 3}
    assert data.report["used"] == 7


def test_share_depends_on_identity_alone(make):
    half, more = (set(records(make(filter=Filter(share=share)))) for share in (0.5, 0.7))
    assert half < more
    assert 80 < len(half) < 130
    held = set(records(make(eval_fraction=0.5)))
    assert 20 < len(half & held) < len(half) - 20, "independent of the split"


def test_split_then_filter_then_duplicates(make):
    settings = {"eval_fraction": 0.3, "filter": Filter(max_tokens=30), "dedup": Deduplicate()}
    train, held = make(**settings), make("eval", **settings)
    plain = make(eval_fraction=0.3), make("eval", eval_fraction=0.3)
    seen = set(records(train)), set(records(held))
    assert not seen[0] & seen[1]
    for part, whole in zip(seen, plain, strict=True):
        assert part <= set(records(whole)), "a filter moves no document to the other side"
    # Documents 2, 6 and 10 are equal: one of them is left, on one side only.
    assert len((seen[0] | seen[1]) & {2, 6, 10}) == 1
    total = [data.report for data in (train, held)]
    assert sum(report["duplicates"] for report in total) == 2
    assert sum(report["filtered"]["max_tokens"] for report in total) == 3
    assert sum(report["used"] for report in total) == 210 - 2 - 3


def test_nothing_left(make):
    with pytest.raises(DataError) as caught:
        make(first=10, filter=Filter(min_tokens=1000))
    assert str(caught.value) == (
        "train split: found none of 10 documents at eval_fraction 0, min_tokens leaves out 10; "
        "expected at least one document; loosen data.filter or data.dedup, or add documents"
    )


def test_padding_is_exact(make):
    for packing in (Concat(), BestFit(), Single()):
        data = make(packing=packing, filter=Filter(max_tokens=30))
        rows = [data.batch(step)["segment_ids"] > 0 for step in range(data.steps)]
        used = np.concatenate(rows)[: data.rows_per_epoch]
        assert data.padding == pytest.approx(1 - used.mean(), abs=1e-12)
        assert data.report["tokens"] == used.sum()


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("min_tokens=0", "filter.min_tokens: found 0, expected at least 1"),
        ("min_tokens=5, max_tokens=4", "filter.max_tokens: found 4, expected at least min_tokens"),
        ("min_learned=-1", "filter.min_learned: found -1"),
        ("share=0", "filter.share: found 0"),
        ("share=1.5", "filter.share: found 1.5"),
        ("min_length=3", "did you mean"),
    ],
)
def test_settings_are_checked(text, part):
    run = f"sequence_length=8\nbatch_size=2\nsources=[{{kind='text', path='x'}}]\nfilter={{{text}}}"
    with pytest.raises(ConfigError) as caught:
        config.parse(DataConfig, run)
    assert part in str(caught.value)
