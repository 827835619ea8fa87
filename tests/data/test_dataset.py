"""The contract: a batch depends on configuration, seed and step, and on nothing else."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest

from ziggurat.core import config as core_config
from ziggurat.core.errors import ConfigError, DataError
from ziggurat.core.protocols import BatchSource
from ziggurat.data import opening as module
from ziggurat.data.config import DataConfig
from ziggurat.data.filter import Split
from ziggurat.data.opening import build, documents, tokenizer_for
from ziggurat.data.packing import BestFit, Concat, FirstFit, Single
from ziggurat.data.sources import JsonLines, TextFiles
from ziggurat.data.store import tokenise
from ziggurat.data.tokenizers import ByteTokenizer, TrainBpe, byte_level

PACKINGS = [Concat(), FirstFit(window=16), BestFit(window=16), Single()]
IDS = ["concat", "first_fit", "best_fit", "none"]
KEYS = {"tokens", "targets", "segment_ids", "positions", "loss_mask"}
COUNT = 60


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    directory = tmp_path_factory.mktemp("corpus")
    lengths = np.random.default_rng(0).integers(1, 90, COUNT)
    lines = [json.dumps({"text": f"{i}:" + "x" * n}) + "\n" for i, n in enumerate(lengths)]
    (directory / "a.jsonl").write_text("".join(lines))
    return directory


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def make(corpus, cache):
    def make(seed=0, split: Split = "train", **settings):
        source = JsonLines(path=str(corpus))
        defaults = {"sources": (source,), "sequence_length": 32, "batch_size": 8}
        return build(DataConfig(**(defaults | settings)), byte_level(), seed, cache, split)

    return make


def same(one, other):
    assert set(one) == set(other) == KEYS
    for key in KEYS:
        assert one[key].dtype == other[key].dtype
        np.testing.assert_array_equal(one[key], other[key], err_msg=key)


def joined(parts):
    return {key: np.concatenate([part[key] for part in parts]) for key in KEYS}


@pytest.mark.parametrize("packing", PACKINGS, ids=IDS)
def test_shapes_and_types(make, packing):
    data = make(packing=packing)
    assert isinstance(data, BatchSource)
    batch = data.batch(0)
    assert set(batch) == KEYS
    for key, values in batch.items():
        assert values.shape == (8, 32)
        assert values.dtype == (np.float32 if key == "loss_mask" else np.int32)


@pytest.mark.parametrize("packing", PACKINGS, ids=IDS)
@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
def test_any_number_of_hosts_makes_the_same_global_batch(make, packing, hosts):
    data = make(packing=packing)
    for step in (0, 1, data.steps_per_epoch - 1, data.steps_per_epoch, 1000):
        share = 8 // hosts
        parts = [data.batch(step, slice(h * share, (h + 1) * share)) for h in range(hosts)]
        same(joined(parts), data.batch(step))


@pytest.mark.parametrize("packing", PACKINGS, ids=IDS)
def test_resume_at_any_step(make, packing):
    data = make(packing=packing)
    run = list(itertools.islice(data.iterate(0), 3 * data.steps_per_epoch))
    for start in (0, 1, data.steps_per_epoch - 1, data.steps_per_epoch + 1):
        fresh = make(packing=packing)
        resumed = fresh.check_state(json.loads(json.dumps(data.state(start))))
        for step, batch in enumerate(itertools.islice(fresh.iterate(resumed), 3), resumed):
            same(batch, run[step])


def test_order_of_asking_does_not_matter(make):
    forward, backward = make(), make()
    steps = range(12)
    expected = [forward.batch(step) for step in steps]
    for step in reversed(steps):
        same(backward.batch(step), expected[step])


@pytest.mark.parametrize("packing", PACKINGS, ids=IDS)
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_document_once_in_every_epoch(make, corpus, packing, shuffle):
    data = make(packing=packing, shuffle=shuffle, epochs=3)
    rows = joined([data.batch(step) for step in range(data.steps)])
    held = [row for step in range(data.steps) for row in data.documents(step)]
    assert len(held) == len(rows["tokens"])
    originals = [json.loads(line)["text"] for line in (corpus / "a.jsonl").read_text().splitlines()]
    for epoch in range(3):
        span = slice(epoch * data.rows_per_epoch, (epoch + 1) * data.rows_per_epoch)
        put_together = {}
        for tokens, segments, pieces in zip(
            rows["tokens"][span], rows["segment_ids"][span], held[span], strict=True
        ):
            for number, piece in enumerate(pieces, 1):
                parts = put_together.setdefault(piece.record, {})
                assert piece.start not in parts, "a piece stands twice"
                parts[piece.start] = tokens[segments == number]
                assert len(parts[piece.start]) == piece.length
        assert sorted(put_together) == list(range(1, COUNT + 1))
        for record, parts in put_together.items():
            whole = np.concatenate([parts[start] for start in sorted(parts)])
            expected = [*originals[record - 1].encode(), 256]
            limit = 32 if isinstance(packing, Single) else None
            assert whole.tolist() == expected[:limit]
    padding = rows["segment_ids"][3 * data.rows_per_epoch :]
    assert not padding.any(), "rows after the last epoch are empty"


def test_targets_follow_within_documents(make):
    batch = make().batch(0)
    learned = batch["loss_mask"] > 0
    same_row = learned[:, :-1] & (batch["segment_ids"][:, 1:] == batch["segment_ids"][:, :-1])
    np.testing.assert_array_equal(
        batch["targets"][:, :-1][same_row], batch["tokens"][:, 1:][same_row]
    )
    assert (batch["targets"][learned] == 256).any(), "eos is learned"
    assert not learned[batch["tokens"] == 256].any(), "nothing is learned after eos"


def test_seed_and_epoch_change_the_order(make):
    one, two = make(seed=0), make(seed=1)
    assert not np.array_equal(one.batch(0)["tokens"], two.batch(0)["tokens"])
    straight = make(shuffle=False)
    first = straight.documents(0)[0][0]
    assert (first.record, first.start) == (1, 0)
    per_epoch = [
        [
            piece.record
            for row in make(packing=Single(), batch_size=COUNT).documents(step)
            for piece in row
        ]
        for step in (0, 1)
    ]
    assert per_epoch[0] != per_epoch[1]
    assert sorted(per_epoch[0]) == sorted(per_epoch[1])


def test_batch_larger_than_an_epoch(make):
    data = make(batch_size=3 * COUNT, packing=Single())
    records = [piece.record for row in data.documents(2) for piece in row]
    assert sorted(records) == sorted(3 * list(range(1, COUNT + 1)))


def test_train_and_eval_never_share_a_document(make):
    train, held = (make(eval_fraction=0.3, split=split) for split in ("train", "eval"))
    seen = []
    for data in (train, held):
        steps = range(data.steps_per_epoch)
        seen.append({p.record for s in steps for row in data.documents(s) for p in row})
    assert not seen[0] & seen[1]
    assert seen[0] | seen[1] == set(range(1, COUNT + 1))
    assert train.documents_per_epoch == len(seen[0])
    assert held.steps == held.steps_per_epoch
    with pytest.raises(DataError, match="step"):
        held.batch(held.steps)


def test_split_does_not_depend_on_the_seed(make):
    splits = [make(eval_fraction=0.3, split="eval", seed=seed, shuffle=False) for seed in (0, 1)]
    same(splits[0].batch(0), splits[1].batch(0))


def test_end_of_data(make):
    data = make(epochs=2)
    assert len(list(data.iterate(0))) == data.steps
    assert list(data.iterate(data.steps)) == []
    with pytest.raises(DataError, match=f"data for {data.steps} steps"):
        data.batch(data.steps)
    assert make().steps is None


@pytest.mark.parametrize("rows", [slice(0, 9), slice(-1, 3), slice(0, 8, 2), slice(5, 3)])
def test_wrong_rows(make, rows):
    data = make()
    for call in (data.batch, data.iterate):
        with pytest.raises(DataError, match="rows of the batch"):
            call(0, rows)


def test_iterate_without_prefetch_and_with_rows(make):
    for prefetch in (0, 1, 8):
        data = make(prefetch=prefetch)
        batches = data.iterate(5, slice(2, 4))
        for step in range(5, 9):
            same(next(batches), data.batch(step, slice(2, 4)))


def test_state_is_small_and_names_what_changed(make):
    data = make()
    state = data.state(17)
    assert len(json.dumps(state)) < 400
    assert (data.check_state(state), state["step"]) == (17, 17)
    assert state["epoch"] == 17 * 8 // data.rows_per_epoch
    for change, part in [
        ({"batch_size": 4}, "found batch_size 4; expected batch_size 8"),
        ({"seed": 3}, "found seed 3; expected seed 0"),
        ({"packing": Single()}, "found order"),
        ({"positions": "row"}, "found order"),
        ({"eval_fraction": 0.5}, "found order"),
    ]:
        with pytest.raises(DataError) as caught:
            make(**change).check_state(state)
        assert part in str(caught.value)
        assert "\n" not in str(caught.value)
    # What only makes batches faster, or the run longer, may change.
    assert make(prefetch=1, epochs=500).check_state(state) == 17
    with pytest.raises(DataError, match="seed None"):
        data.check_state({})


def test_a_state_with_one_digest_for_all_is_still_read(make):
    data = make()
    state = data.state(3)
    del state["used"]
    assert data.check_state(state | {"content": data._whole_content()}) == 3
    with pytest.raises(DataError, match="a state of an earlier version"):
        data.check_state(state | {"content": "other"})


def test_changed_data_is_noticed_on_resume(tmp_path):
    def made(text):
        (tmp_path / "a.txt").write_text(text)
        source = TextFiles(path=str(tmp_path / "a.txt"))
        settings = DataConfig(sources=(source,), sequence_length=8, batch_size=1)
        return build(settings, byte_level(), 0, tmp_path / "cache")

    state = made("hello").state(1)
    with pytest.raises(DataError, match=r"a.txt has other documents than before"):
        made("jello").check_state(state)
    assert made("hello").check_state(state) == 1


def test_splits_that_hold_nothing(make, tmp_path):
    with pytest.raises(DataError, match="found eval_fraction 0"):
        make(split="eval")
    with pytest.raises(DataError, match=f"none of {COUNT} documents at eval_fraction 1e-06"):
        make(split="eval", eval_fraction=1e-6)
    with pytest.raises(DataError, match="train split"):
        make(eval_fraction=1 - 1e-9)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("sequence_length=1", "sequence_length: found 1, expected at least 2"),
        ("batch_size=0", "batch_size: found 0, expected at least 1"),
        ("epochs=0", "epochs: found 0"),
        ("eval_fraction=1.0", "eval_fraction: found 1.0"),
        ("workers=-1", "workers: found -1"),
        ("sources=[]", "sources: found (), expected at least one source"),
        ("packing={kind='best_fit', window=0}", "packing.window: found 0"),
        ("packing={kind='bestfit'}", "did you mean best_fit?"),
        ("positions='token'", "positions: found 'token'"),
    ],
)
def test_settings_are_checked(text, part):
    good = {
        "sources": "[{kind='text', path='x'}]",
        "sequence_length": "8",
        "batch_size": "2",
    }
    good.pop(text.split("=")[0], None)
    lines = [f"{key}={value}" for key, value in good.items()]
    with pytest.raises(ConfigError) as caught:
        core_config.parse(DataConfig, "\n".join([*lines, text]))
    assert part in str(caught.value)


def test_run_file_round_trip():
    text = """
    sequence_length = 128
    batch_size = 8
    eval_fraction = 0.01
    packing = {kind = "best_fit"}
    [[sources]]
    kind = "text"
    path = "{stdlib}"
    glob = "json/*.py"
    [[sources]]
    kind = "jsonl"
    path = "~/x.jsonl"
    """
    value = core_config.parse(DataConfig, text).value
    assert value.packing == BestFit()
    assert core_config.parse(DataConfig, core_config.to_toml(value)).value == value


def test_trained_tokenizer_reads_only_train_and_is_kept(make, corpus, cache, monkeypatch):
    settings = make(eval_fraction=0.3).config
    train, held = (set(documents(settings, split)) for split in ("train", "eval"))
    assert not train & held
    assert len(train | held) == len(set(documents(settings))) == COUNT
    node = TrainBpe(vocab_size=270)
    first = tokenizer_for(node, settings, cache)
    assert first.vocab_size == 270
    monkeypatch.setattr(module, "documents", None)  # reading again would fail
    assert tokenizer_for(node, settings, cache).digest == first.digest
    assert tokenizer_for(ByteTokenizer(), settings, cache).digest == byte_level().digest


def test_importing_and_configuring_loads_nothing_heavy():
    program = (
        "import sys, ziggurat.data as data\n"
        "data.DataConfig(sources=(data.TextFiles(path='x'),), sequence_length=8, batch_size=1)\n"
        "print([m for m in ('jax', 'grain', 'pyarrow', 'tokenizers') if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "[]"


WORKERS = """
import itertools, sys
from pathlib import Path
import numpy as np
from ziggurat.data import *

if __name__ == "__main__":
    source = JsonLines(path=sys.argv[1])
    settings = DataConfig(sources=(source,), sequence_length=32, batch_size=8, workers=2)
    data = build(settings, byte_level(), 0, Path(sys.argv[2]))
    batches = data.iterate(3)
    for step, batch in enumerate(itertools.islice(batches, 20), 3):
        for key, values in data.batch(step).items():
            np.testing.assert_array_equal(batch[key], values)
    batches.close()
    print("equal")
"""


@pytest.mark.slow
def test_worker_processes_make_the_same_batches(corpus, cache, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(WORKERS)
    out = subprocess.run(
        [sys.executable, str(script), str(corpus), str(cache)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert out.stdout.strip() == "equal", out.stderr


def test_a_shared_store_serves_every_setting(make, corpus, cache):
    one, two = make(sequence_length=16), make(sequence_length=64, packing=BestFit())
    assert one.components[0].store.path == two.components[0].store.path
    assert one.vocab_size == 257
    assert (
        tokenise(one.config.sources, byte_level(), cache).content == one.components[0].store.content
    )
