"""Sources in an object store: a real server that speaks S3, started by the test."""

import gzip
import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ziggurat.core.errors import DataError
from ziggurat.data.sources import (
    ArrayRecords,
    HuggingFaceDataset,
    JsonLines,
    Parquet,
    TextFiles,
    WebDataset,
    list_files,
    read,
    reading,
)
from ziggurat.data.store import tokenise
from ziggurat.data.tokenizers import byte_level

TEXTS = [f"text {number} é" * (number % 5 + 1) for number in range(200)]


@pytest.fixture(scope="module")
def server():
    """Address of the server; s3fs finds it through the environment."""
    import fsspec
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        fsspec.filesystem("s3").mkdir("corpus")
        yield
        fsspec.filesystem("s3").clear_instance_cache()
    server.stop()


def lines(texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def shard(texts):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for number, text in enumerate(texts):
            info = tarfile.TarInfo(f"{number:04}.txt")
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
    return out.getvalue()


@pytest.fixture(scope="module")
def corpus(server, tmp_path_factory):
    """One source of every kind, and the directory on disk that was copied there."""
    import s3fs
    from array_record.python.array_record_module import ArrayRecordWriter

    where = tmp_path_factory.mktemp("corpus")
    (where / "a.jsonl.gz").write_bytes(gzip.compress(lines(TEXTS)))
    (where / "b.jsonl").write_bytes(lines(TEXTS))
    pq.write_table(pa.table({"text": TEXTS}), where / "a.parquet", row_group_size=50)
    (where / "a.tar").write_bytes(shard(TEXTS))
    (where / "set").mkdir()
    table = pa.table({"text": TEXTS})
    with pa.ipc.new_stream(where / "set" / "d.arrow", table.schema) as stream:
        stream.write_table(table)
    (where / "set" / "state.json").write_text('{"_data_files": [{"filename": "d.arrow"}]}')
    writer = ArrayRecordWriter(str(where / "a.array_record"), "group_size:1")
    for text in TEXTS:
        writer.write(text.encode())
    writer.close()
    (where / "a.txt").write_text("one\r\ntext")
    s3fs.S3FileSystem().put(f"{where}/", "corpus/all/", recursive=True)
    return where


def sources(root):
    return (
        JsonLines(path=f"{root}/a.jsonl.gz"),
        JsonLines(path=root, glob="*.jsonl"),
        Parquet(path=root),
        WebDataset(path=f"{root}/a.tar"),
        HuggingFaceDataset(path=f"{root}/set"),
        ArrayRecords(path=root),
        TextFiles(path=root, glob="*.txt"),
    )


def test_every_kind_reads_the_same_as_from_disk(corpus):
    for remote, local in zip(sources("s3://corpus/all"), sources(str(corpus)), strict=True):
        there, here = list(read([remote])), list(read([local]))
        assert [d.text for d in there] == [d.text for d in here], remote.kind
        assert [d.record for d in there] == [d.record for d in here]
        assert {d.file for d in there} == {
            d.file.replace(str(corpus), "s3://corpus/all") for d in here
        }


def test_tokenised_in_units_by_processes(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "LEAST_UNIT", 3000)
    remote = sources("s3://corpus/all")[:4]
    units = reading.units(remote, [list_files(source) for source in remote])
    assert len(units) > 8
    there = tokenise(remote, byte_level(), tmp_path / "there", workers=1)
    here = tokenise(sources(str(corpus))[:4], byte_level(), tmp_path / "here")
    assert there.content == here.content
    assert np.array_equal(there.records, here.records)


def test_a_changed_object_gives_a_new_store(server, tmp_path):
    import s3fs

    system = s3fs.S3FileSystem()
    system.pipe_file("corpus/changing/a.jsonl", lines(["one", "two"]))
    source = JsonLines(path="s3://corpus/changing")
    first = tokenise([source], byte_level(), tmp_path)
    assert tokenise([source], byte_level(), tmp_path).path == first.path
    s3fs.S3FileSystem(skip_instance_cache=True).pipe_file(
        "corpus/changing/a.jsonl", lines(["one", "six"])
    )
    second = tokenise([source], byte_level(), tmp_path)
    assert second.path != first.path
    assert byte_level().decode(second.document(1).tolist()) == "six"
    s3fs.S3FileSystem(skip_instance_cache=True).pipe_file("corpus/changing/b.jsonl", lines(["x"]))
    assert len(tokenise([source], byte_level(), tmp_path)) == 3


def test_faults_of_a_store(server, tmp_path):
    import s3fs

    with pytest.raises(DataError, match="s3://corpus/nothing: found no such file or directory"):
        list_files(JsonLines(path="s3://corpus/nothing"))
    system = s3fs.S3FileSystem()
    system.pipe_file("corpus/cut/a.jsonl.gz", gzip.compress(lines(TEXTS))[:-50])
    with pytest.raises(DataError, match=r"s3://corpus/cut/a\.jsonl\.gz line \d+: found"):
        tokenise([JsonLines(path="s3://corpus/cut")], byte_level(), tmp_path)


def test_a_store_out_of_reach_is_one_line(monkeypatch):
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "none")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "none")
    with pytest.raises(DataError, match="source s3://corpus: found Could not connect"):
        list_files(JsonLines(path="s3://corpus"))
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(DataError, match="source nosuch://x: found Protocol not known"):
        list_files(JsonLines(path="nosuch://x"))
