"""The token store: made once, found again, made anew when anything changed, never half there."""

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from ziggurat.core.errors import DataError
from ziggurat.data.huggingface import HuggingFaceTokenizer
from ziggurat.data.sources import Document, JsonLines, TextFiles
from ziggurat.data.store import is_held_out, open_store, tokenise
from ziggurat.data.tokenizers import byte_level


@pytest.fixture
def corpus(tmp_path):
    directory = tmp_path / "corpus"
    directory.mkdir()
    for number in range(20):
        (directory / f"{number:02}.txt").write_text(f"document {number} é" * (number + 1))
    return directory


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def test_documents_come_back_as_text(corpus, cache):
    tokenizer = byte_level()
    seen = []
    store = tokenise(
        [TextFiles(path=str(corpus))], tokenizer, cache, lambda *counts: seen.append(counts)
    )
    assert len(store) == 20
    assert store.tokens.dtype == np.uint16
    for number in range(20):
        ids = store.document(number).tolist()
        assert ids[-1] == tokenizer.eos_ids[0]
        assert tokenizer.decode(ids) == f"document {number} é" * (number + 1)
        assert store.identity(number) == (f"{corpus}/{number:02}.txt", 1)
    assert seen == [(20, len(store.tokens))]
    store.verify()


def test_bos_where_the_tokenizer_puts_it(corpus, cache):
    tokenizer = byte_level({"eos_token": "</s>", "bos_token": "<s>"})
    store = tokenise([TextFiles(path=str(corpus))], tokenizer, cache)
    assert store.document(3)[0] == tokenizer.bos_id
    assert store.document(3).tolist()[1:-1] == tokenizer.encode("document 3 é" * 4)


class Words:
    """A tokenizer of another library: one id per character code, beyond 16 bits."""

    vocab_size, bos_id, eos_ids, chat_template = 0x110000, None, (0,), None

    def encode(self, text, *, add_special_tokens=False):
        return [ord(character) for character in text]

    def decode(self, ids, *, skip_special_tokens=True):
        return "".join(map(chr, ids))


def test_wide_tokens_of_any_tokenizer_with_a_digest(corpus, cache):
    (corpus / "00.txt").write_text("a😀")
    source = [TextFiles(path=str(corpus))]
    with pytest.raises(DataError, match="Words: found no digest"):
        tokenise(source, Words(), cache)

    class Digested(Words):
        digest = "1"

    store = tokenise(source, Digested(), cache)
    assert store.tokens.dtype == np.uint32
    assert store.document(0).tolist() == [97, 0x1F600, 0]


def test_reused_until_something_changes(corpus, cache):
    def make(tokenizer=None, **settings):
        source = TextFiles(path=str(corpus), **settings)
        return tokenise([source], tokenizer or byte_level(), cache).path

    first = make()
    made = (first / "meta.json").stat().st_mtime_ns
    assert make() == first
    assert (first / "meta.json").stat().st_mtime_ns == made
    paths = {first, make(max_documents=3), make(byte_level({"eos_token": "</s>"}))}
    (corpus / "00.txt").write_text("other")
    paths.add(make())
    os.utime(corpus / "01.txt", (1, 1))
    paths.add(make())
    (corpus / "99.txt").write_text("more")
    paths.add(make())
    assert len(paths) == 6


def test_content_digest_does_not_depend_on_place_or_time(corpus, cache, tmp_path):
    one = tokenise([TextFiles(path=str(corpus))], byte_level(), cache)
    other = tmp_path / "moved"
    corpus.rename(other)
    os.utime(other / "01.txt", (1, 1))
    two = tokenise([TextFiles(path=str(other))], byte_level(), cache)
    assert one.path != two.path
    assert one.content == two.content


@pytest.mark.parametrize("name", ["tokens.bin", "offsets.npy", "meta.json", "records.npy"])
def test_a_damaged_store_is_named_and_made_anew(corpus, cache, name, caplog):
    source = [TextFiles(path=str(corpus))]
    store = tokenise(source, byte_level(), cache)
    file = store.path / name
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(DataError, match="expected a whole store"):
        open_store(store.path)
    again = tokenise(source, byte_level(), cache)
    again.verify()
    assert "made anew" in caplog.text


def test_verify_finds_changed_tokens(corpus, cache):
    store = tokenise([TextFiles(path=str(corpus))], byte_level(), cache)
    file = store.path / "tokens.bin"
    content = bytearray(file.read_bytes())
    content[10] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match="found content"):
        open_store(store.path).verify()


def test_failure_leaves_nothing_behind(corpus, cache):
    (corpus / "19.txt").write_bytes(b"\xff")
    with pytest.raises(DataError):
        tokenise([TextFiles(path=str(corpus))], byte_level(), cache)
    assert list(cache.iterdir()) == []


def test_report_is_kept(tmp_path, cache):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{}\n{"text": ""}\n')
    source = [JsonLines(path=str(tmp_path / "a.jsonl"), on_error="skip")]
    for _ in range(2):
        report = tokenise(source, byte_level(), cache).meta["report"]
        assert (report["documents"], report["empty"], report["skipped"]) == (1, 1, 1)
        assert "a.jsonl line 2" in report["faults"][0]


def test_pickling_maps_the_files_again(corpus, cache):
    store = tokenise([TextFiles(path=str(corpus))], byte_level(), cache)
    data = pickle.dumps(store)
    assert len(data) < 1000
    assert np.array_equal(pickle.loads(data).tokens, store.tokens)


def test_held_out_share_and_stability(tmp_path, cache):
    lines = [json.dumps({"text": f"t{i}"}) + "\n" for i in range(2000)]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    source = JsonLines(path=str(tmp_path / "a.jsonl"))
    store = tokenise([source], byte_level(), cache)
    held = store.held_out(0.1)
    assert 150 < held.sum() < 250
    assert not held[store.held_out(0.05) & ~held].any()
    # Fewer documents, and one at a time: every document stays on its side.
    part = tokenise([JsonLines(path=source.path, max_documents=100)], byte_level(), cache)
    assert np.array_equal(part.held_out(0.1), held[:100])
    single = [is_held_out(Document(f"t{i}", "elsewhere", 1), 0.1) for i in range(100)]
    assert single == held[:100].tolist()


def test_two_processes_make_one_store(corpus, cache):
    program = (
        "import sys; from pathlib import Path; from ziggurat.data import *\n"
        "print(tokenise([TextFiles(path=sys.argv[1])], byte_level(), Path(sys.argv[2])).content)"
    )
    command = [sys.executable, "-c", program, str(corpus), str(cache)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    contents = {process.communicate()[0] for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(contents) == 1
    assert len(list(cache.iterdir())) == 1


def test_tokenizer_must_have_eos(corpus, cache):
    source = [TextFiles(path=str(corpus))]
    with pytest.raises(DataError, match="found no eos token"):
        tokenise(source, HuggingFaceTokenizer(byte_level({}).backend), cache)
