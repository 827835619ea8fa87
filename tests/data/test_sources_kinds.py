"""ArrayRecord, data sets on disk, tar shards and packed lines: read whole, and damaged at will."""

import bz2
import gzip
import io
import json
import lzma
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from array_record.python.array_record_module import ArrayRecordWriter

from ziggurat.core import config
from ziggurat.core.errors import ConfigError, DataError
from ziggurat.data.dataset import DataConfig
from ziggurat.data.sources import (
    ArrayRecords,
    HuggingFaceDataset,
    JsonLines,
    Parquet,
    ReadReport,
    WebDataset,
    read,
    signature,
)

TEXTS = [f"text {number} é" * (number % 5 + 1) for number in range(300)]
TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]


def texts(source, report=None):
    return [document.text for document in read([source], report)]


def error_of(source):
    with pytest.raises(DataError) as caught:
        texts(source)
    message = str(caught.value)
    assert "\n" not in message
    return message


def skipped(source, kept=None):
    """Reads with damage left out; one line must tell of it. Returns that line."""
    report = ReadReport()
    found = texts(source, report)
    assert report.skipped == len(report.faults) == 1
    assert found == kept if kept is not None else found == TEXTS[: len(found)]
    return report.faults[0]


def packed_zst(content, frames=1):
    step = -(-len(content) // frames)
    pieces = [content[i : i + step] for i in range(0, len(content), step)]
    return b"".join(zstandard.ZstdCompressor().compress(piece) for piece in pieces)


PACKERS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": packed_zst,
}


def lines():
    return "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()


