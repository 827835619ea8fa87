"""Preparation in units: the same store for every number of processes and after every kill."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ziggurat.core.errors import DataError
from ziggurat.data import prepare
from ziggurat.data.huggingface import HuggingFaceTokenizer
from ziggurat.data.sources import ArrayRecords, JsonLines, Parquet, TextFiles, list_files, reading
from ziggurat.data.store import tokenise
from ziggurat.data.tokenizers import byte_level

SMALL = "from ziggurat.data.sources import reading; reading.LEAST_UNIT = 2000\n"


@pytest.fixture
def small_units(monkeypatch):
    """Units of 2 kB, so that little data makes many."""
    monkeypatch.setattr(reading, "LEAST_UNIT", 2000)


@pytest.fixture
def corpus(tmp_path):
    """Sources of four kinds, each cut into several units of work; and lines with faults."""
    from array_record.python.array_record_module import ArrayRecordWriter

    rng = np.random.default_rng(0)
    where = tmp_path / "corpus"
    (where / "texts").mkdir(parents=True)
    texts = [f"{i} é " + "x" * int(n) for i, n in enumerate(rng.integers(0, 60, 200))]
    for number in range(60):
        (where / "texts" / f"{number:03}.txt").write_text(texts[number] * 3 if number % 7 else "")
    lines = [json.dumps({"text": text}) for text in texts]
    lines[5], lines[77], lines[150], lines[151] = "", "{damaged", '{"text": ""}', "[]"
    (where / "a.jsonl").write_text("\n".join(lines))
    table = pa.table({"text": texts})
    pq.write_table(table, where / "a.parquet", row_group_size=30, compression="none")
    writer = ArrayRecordWriter(str(where / "a.array_record"), "group_size:1")
    for text in texts:
        writer.write(text.encode())
    writer.close()
    return (
        TextFiles(path=str(where / "texts")),
        JsonLines(path=str(where / "a.jsonl"), on_error="skip"),
        JsonLines(path=str(where / "a.jsonl"), on_error="skip", max_documents=120),
        Parquet(path=str(where / "a.parquet")),
        ArrayRecords(path=str(where / "a.array_record")),
    )


def same(left, right):
    """Whether two stores hold the same, apart from where they are."""
    arrays = ("tokens", "offsets", "files", "records")
    equal = all(np.array_equal(getattr(left, n), getattr(right, n)) for n in arrays)
    return equal and left.meta == right.meta


def reference(sources):
    """The documents and what was left out, read from front to back."""
    report = reading.ReadReport()
    return list(reading.read(sources, report)), report


def test_units_give_what_reading_in_order_gives(corpus, tmp_path, small_units):
    units = reading.units(corpus, [list_files(source) for source in corpus])
    assert all(sum(unit.source == number for unit in units) > 1 for number in range(5))
    documents, report = reference(corpus)
    assert report.skipped == 3
    seen = []
    store = tokenise(corpus, byte_level(), tmp_path / "cache", lambda *counts: seen.append(counts))
    assert len(store) == len(documents)
    for number, document in enumerate(documents):
        assert store.identity(number) == (document.file, document.record)
        assert (
            store.document(number).tobytes()
            == np.array([*document.text.encode(), 256], "<u2").tobytes()
        )
    assert store.meta["report"] == dataclasses.asdict(report)
    assert store.meta["files"] == list(dict.fromkeys(document.file for document in documents))
    assert seen[-1][1] >= len(store.tokens)
    store.verify()
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [store.path.name]


def test_content_does_not_depend_on_the_cut(corpus, tmp_path, monkeypatch):
    stores = []
    for size in (1500, 1 << 22):
        monkeypatch.setattr(reading, "LEAST_UNIT", size)
        stores.append(tokenise(corpus, byte_level(), tmp_path / str(size)))
    assert all(same(stores[0], store) for store in stores[1:])


@pytest.mark.parametrize("limit", [1, 19, 20, 21, 57, 133, 10_000])
def test_limits_are_exact_and_failures_behind_them_do_not_count(tmp_path, small_units, limit):
    lines = [json.dumps({"text": "x" * 90})] * 150
    lines[58] = "{damaged"
    lines[10] = '{"text": ""}'
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    source = JsonLines(path=str(tmp_path / "a.jsonl"), max_documents=limit)
    if limit > 57:
        with pytest.raises(DataError) as read:
            reference([source])
        with pytest.raises(DataError) as caught:
            tokenise([source], byte_level(), tmp_path / "cache")
        assert "a.jsonl line 59: found Expecting" in str(caught.value)
        assert str(caught.value) == str(read.value)
        assert list((tmp_path / "cache").iterdir()) == []
        return
    documents, report = reference([source])
    store = tokenise([source], byte_level(), tmp_path / "cache")
    assert len(store) == len(documents) == limit
    assert store.meta["report"] == dataclasses.asdict(report)


def test_the_first_failure_is_told_whatever_the_processes(tmp_path, small_units):
    lines = [json.dumps({"text": "x" * 90})] * 150
    lines[58] = lines[120] = "{damaged"
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    for workers in (0, 2):
        with pytest.raises(DataError, match=r"a\.jsonl line 59: found Expecting"):
            tokenise([JsonLines(path=str(tmp_path))], byte_level(), tmp_path / "c", workers=workers)
        assert list((tmp_path / "c").iterdir()) == []


KILLED = (
    SMALL
    + """
