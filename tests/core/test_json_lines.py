"""One way to read JSON lines: hostile files give every reader the same rows, or the same error."""

import ast
import itertools
import json
from pathlib import Path

import pytest

import ziggurat
from ziggurat.cluster.record import read_events
from ziggurat.core import json_lines
from ziggurat.core.errors import DataError
from ziggurat.data.sources import JsonLines, read
from ziggurat.data.sources.files import list_files
from ziggurat.data.sources.reading import Piece, records
from ziggurat.data.sources.records import Document
from ziggurat.post.rl import tasks
from ziggurat.post.rl.config import PromptFile
from ziggurat.train.metrics import read_metrics

BOM = "\ufeff"


def line(text: str, **more) -> str:
    return json.dumps({"prompt": text, "step": 1, **more}, ensure_ascii=False)


GOOD = {
    "plain": (f"{line('a')}\n{line('b')}\n", ["a", "b"]),
    "no end of the last line": (f"{line('a')}\n{line('b')}", ["a", "b"]),
    "crlf": (f"{line('a')}\r\n{line('b')}\r\n", ["a", "b"]),
    "bom": (f"{BOM}{line('a')}\n{line('b')}\n", ["a", "b"]),
    "joined files with a bom each": (f"{BOM}{line('a')}\n{BOM}{line('b')}\n", ["a", "b"]),
    "a bom alone": (f"{BOM}\n{line('a')}\n", ["a"]),
    "empty lines": (f"\n  \n{line('a')}\n\r\n\t\n{line('b')}\n\n", ["a", "b"]),
    "separators in strings": (
        f"{line('a' + chr(0x2028) + 'b')}\n{line(chr(0x85) + chr(0x2029) + 'c')}\n",
        ["a\u2028b", "\x85\u2029c"],
    ),
    "escapes": ('{"prompt": "a\\u2028\\nb", "step": 1}\n', ["a\u2028\nb"]),
    "separators of files": (
        '{"prompt": "a\\u001c\\u000bb", "step": 1}\n',
        ["a\x1c\x0bb"],
    ),
    "nan": (f"{line('a', score=float('nan'))}\n", ["a"]),
    "deep": (f"{line('a', more=[[[{}]]])}\n", ["a"]),
}
BAD = {
    "text": (b"nonsense\n", 2),
    "two objects": (b"{} {}\n", 2),
    "a list": (b"[1]\n", 2),
    "a torn line": (b'{"prompt": "a\n', 2),
    "a key twice": (b'{"prompt": "a", "prompt": "b", "step": 1}\n', 2),
    "a key twice within": (b'{"prompt": "a", "more": {"k": 1, "k": 2}}\n', 2),
    "latin-1": (b'{"prompt": "\xe4"}\n', 2),
    "utf-16": ('{"prompt": "a"}'.encode("utf-16-be") + b"\n", 2),
    "old line ends": (b'{"prompt": "a"}\r{"prompt": "b"}\n', 2),
    "half a surrogate pair": (b'{"prompt": "\\ud800", "step": 1}\n', 2),
    "white space of another kind": (b"\x0c\n", 2),
}


def of_source(path: Path) -> list[str]:
    return [d.text for d in read([JsonLines(path=str(path), field="prompt")])]


def of_ranges(path: Path) -> list[str]:
    """As workers read a large file: each byte range gives the lines that start in it."""
    source = JsonLines(path=str(path), field="prompt")
    (file,) = list_files(source)
    cuts = [0, *range(7, file.size, 7), file.size]
    found = []
    for begin, end in itertools.pairwise(cuts):
        for _, record in records(source, Piece(file, begin, end)):
            if isinstance(record, Document):
                found.append(record.text)
    return found


def of_task(path: Path) -> list[str]:
    node = PromptFile(path=path, reward="x.py:f", held_out=1, held_out_path=other(path))
    task = tasks.build(node)
    return [task.problem(i).prompt for i in range(task.count or 0)]


def other(path: Path) -> Path:
    """A file of another prompt, to be held out."""
    made = path.with_name("held_out.jsonl")
    made.write_text('{"prompt": "held out"}\n')
    return made


def of_log(path: Path) -> list[str]:
    return [row["prompt"] for row in json_lines.read_log(path)]


def of_events(path: Path) -> list[str]:
    return [row["prompt"] for row in read_events(path.parent)]


def of_metrics(path: Path) -> list[str]:
    return [row["prompt"] for row in read_metrics(path)]


READERS = [of_source, of_ranges, of_task, of_log, of_events, of_metrics]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("case", GOOD)
def test_every_reader_finds_the_same_rows(case, reader, tmp_path):
    content, expected = GOOD[case]
    path = tmp_path / "events.jsonl"
    path.write_bytes(content.encode())
    assert reader(path) == expected


@pytest.mark.parametrize("case", BAD)
def test_every_reader_refuses_the_same_line(case, tmp_path):
    """Data says file and line; logs, whose last lines kills tear, leave the line out."""
    content, number = BAD[case]
    path = tmp_path / "events.jsonl"
    path.write_bytes(f"{line('a')}\n".encode() + content + f"{line('b')}\n".encode())
    errors = []
    for reader in (of_source, of_task):
        with pytest.raises(DataError, match=rf"events\.jsonl line {number}: ") as caught:
            reader(path)
        errors.append((caught.value.what, caught.value.found, caught.value.expected))
    assert errors[0] == errors[1]
    if case != "half a surrogate pair":
        assert of_log(path) == of_events(path) == ["a", "b"]


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DataError, match=r"prompts .*nothing\.jsonl: found No such file"):
        list(json_lines.read(tmp_path / "nothing.jsonl", "prompts"))


def test_no_other_code_takes_json_lines_apart():
    """No function both splits text into lines and reads JSON; that is what json_lines is for."""
    sources = Path(ziggurat.__file__).parent
    for file in sorted(sources.rglob("*.py")):
        if file.name == "json_lines.py":
            continue
        for function in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(function, ast.FunctionDef):
                continue
            calls = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
            names = {call.attr for call in calls if isinstance(call, ast.Attribute)}
            apart = names & {"splitlines", "readlines"} and "loads" in names
            assert not apart, f"{file.relative_to(sources)}: {function.name}"
