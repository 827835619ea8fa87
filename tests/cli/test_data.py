"""``ziggurat data``: its commands agree with the data set, need no JAX, and name errors."""

import dataclasses
import html.parser
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from ziggurat.cli import data, data_rows, data_run
from ziggurat.cli.main import main
from ziggurat.core import config
from ziggurat.core.errors import ConfigError
from ziggurat.data import build, byte_level
from ziggurat.train.config import RunConfig

RUN = """
name = "small"
output = "{folder}/runs"
seed = 5
[model]
kind = "llama"
vocab_size = 300
[tokenizer]
kind = "bytes"
[data]
sequence_length = 16
batch_size = 4
epochs = 2
[[data.sources]]
name = "web"
kind = "jsonl"
path = "{folder}/web"
on_error = "skip"
[[data.sources]]
name = "code"
kind = "text"
path = "{folder}/code"
glob = "*.py"
[optimizer]
kind = "adamw"
lr = 1e-3
[train]
steps = 6
"""
MIXTURE = "--data.mixture={weights={web=3.0, code=1.0}, schedule=[{step=9, weights={code=1.0}}]}"
WEB = [f"document {number} " + "x" * number for number in range(30)]
CODE = {f"{name}.py": f"def {name}():\n    return {n}\n" for n, name in enumerate("abcdefgh")}