import os, signal, sys, time
from pathlib import Path
from ziggurat.core import config
from ziggurat.data import parts, prepare
from ziggurat.data.sources import JsonLines
from ziggurat.data.store import tokenise
from ziggurat.data.tokenizers import byte_level

after, workers = int(sys.argv[3]), int(sys.argv[4])
done = 0
add = prepare._Schedule.add

def killing(self, number, part):
    global done
    add(self, number, part)
    fresh = part.path.stat().st_mtime > began
    done += fresh
    if fresh and done == after:
        os.kill(os.getpid(), signal.SIGKILL)

began = time.time()
prepare._Schedule.add = killing
tokenise([JsonLines(path=sys.argv[1])], byte_level(), Path(sys.argv[2]), workers=workers)
print(done)
"""
)


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_and_gone_on_without_doing_parts_again(tmp_path, small_units, workers):
    lines = [json.dumps({"text": f"{i} " * 30}) for i in range(400)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    cache = tmp_path / "cache"
    command = [sys.executable, "-c", KILLED, str(tmp_path / "a.jsonl"), str(cache)]
    source = JsonLines(path=str(tmp_path / "a.jsonl"))
    units = len(reading.units([source], [list_files(source)]))
    assert units > 12
    assert subprocess.run([*command, "4", str(workers)]).returncode == -signal.SIGKILL
    (staging,) = cache.glob("*.parts")
    finished = sorted(path for path in staging.glob("part-*") if ".tmp-" not in path.name)
    # Each worker may finish one more before it sees that nobody listens.
    assert 4 <= len(finished) <= 4 + workers
    content = bytearray((finished[0] / "tokens.bin").read_bytes())
    content[7] ^= 1
    (finished[0] / "tokens.bin").write_bytes(content)
    again = [*command, "0", str(workers)]
    result = subprocess.run(again, check=True, capture_output=True, text=True)
    left = units - len(finished) + 1  # the damaged one is made again
    assert left - workers <= int(result.stdout) <= left
    (made,) = cache.iterdir()
    whole = tokenise([source], byte_level(), tmp_path / "undisturbed")
    assert same(tokenise([source], byte_level(), cache), whole)
    for name in ("tokens.bin", "offsets.npy", "files.npy", "records.npy", "meta.json"):
        assert (made / name).read_bytes() == (whole.path / name).read_bytes()


def test_a_killed_worker_is_replaced_and_the_store_is_the_same(
    corpus, tmp_path, small_units, monkeypatch, caplog
):
    killed = []
    give = prepare.PrepareWorker.give

    def killing(worker, number, *rest):
        if number in (2, 7) and number not in killed:
            killed.append(number)
            worker.process.send_signal(signal.SIGKILL)
        give(worker, number, *rest)

    monkeypatch.setattr(prepare.PrepareWorker, "give", killing)
    store = tokenise(corpus, byte_level(), tmp_path / "cache", workers=2)
    assert killed == [2, 7]
    assert caplog.text.count("was killed by SIGKILL") == 2
    monkeypatch.undo()
    assert same(store, tokenise(corpus, byte_level(), tmp_path / "undisturbed"))


class Deadly(HuggingFaceTokenizer):
    """Ends the process that uses it."""

    def encode_batch(self, texts, *, add_special_tokens=False):
        if any("deadly" in text for text in texts):
            os._exit(7)
        return super().encode_batch(texts, add_special_tokens=add_special_tokens)


def test_a_unit_that_kills_every_worker_is_named_and_parts_stay(tmp_path, small_units, monkeypatch):
    for number in range(40):
        (tmp_path / f"{number:02}.txt").write_text("deadly" if number == 25 else "x" * 400)
    module = Path(__file__)
    monkeypatch.syspath_prepend(str(module.parent))
    program = type("Deadly", (Deadly,), {"__module__": module.stem})
    monkeypatch.setitem(sys.modules, module.stem, sys.modules[__name__])
    monkeypatch.setattr(sys.modules[__name__], "Deadly", program)
    cache = tmp_path / "cache"
    with pytest.raises(DataError) as caught:
        tokenise(
            [TextFiles(path=str(tmp_path), glob="*.txt")],
            program(byte_level().backend, byte_level().settings),
            cache,
            workers=1,
        )
    assert "3 worker processes that died, the last one exit code 7" in str(caught.value)
    assert "finished parts are kept" in str(caught.value)
    (staging,) = cache.iterdir()
    assert len(list(staging.glob("part-*"))) >= 2


def test_a_tokenizer_that_cannot_be_sent(corpus, tmp_path, small_units):
    class Local(HuggingFaceTokenizer):
        pass

    tokenizer = Local(byte_level().backend, byte_level().settings)
    with pytest.raises(DataError, match="expected one that can be pickled; or use no worker"):
        tokenise(corpus, tokenizer, tmp_path / "cache", workers=2)


def test_workers_load_neither_jax_nor_the_starting_program(tmp_path, small_units):
    for number in range(20):
        (tmp_path / f"{number:02}.txt").write_text("x" * 400)
    script = tmp_path / "script.py"
    script.write_text(
        "from ziggurat.data.sources import reading\nreading.LEAST_UNIT = 2000\n"
        "from pathlib import Path\n"
        "from ziggurat.data import TextFiles, byte_level, tokenise\n"
        "import ziggurat.data.prepare_worker as module\n"
        "print('started')\n"
        "class Checked(module.PrepareWorker):\n"
        "    def __init__(self, job):\n"
        "        import subprocess, sys\n"
        "        popen = subprocess.Popen\n"
        "        def checked(command, **rest):\n"
        "            command[-1] = command[-1].replace('; main(', "
        "\"; import sys; assert 'jax' not in sys.modules; main(\")\n"
        "            assert 'assert' in command[-1]\n"
        "            return popen(command, **rest)\n"
        "        module.subprocess.Popen = checked\n"
        "        super().__init__(job)\n"
        "        module.subprocess.Popen = popen\n"
        "from ziggurat.data import prepare\n"
        "prepare.PrepareWorker = Checked\n"
        f"source = TextFiles(path={str(tmp_path)!r}, glob='*.txt')\n"
        f"store = tokenise([source], byte_level(), Path({str(tmp_path / 'cache')!r}), workers=2)\n"
        "print(len(store))\n"
    )
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert run.stdout == "started\n20\n", run.stderr


def test_two_prepares_of_one_store_share_the_work(tmp_path):
    lines = [json.dumps({"text": f"{i} " * 30}) for i in range(300)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    cache = tmp_path / "cache"
    command = [sys.executable, "-c", KILLED, str(tmp_path / "a.jsonl"), str(cache), "0", "0"]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    done = sorted(int(process.communicate()[0]) for process in running)
    assert [process.returncode for process in running] == [0, 0]
    assert done[0] == 0
    assert done[1] > 12
    assert len(list(cache.iterdir())) == 1


def test_the_lock_outlives_no_holder(tmp_path):
    staging = tmp_path / "s.parts"
    with prepare.lock(staging):
        prepare.discard(staging)
    with prepare.lock(staging):
        assert (staging / "lock").exists()
    shutil.rmtree(staging)


def test_parts_left_beside_a_finished_store_go(corpus, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "discard", lambda staging: None)  # killed just before
        store = tokenise(corpus, byte_level(), cache)
    assert len(list(cache.iterdir())) == 2
    made = (store.path / "meta.json").stat().st_mtime_ns
    assert same(tokenise(corpus, byte_level(), cache), store)
    assert [path.name for path in cache.iterdir()] == [store.path.name]
    assert (store.path / "meta.json").stat().st_mtime_ns == made