@pytest.mark.parametrize("ending", PACKERS)
def test_packed_lines_whole_and_cut(tmp_path, ending):
    content = PACKERS[ending](lines())
    file = tmp_path / f"a.jsonl.{ending}"
    file.write_bytes(content)
    assert texts(JsonLines(path=str(tmp_path))) == TEXTS
    file.write_bytes(content[:-10] if ending != "zst" else content[: len(content) // 2])
    assert "expected a whole file" in error_of(JsonLines(path=str(tmp_path)))
    skip = JsonLines(path=str(tmp_path), on_error="skip", max_documents=None)
    report = ReadReport()
    try:
        found = texts(skip, report)
    except DataError:
        found = []  # all of it stood in one block
    assert found == TEXTS[: len(found)]
    assert report.skipped == 1
    file.write_bytes(b"no such thing" * 10)
    assert f"a.jsonl.{ending} line 1: found" in error_of(JsonLines(path=str(tmp_path)))


def test_zstandard_of_several_frames(tmp_path):
    (tmp_path / "a.jsonl.zst").write_bytes(packed_zst(lines(), frames=7))
    assert texts(JsonLines(path=str(tmp_path))) == TEXTS


def write_records(path, records, options="group_size:1"):
    writer = ArrayRecordWriter(str(path), options)
    for record in records:
        writer.write(record)
    writer.close()


def test_array_record(tmp_path):
    write_records(tmp_path / "b.array_record", [text.encode() for text in TEXTS])
    write_records(tmp_path / "a.array_record-00000-of-00001", [b"first"])
    found = list(read([ArrayRecords(path=str(tmp_path))]))
    assert [document.text for document in found] == ["first", *TEXTS]
    assert [document.record for document in found[:3]] == [1, 1, 2]
    write_records(tmp_path / "c.json", [json.dumps({"body": "x"}).encode(), b'{"body": ""}'])
    assert texts(ArrayRecords(path=str(tmp_path), glob="*.json", field="body")) == ["x"]


def test_array_record_faults(tmp_path):
    file = tmp_path / "a.array_record"
    source = ArrayRecords(path=str(file))
    skip = ArrayRecords(path=str(file), on_error="skip")
    write_records(file, [b"a", b"\xff", b"c"])
    assert "a.array_record record 2: found invalid start byte" in error_of(source)
    assert "record 2" in skipped(skip, ["a", "c"])
    write_records(file, [b'{"text": "a"}', b"{", b'{"text": "c"}'])
    keyed = ArrayRecords(path=str(file), field="text", on_error="skip")
    assert "record 2" in skipped(keyed, ["a", "c"])
    file.write_bytes(b"short")
    assert "expected a whole ArrayRecord file" in error_of(source)
    assert "no documents (0 empty, 1 damaged records)" in error_of(skip)


def test_array_record_cut_or_changed(tmp_path):
    rng = np.random.default_rng(0)
    records = [rng.integers(97, 122, 3000).astype(np.uint8).tobytes() for _ in range(100)]
    file = tmp_path / "a.array_record"
    write_records(file, records, "group_size:1,uncompressed")
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    assert "expected a whole ArrayRecord file" in error_of(ArrayRecords(path=str(file)))
    changed = bytearray(content)
    changed[len(content) // 2] ^= 1
    file.write_bytes(changed)
    assert "a.array_record record " in error_of(ArrayRecords(path=str(file)))
    report = ReadReport()
    found = texts(ArrayRecords(path=str(file), on_error="skip"), report)
    assert 95 <= len(found) < 100
    assert report.skipped == 100 - len(found)
    assert {text.encode() for text in found} < set(records)


def write_dataset(path, *tables, **state):
    """What ``Dataset.save_to_disk`` writes, as far as it is read."""
    path.mkdir(parents=True)
    names = [f"data-{i:05}-of-{len(tables):05}.arrow" for i in range(len(tables))]
    for name, table in zip(names, tables, strict=True):
        with pa.ipc.new_stream(path / name, table.schema) as stream:
            stream.write_table(table, max_chunksize=100)
    state = {"_data_files": [{"filename": name} for name in names], **state}
    (path / "state.json").write_text(json.dumps(state))


def test_hugging_face_dataset_in_the_recorded_order(tmp_path):
    where = tmp_path / "set"
    write_dataset(where, pa.table({"text": TEXTS[:200]}), pa.table({"text": TEXTS[200:]}))
    source = HuggingFaceDataset(path=str(where))
    found = list(read([source]))
    assert [document.text for document in found] == TEXTS
    assert (found[250].file, found[250].record) == (f"{where}/data-00001-of-00002.arrow", 51)
    state = json.loads((where / "state.json").read_text())
    state["_data_files"].reverse()
    before = signature([source])
    (where / "state.json").write_text(json.dumps(state))
    assert texts(source) == TEXTS[200:] + TEXTS[:200]
    assert signature([source]) != before


def test_hugging_face_dataset_with_splits(tmp_path):
    where = tmp_path / "set"
    write_dataset(where / "train", pa.table({"body": ["a"]}))
    (where / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert texts(HuggingFaceDataset(path=str(where), split="train", column="body")) == ["a"]
    message = error_of(HuggingFaceDataset(path=str(where), split="tran"))
    assert "found splits train, test" in message
    assert "did you mean train?" in message
    assert "set split" in error_of(HuggingFaceDataset(path=str(where)))
    message = error_of(HuggingFaceDataset(path=str(where / "train"), split="train"))
    assert "found no dataset_dict.json" in message


def test_hugging_face_dataset_faults(tmp_path):
    where = tmp_path / "set"
    write_dataset(where, pa.table({"text": TEXTS}))
    (file,) = where.glob("*.arrow")
    content = file.read_bytes()
    file.write_bytes(content[: len(content) * 2 // 3])
    message = error_of(HuggingFaceDataset(path=str(where)))
    assert "row 201: found" in message
    assert "expected a whole Arrow file" in message
    assert "row 201" in skipped(HuggingFaceDataset(path=str(where), on_error="skip"), TEXTS[:200])
    file.write_bytes(b"x")
    assert "row 1: found" in error_of(HuggingFaceDataset(path=str(where)))
    file.unlink()
    assert "expected a place that can be read" in error_of(HuggingFaceDataset(path=str(where)))
    (where / "state.json").write_text("{")
    assert "expected a JSON object" in error_of(HuggingFaceDataset(path=str(where)))
    (where / "state.json").unlink()
    assert "found no state.json" in error_of(HuggingFaceDataset(path=str(where)))
    assert "found no such directory" in error_of(HuggingFaceDataset(path=str(where / "x")))
    other = tmp_path / "other"
    write_dataset(other, pa.table({"text": TEXTS}), _indices_data_files=[{"filename": "i.arrow"}])
    assert "found a table of indices" in error_of(HuggingFaceDataset(path=str(other)))


@pytest.mark.parity
def test_hugging_face_dataset_as_its_library_writes_it(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    made = datasets.Dataset.from_dict({"text": TEXTS, "messages": [TALK] * len(TEXTS)})
    mixed = made.shuffle(seed=1).select(range(150))
    mixed.save_to_disk(str(tmp_path / "one"), num_shards=3)
    assert texts(HuggingFaceDataset(path=str(tmp_path / "one"))) == mixed["text"][:]
    datasets.DatasetDict(train=mixed, test=made).save_to_disk(str(tmp_path / "two"))
    assert texts(HuggingFaceDataset(path=str(tmp_path / "two"), split="test")) == TEXTS
    talks = HuggingFaceDataset(path=str(tmp_path / "one"), content="messages")
    (first, *_) = read([talks])
    assert list(first.messages) == TALK


def write_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def samples():
    for number, text in enumerate(TEXTS):
        yield f"d.x/{number:04}.seg.png", b"image" * 100
        yield f"d.x/{number:04}.txt", text.encode()
        yield f"d.x/{number:04}.json", json.dumps({"text": text[::-1], "n": number}).encode()


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tgz", "tar.zst"])
def test_web_dataset(tmp_path, ending):
    write_tar(tmp_path / "plain", samples())
    content = (tmp_path / "plain").read_bytes()
    packer = {"tar": bytes, "tar.gz": gzip.compress, "tgz": gzip.compress, "tar.zst": packed_zst}
    (tmp_path / f"a.{ending}").write_bytes(packer[ending](content))
    glob = f"*.{ending}"
    found = list(read([WebDataset(path=str(tmp_path), glob=glob)]))
    assert [document.text for document in found] == TEXTS
    assert [document.record for document in found] == list(range(1, 301))
    inner = WebDataset(path=str(tmp_path), glob=glob, field="json.text")
    assert texts(inner) == [text[::-1] for text in TEXTS]


def test_web_dataset_faults_of_samples(tmp_path):
    file = tmp_path / "a.tar"
    members = [
        ("0.txt", b"a"),
        ("1.cls", b"3"),
        ("2.txt", b"\xff"),
        ("3.txt", b""),
        ("4.txt", b"e"),
    ]
    write_tar(file, members)
    message = error_of(WebDataset(path=str(file)))
    assert "a.tar sample 2: found keys 'cls'; expected a key 'txt'" in message
    report = ReadReport()
    assert texts(WebDataset(path=str(file), on_error="skip"), report) == ["a", "e"]
    assert (report.skipped, report.empty) == (2, 1)
    write_tar(file, [("0.json", b'{"n": 1}')])
    message = error_of(WebDataset(path=str(file), field="json.n"))
    assert "sample 1: found 'json.n': int; expected a string" in message


@pytest.mark.parametrize("place", ["content", "header", "border", "changed header"])
def test_web_dataset_cut_or_changed(tmp_path, place):
    file = tmp_path / "a.tar"
    write_tar(file, [(f"{i:04}.txt", text.encode() * 50) for i, text in enumerate(TEXTS[:50])])
    with tarfile.open(file) as archive:
        member = archive.getmembers()[20]
    content = bytearray(file.read_bytes())
    if place == "changed header":
        content[member.offset + 3] ^= 1
    else:
        ends = {"content": member.offset_data + 100, "header": member.offset + 100}
        del content[ends.get(place, member.offset) :]
    file.write_bytes(content)
    message = error_of(WebDataset(path=str(file)))
    assert "expected a whole tar archive" in message
    # A sample whose end was not seen may lack a member, so it does not count as whole.
    whole = 20 if place == "content" else 19
    kept = [text * 50 for text in TEXTS[:whole]]
    assert f"sample {whole + 1}: " in skipped(WebDataset(path=str(file), on_error="skip"), kept)


def test_a_damaged_group_of_rows_is_left_out_alone(tmp_path):
    rng = np.random.default_rng(0)
    letters = ["".join(map(chr, rng.integers(97, 122, 50))) for _ in range(300)]
    file = tmp_path / "a.parquet"
    table = pa.table({"text": letters})
    pq.write_table(table, file, row_group_size=100, compression="zstd", use_dictionary=False)
    column = pq.ParquetFile(file).metadata.row_group(1).column(0)
    content = bytearray(file.read_bytes())
    start = column.data_page_offset
    content[start : start + 200] = bytes(200)
    file.write_bytes(content)
    assert "a.parquet row 101: found group of rows 101 to 200" in error_of(Parquet(path=str(file)))
    fault = skipped(Parquet(path=str(file), on_error="skip"), letters[:100] + letters[200:])
    assert "rows 101 to 200" in fault
    file.write_bytes(bytes(content)[:-20])
    assert "expected a whole Parquet file" in error_of(Parquet(path=str(file)))


def test_contents_of_tables_and_lines(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"messages": TALK, "prompt": "p", "completion": "c", "answer": "é"}) + "\n"
    )
    table = pa.table({"messages": [TALK], "prompt": ["p"], "completion": ["c"], "answer": ["é"]})
    pq.write_table(table, tmp_path / "a.parquet")
    for kind, key in ((JsonLines, "field"), (Parquet, "column")):
        (talk,) = read([kind(path=str(tmp_path), content="messages")])
        assert (talk.text, list(talk.messages)) == ("Hi\nHo", TALK)
        (pair,) = read([kind(path=str(tmp_path), content="prompt_completion")])
        assert (pair.text, pair.learned) == ("pc", ((1, 2),))
        settings = {"content": "prompt_completion", key: "completion", "completion": "answer"}
        (pair,) = read([kind(path=str(tmp_path), **settings)])
        assert (pair.text, pair.learned) == ("cé", ((1, 2),))
    with pytest.raises(DataError, match="expected a list of messages"):
        texts(Parquet(path=str(tmp_path), content="messages", column="prompt"))


@pytest.mark.parametrize(
    ("messages", "part"),
    [
        ([], "'messages': no messages"),
        ("Hi", "'messages': str; expected a list of messages"),
        ([{"content": "x"}], "message 0 without a role"),
        (["x"], "message 0 without a role"),
        ([{"role": "assistant", "content": "\ud800"}], "a lone surrogate"),
        ({"role": ["user"], "content": ["a", "b"]}, "lists of different lengths"),
    ],
)
def test_damaged_messages(tmp_path, messages, part):
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": messages}))
    message = error_of(JsonLines(path=str(tmp_path), content="messages"))
    assert part in message
    assert "line 1" in message


def test_messages_in_columns_and_without_an_answer(tmp_path):
    columns = {"role": ["user", "assistant"], "content": ["Hi", "Ho"], "tool_calls": [None, None]}
    records = [{"messages": columns}, {"messages": TALK[:1]}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    report = ReadReport()
    (talk,) = read([JsonLines(path=str(tmp_path), content="messages")], report)
    assert list(talk.messages) == TALK
    assert report.empty == 1


def test_the_mixture_component_is_no_part_of_the_signature(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}')
    one, two = (JsonLines(path=str(tmp_path), name=name) for name in ("", "web"))
    assert signature([one]) == signature([two])
    assert signature([JsonLines(path=str(tmp_path), field="body")]) != signature([one])


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ("kind = 'jsonl'\ncompletion = 'c'", "completion: found 'c', expected nothing, unless"),
        ("kind = 'hf_dataset'\nglob = '*'", "glob: unknown key"),
        ("kind = 'webdataset'\ncontent = 'prompt_completion'", "completion: found None"),
        ("kind = 'arrayrecord'", "expected one of text, jsonl, parquet, array_record"),
    ],
)
def test_settings_are_checked(settings, part):
    text = f"sequence_length=8\nbatch_size=1\n[[sources]]\npath='a'\n{settings}"
    with pytest.raises(ConfigError) as caught:
        config.parse(DataConfig, text)
    assert part in str(caught.value)