@pytest.fixture(autouse=True)
def _keep_logging(monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", logging.getLogger().handlers[:])
    yield
    for name, level in ((None, logging.WARNING), ("ziggurat", logging.NOTSET)):
        logging.getLogger(name).setLevel(level)


@pytest.fixture
def run_file(tmp_path):
    for name in ("web", "code"):
        (tmp_path / name).mkdir()
    lines = [json.dumps({"text": text}) for text in WEB]
    lines[3:3] = ['{"text": ""}', "{broken <b>", json.dumps({"text": WEB[0]})]
    (tmp_path / "web/pages.jsonl").write_text("\n".join(lines))
    for name, text in CODE.items():
        (tmp_path / "code" / name).write_text(text)
    file = tmp_path / "small.toml"
    file.write_text(RUN.format(folder=tmp_path))
    return file


@pytest.fixture
def say(capsys):
    """Run ``ziggurat data``; its output, or its error line if ``code`` is 2.

    What it logged is ``say.log``: the command takes the handlers of the log over.
    """

    def run(*args, code=0) -> str:
        capsys.readouterr()
        assert main(["data", *map(str, args)]) == code
        shown = capsys.readouterr()
        run.log = shown.err
        if not code:
            return shown.out
        errors = [line for line in shown.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert shown.err.splitlines()[-1] == errors[0]
        return errors[0]

    return run


def opened(run_file, *overrides):
    """The data set of a run file."""
    source = data_run.load(run_file, overrides)
    tokenizer = data_run.tokenizer_of(source)
    return build(source.run.data, tokenizer, source.run.seed, source.cache)


def run_directory(run_file, step=3):
    """A run's directory as training leaves it, as far as its data goes."""
    directory = run_file.parent / "runs/small"
    saved = directory / f"checkpoints/step_{step:08}"
    saved.mkdir(parents=True)
    (directory / "run.toml").write_text(run_file.read_text())
    records = {"data": opened(run_file).state(step)}
    (saved / "records.json").write_text(json.dumps(records))
    return directory


@pytest.mark.parametrize("command", data.COMMANDS)
def test_every_verb_has_a_help_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["data", command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: ziggurat data {command}" in text
    assert f"\nexample:\n  ziggurat data {command}" in text


def test_it_reads_the_same_tables_as_training_does():
    fields = [{f.name for f in dataclasses.fields(cls)} for cls in (RunConfig, data_run.DataRun)]
    assert fields[0] == fields[1]
    for name in ("output", "seed"):
        assert len({getattr(cls, name) for cls in (RunConfig, data_run.DataRun)}) == 1


def test_prepare_makes_what_training_finds_and_only_once(run_file, say):
    first = say("prepare", run_file, "--workers", 0, "--data.eval_fraction=0.2")
    assert "tokenising into" in say.log
    assert say("prepare", run_file, "--workers", 2, "--data.eval_fraction=0.2") == first
    assert "tokenising into" not in say.log
    dataset = opened(run_file, "data.eval_fraction=0.2")
    (part,) = dataset.components
    assert f"{part.store.path}: 39 documents, {len(part.store.tokens):,} tokens, content" in first
    held = 39 - dataset.documents_per_epoch
    assert f"{dataset.rows_per_epoch} rows" in first
    assert f"held out: {held} documents" in first


def test_prepare_makes_each_component_of_a_mixture(run_file, say):
    shown = say("prepare", run_file, MIXTURE)
    assert "31 documents" in shown
    assert "8 documents" in shown


def test_stats_count_what_is_there(run_file, say):
    arguments = ("--data.dedup={exact=true}", "--data.filter={min_tokens=14}")
    found = json.loads(say("stats", run_file, "--json", *arguments))
    lengths = [len(text) + 1 for text in [WEB[0], *WEB]]
    code = [len(text) + 1 for text in CODE.values()]
    web_row, code_row = found["sources"]
    assert (web_row["documents"], web_row["tokens"]) == (31, sum(lengths))
    assert (code_row["documents"], code_row["tokens"]) == (8, sum(code))
    assert found["all"]["percentiles"]["max"] == max(lengths + code)
    assert found["all"]["percentiles"]["p50"] == sorted(lengths + code)[19]
    for shortest, longest, count in found["all"]["histogram"]:
        assert count == sum(shortest <= length <= longest for length in lengths + code)
    (used,) = found["components"]
    assert (used["documents"], used["empty"], used["skipped"]) == (39, 1, 1)
    assert "line 5" in used["faults"][0]
    short = sum(length < 14 for length in lengths + code)
    assert used["filtered"] == {"min_tokens": short}
    assert short + used["duplicates"] + used["used"] == 39
    kept = [length for length in [*lengths[1:], *code] if length >= 14]
    assert used["rows"] == found["rows_per_epoch"] == -(-sum(kept) // 16)
    assert found["padding"] == pytest.approx(1 - sum(kept) / (16 * used["rows"]))
    assert found["run_steps"] == 6
    assert used["run_rows"] == 24


def test_stats_of_a_mixture(run_file, say):
    found = json.loads(say("stats", run_file, "--json", MIXTURE))
    web, code = found["components"]
    assert (web["name"], code["name"]) == ("web", "code")
    assert (web["run_rows"], code["run_rows"]) == (18, 6)
    assert web["run_epochs"] == 18 / web["rows"]


def test_stats_as_text_and_page(run_file, say, tmp_path):
    page = tmp_path / "page/data.html"
    shown = say("stats", run_file, "--html", page)
    for part in (f"{tmp_path}/web", f"{tmp_path}/code", "padding", "damaged: ", "█", f"{page}"):
        assert part in shown
    text = page.read_text()
    assert "{broken <b>" not in text
    assert "http" not in text.replace("http-equiv", "")
    opens: list[str] = []

    class Checker(html.parser.HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag != "meta":
                opens.append(tag)

        def handle_endtag(self, tag):
            assert opens.pop() == tag

    Checker().feed(text)
    assert not opens
    assert text.count("<svg") == 3


def test_sample_shows_rows_with_their_places(run_file, say):
    shown = say("sample", run_file, "--step", 2, "--rows", 2)
    rows = opened(run_file).documents(2, slice(0, 2))
    for row, pieces in enumerate(rows):
        assert f"step 2, row {row}: {len(pieces)} pieces of documents" in shown
        for piece in pieces:
            last = piece.start + piece.length
            assert f"--- {piece.file}:{piece.record} tokens {piece.start} to {last}" in shown


def test_sample_marks_what_is_learned(tmp_path, say):
    record = {"prompt": "What is 1+1?\n", "completion": "2, says \u00e9v\x07e"}
    (tmp_path / "talk.jsonl").write_text(json.dumps(record))
    file = tmp_path / "talk.toml"
    text = RUN.format(folder=tmp_path)
    tail = text[text.index("[optimizer]") :]
    source = f"""[[data.sources]]
name = "a"
kind = "jsonl"
path = "{tmp_path}/talk.jsonl"
content = "prompt_completion"
"""
    file.write_text(text[: text.index("[[data.sources]]")] + source + tail)
    shown = say("sample", file, "--data.sequence_length=64", "--rows=1", "--data.batch_size=1")
    assert "⟦What is 1+1?\n⟧2, says \u00e9v\\x07e<|endoftext|>" in shown
    source = data_run.load(file, ["data.sequence_length=64"])
    tokenizer = data_run.tokenizer_of(source)
    batch = data_run.open_data(source, tokenizer).batch(0, slice(0, 1))
    row = {name: values[0] for name, values in batch.items()}
    styled = data_rows._text_of(row, 1, tokenizer, styled=True)
    assert "⟦" not in styled.plain
    underlined = [
        styled.plain[s.start : s.end] for s in styled.spans if "underline" in str(s.style)
    ]
    assert "".join(underlined) == "2, says \u00e9v\\x07e<|endoftext|>"


def test_decode_shows_the_batch(run_file, say):
    found = json.loads(say("decode", run_file, "--step", 4, "--row", 1, "--json"))
    batch = opened(run_file).batch(4, slice(1, 2))
    filled = int((batch["segment_ids"][0] > 0).sum())
    assert [t["place"] for t in found["tokens"]] == list(range(filled))
    assert [t["id"] for t in found["tokens"]] == batch["tokens"][0, :filled].tolist()
    assert [t["target"] for t in found["tokens"]] == batch["targets"][0, :filled].tolist()
    assert [t["loss"] for t in found["tokens"]] == batch["loss_mask"][0, :filled].tolist()
    assert [t["position"] for t in found["tokens"]] == batch["positions"][0, :filled].tolist()
    plain = say("decode", run_file, "--step", 4, "--row", 1)
    assert len(plain.splitlines()) == filled + 1


def test_decode_ids(run_file, say):
    shown = json.loads(say("decode", run_file, "--ids", "104,195,169,256", "--json"))
    assert shown["text"] == "hé"
    assert [t["text"] for t in shown["tokens"]] == ["h", "", "é", "<|endoftext|>"]
    assert "<|endoftext|>" in say("decode", run_file, "--ids=256")


@pytest.mark.parametrize("override", ["seed=7", "data.tokenize='stream'"])
def test_trace_of_a_step_is_what_the_batch_holds(run_file, say, override):
    run_file.write_text(run_file.read_text().replace("epochs = 2", ""))
    found = json.loads(say("trace", run_file, "--step", 3, "--json", "--set", override))
    rows = opened(run_file, override).documents(3)
    places = [{"row": n} | dataclasses.asdict(p) for n, row in enumerate(rows) for p in row]
    assert found == {"step": 3, "pieces": places}
    lines = say("trace", run_file, "--step", 3, "--set", override).splitlines()
    assert len(lines) == len(places) + 1


@pytest.mark.parametrize("overrides", [(), (MIXTURE,)], ids=["pool", "mixture"])
def test_trace_of_a_document_finds_every_place(run_file, say, overrides):
    """Each piece of the whole data, found from its document, and none besides."""
    dataset = opened(run_file, *(arg.removeprefix("--") for arg in overrides))
    assert dataset.steps is not None
    expected: dict[str, set] = {}
    for step in range(dataset.steps):
        for row, pieces in enumerate(dataset.documents(step)):
            for p in pieces:
                place = (step, row, p.start, p.length)
                expected.setdefault(f"{p.file}:{p.record}", set()).add(place)
    stores = [part.store for part in dataset.components]
    every = [store.identity(n) for store in stores for n in range(len(store))]
    names = sorted(f"{file}:{record}" for file, record in every)
    assert len(names) == 39
    assert (len(expected) == 39) == (not overrides)  # the mixture ends before all were seen
    for name in names[::5]:
        found: set = set()
        for epoch in range(2):
            answer = say(
                "trace", run_file, "--document", name, f"--epoch={epoch}", "--json", *overrides
            )
            places = [
                (p["step"], p["row"], p["start"], p["length"]) for p in json.loads(answer)["pieces"]
            ]
            assert len(places) == len(set(places))
            assert not found & set(places)
            found |= set(places)
        assert found == expected.get(name, set()), name


def test_trace_of_a_document_that_is_nowhere(run_file, say):
    assert "is in no step of epoch 7" in say("trace", run_file, "--document=a.py", "--epoch=7")
    shown = say("trace", run_file, "--document=a.py", "--data.filter={min_tokens=100}", code=2)
    assert "none of 39 documents" in shown
    shown = say("trace", run_file, "--document=a.py", "--data.filter={min_tokens=40}")
    assert "a.py is in no step: held out, against the filter, or a duplicate" in shown
    assert "has no document 77" in say("trace", run_file, "--document=pages.jsonl:77")


def test_a_run_directory_whose_data_is_the_same(run_file, say):
    directory = run_directory(run_file)
    for command, *rest in (["stats"], ["sample"], ["decode"], ["trace", "--step", 1]):
        assert say(command, directory, *rest) == say(command, run_file, *rest)
        assert "trained on" not in say.log


def test_a_run_directory_whose_data_has_changed(run_file, say):
    directory = run_directory(run_file)
    (run_file.parent / "code/a.py").write_text("changed")
    line = say("trace", directory, "--step", 1, code=2)
    assert "what run small saw cannot be traced, its data has changed: found" in line
    assert "code/a.py" in line
    assert f"name the run file {directory}/run.toml" in line
    say("trace", directory / "run.toml", "--step", 1)
    assert "not the data that run" not in say.log
    say("sample", directory)
    assert "not the data that run small was trained on: found" in say.log


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["stat", "RUN"], ["data: found 'stat'; expected one of", "did you mean stats?"]),
        (["stats", "none.toml"], ["none.toml: found no such file"]),
        (["stats", "FOLDER"], ["found no run.toml in it"]),
        (["stats", "RUN", "--data.batchsize=3"], ["unknown key", "did you mean batch_size?"]),
        (["stats", "RUN", "--train.steps=3"], ["the table train, which does not decide the data"]),
        (["prepare", "RUN", "--workers=-1"], ["--workers: found -1; expected 0 or more"]),
        (["stats", "RUN", "--data.tokenize='stream'"], ["keeps no tokens"]),
        (["sample", "RUN", "--step=99999"], ["step 99999: found data for"]),
        (["sample", "RUN", "--rows=0"], ["rows: found 0; expected at least 1"]),
        (["decode", "RUN", "--row=4"], ["row: found 4; expected 0 to 3"]),
        (["decode", "RUN", "--ids=1,x"], ["--ids: found '1,x'; expected numbers with commas"]),
        (["decode", "RUN", "--ids=9999"], ["--ids: found 9999; expected ids of the tokenizer"]),
        (["trace", "RUN"], ["found neither --step nor --document; expected one of them"]),
        (["trace", "RUN", "--step=1", "--document=a.py"], ["found --step and --document"]),
        (["trace", "RUN", "--step=-1"], ["--step: found -1; expected 0 or more"]),
        (["trace", "RUN", "--document=nowhere.py"], ["document nowhere.py: found no such file"]),
        (["stats", "RUN", "--set=tokenizer={kind='load', path='no'}"], ["no"]),
    ],
)
def test_bad_input(run_file, say, args, parts):
    named = {"RUN": run_file, "FOLDER": run_file.parent}
    line = say(*(named.get(arg, arg) for arg in args), code=2)
    for part in parts:
        assert part in line


def test_a_run_without_a_tokenizer_takes_its_models(run_file, say, tmp_path):
    text = run_file.read_text().replace('[tokenizer]\nkind = "bytes"\n', "")
    run_file.write_text(text)
    assert "tokenizer: found nothing" in say("stats", run_file, code=2)
    byte_level().save(tmp_path)
    model = 'kind = "llama"\nvocab_size = 300'
    run_file.write_text(text.replace(model, f'kind = "pretrained"\npath = "{tmp_path}"'))
    assert "257 ids" in say("stats", run_file)


def test_no_verb_needs_jax(run_file):
    directory = run_directory(run_file)
    calls = [
        ["prepare", str(directory), "--workers=0"],
        ["stats", str(directory), "--html", str(directory / "data.html")],
        ["sample", str(directory)],
        ["decode", str(directory)],
        ["trace", str(directory), "--step=0"],
        ["trace", str(directory), "--document=a.py"],
    ]
    code = (
        "import sys\nfrom ziggurat.cli.main import main\n"
        f"for call in {calls!r}:\n    assert main(['data', *call]) == 0\n"
        "print([name for name in ('jax', 'flax', 'grain', 'optax') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_every_recipe_is_read(tmp_path):
    for recipe in sorted((Path(__file__).parents[2] / "recipes").glob("*.toml")):
        whole = config.load(RunConfig, recipe).value
        if whole.data.kind != "text":
            with pytest.raises(ConfigError, match=f"data.kind: found '{whole.data.kind}'"):
                data_run.load(recipe)
            continue
        source = data_run.load(recipe)
        for name in ("data", "tokenizer", "seed", "output", "name"):
            assert getattr(source.run, name) == getattr(whole, name)
        assert source.steps == whole.train.steps
