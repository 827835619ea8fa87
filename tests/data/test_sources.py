"""Documents in one order with stable names, and one clear line for everything that can be wrong."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ziggurat.core import config
from ziggurat.core.errors import ConfigError, DataError
from ziggurat.data.dataset import DataConfig
from ziggurat.data.sources import (
    JsonLines,
    Parquet,
    ReadReport,
    TextFiles,
    list_files,
    read,
    signature,
)


def texts(*sources, report=None):
    return [document.text for document in read(sources, report)]


def write_lines(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def error_of(*sources):
    with pytest.raises(DataError) as caught:
        texts(*sources)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_text_files_sorted_with_exact_content(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.txt").write_bytes("zwei\r\nZeilen é".encode())
    (tmp_path / "a.txt").write_text("eins")
    (tmp_path / "a.bin").write_bytes(b"\xff\xfe")
    source = TextFiles(path=str(tmp_path), glob="**/*.txt")
    found = list(read([source]))
    assert [d.text for d in found] == ["eins", "zwei\r\nZeilen é"]
    assert [(d.file, d.record) for d in found] == [
        (f"{tmp_path}/a.txt", 1),
        (f"{tmp_path}/b/x.txt", 1),
    ]


def test_glob_exclude_and_limit(tmp_path):
    for name in ("a.py", "b.py", "test/c.py", "d/test/e.py", "d/f.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    path = str(tmp_path)
    assert texts(TextFiles(path=path, glob="*.py")) == ["a.py", "b.py"]
    everything = TextFiles(path=path, glob="**/*.py", exclude=("**/test/**",))
    assert texts(everything) == ["a.py", "b.py", "d/f.py"]
    assert texts(TextFiles(path=path, glob="**/*.py", max_documents=2)) == ["a.py", "b.py"]
    one = TextFiles(path=str(tmp_path / "a.py"))
    assert texts(one, one) == ["a.py", "a.py"]


def test_brackets_in_a_directory_are_no_pattern(tmp_path):
    (tmp_path / "[x]").mkdir()
    (tmp_path / "[x]" / "a.txt").write_text("here")
    assert texts(TextFiles(path=str(tmp_path / "[x]"))) == ["here"]


def test_stdlib_and_home(tmp_path, monkeypatch):
    files = list_files(TextFiles(path="{stdlib}", glob="json/*.py"))
    assert files[0].name == "{stdlib}/json/__init__.py"
    assert files == list_files(TextFiles(path="{stdlib}", glob="json/*.py"))
    dollar = list_files(TextFiles(path="${stdlib}", glob="json/*.py"))
    assert [f.url for f in dollar] == [f.url for f in files]
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("home")
    (found,) = read([TextFiles(path="~/a.txt")])
    assert (found.text, found.file) == ("home", "~/a.txt")


def test_json_lines_plain_and_packed(tmp_path):
    write_lines(tmp_path / "a.jsonl", {"text": "eins"}, {"text": "zwei"})
    with gzip.open(tmp_path / "b.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write('\n{"text": "dr\\u00fci"}\n\n{"text": "vier"}')
    found = list(read([JsonLines(path=str(tmp_path))]))
    assert [d.text for d in found] == ["eins", "zwei", "drüi", "vier"]
    assert [d.record for d in found] == [1, 2, 2, 4]


def test_parquet_reads_only_the_column(tmp_path):
    for name, values in (("a", ["eins", "zwei"]), ("b", ["drei"])):
        table = pa.table({"body": pa.array(values, pa.large_string()), "n": range(len(values))})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    found = list(read([Parquet(path=str(tmp_path), column="body")]))
    assert [(d.text, d.record) for d in found] == [("eins", 1), ("zwei", 2), ("drei", 1)]


def test_missing_path():
    assert "no/such/place: found no such path" in error_of(TextFiles(path="no/such/place"))


def test_no_match(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    message = error_of(TextFiles(path=str(tmp_path), glob="*.md"))
    assert "1 files, none of which matches *.md" in message


def test_glob_on_a_file_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    message = error_of(TextFiles(path=str(tmp_path / "a.txt"), glob="*.md"))
    assert "expected a directory for glob" in message


def test_empty_corpus_counts_what_was_there(tmp_path):
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "b.txt").write_text("")
    assert "no documents (2 empty, 0 damaged records)" in error_of(TextFiles(path=str(tmp_path)))


def test_undecodable_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"ab\xff")
    message = error_of(TextFiles(path=str(tmp_path)))
    assert "a.txt: found invalid start byte at byte 2; expected utf-8 text" in message
    latin = TextFiles(path=str(tmp_path), encoding="latin-1")
    assert texts(latin) == ["abÿ"]


@pytest.mark.parametrize(
    ("line", "part"),
    [
        (b'{"text": "b"', "line 2: found Expecting ',' delimiter"),
        (b'["b"]', "line 2: found a JSON list; expected a JSON object"),
        (b'{"txt": "b"}', "expected a key 'text', did you mean txt?"),
        (b"{}", "line 2: found keys none"),
        (b'{"text": 3}', "line 2: found 'text': int; expected a string"),
        (b'{"text": null}', "found null"),
        (b'{"text": "\xff"}', "line 2: found invalid start byte at byte 10"),
        (b'{"text": "\\ud800"}', "line 2: found a lone surrogate at character 0"),
        (b"[" * 100_000, "line 2: found"),
    ],
)
def test_damaged_json_line_raises_or_is_skipped_and_counted(tmp_path, line, part):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n' + line + b'\n{"text": "c"}\n')
    path = str(tmp_path / "a.jsonl")
    message = error_of(JsonLines(path=path))
    assert message.startswith(f"{path} line 2: ")
    assert part in message
    report = ReadReport()
    assert texts(JsonLines(path=path, on_error="skip"), report=report) == ["a", "c"]
    assert (report.documents, report.skipped) == (2, 1)
    assert part in report.faults[0]


def test_cut_gzip(tmp_path):
    whole = gzip.compress(b"".join(b'{"text": "%d"}\n' % i for i in range(10_000)))
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    source = JsonLines(path=str(tmp_path))
    assert "a.jsonl.gz line" in error_of(source)
    report = ReadReport()
    kept = texts(JsonLines(path=str(tmp_path), on_error="skip"), report=report)
    assert kept == [str(i) for i in range(len(kept))]
    assert report.skipped == 1


def test_parquet_faults(tmp_path):
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"txt": ["a"], "number": [1]}), file)
    assert "expected a column 'text'; did you mean txt?" in error_of(Parquet(path=str(file)))
    message = error_of(Parquet(path=str(file), column="number"))
    assert "column 'number': found int64; expected strings" in message
    pq.write_table(pa.table({"text": ["a", None, "c"]}), file)
    assert "row 2: found null" in error_of(Parquet(path=str(file)))
    assert texts(Parquet(path=str(file), on_error="skip")) == ["a", "c"]
    file.write_bytes(b"no parquet at all")
    assert "expected a whole Parquet file" in error_of(Parquet(path=str(file)))


def test_everything_skipped_is_an_empty_corpus(tmp_path, caplog):
    (tmp_path / "a.jsonl").write_text("x\ny\n")
    message = error_of(JsonLines(path=str(tmp_path), on_error="skip"))
    assert "0 empty, 2 damaged records" in message
    assert "2 damaged records left out" in caplog.text


def test_signature_follows_settings_and_files(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    source = TextFiles(path=str(tmp_path))
    first = signature([source])
    assert signature([source]) == first
    assert signature([TextFiles(path=str(tmp_path), max_documents=1)]) != first
    (tmp_path / "a.txt").write_text("ab")
    assert signature([source]) != first


def test_run_file_errors_carry_paths():
    text = """
    sequence_length = 1
    batch_size = 8
    [[sources]]
    kind = "text"
    path = "a/*.txt"
    [[sources]]
    kind = "jsonl"
    path = "b"
    feild = "x"
    """
    with pytest.raises(ConfigError) as caught:
        config.parse(DataConfig, text)
    message = str(caught.value)
    assert "sources.0.path: found 'a/*.txt', expected no wildcards" in message
    assert "sources.1.feild: unknown key, did you mean field?" in message


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ("encoding = 'utf-99'", "sources.0.encoding: found 'utf-99'"),
        ("max_documents = 0", "sources.0.max_documents: found 0"),
        ("on_error = 'ignore'", "sources.0.on_error: found 'ignore', expected 'raise' or 'skip'"),
    ],
)
def test_source_settings_are_checked(change, part):
    text = "sequence_length=8\nbatch_size=1\n[[sources]]\nkind='text'\npath='a'\n" + change
    with pytest.raises(ConfigError) as caught:
        config.parse(DataConfig, text)
    assert part in str(caught.value)


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfplain")
    assert [d.text for d in read([TextFiles(path=str(tmp_path / "a.txt"))])] == ["plain"]
