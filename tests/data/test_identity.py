"""Documents are told apart by content: the same bytes are the same data wherever they lie."""

import dataclasses
import gzip
import json
import shutil

import numpy as np
import pytest

from ziggurat.core.errors import DataError
from ziggurat.data.answers import build_answers
from ziggurat.data.config import DataConfig
from ziggurat.data.filter import Filter
from ziggurat.data.image_sources import ImageArrays
from ziggurat.data.images import ImageData, build_images
from ziggurat.data.mixture import Mixture, Stage
from ziggurat.data.opening import build
from ziggurat.data.sources import JsonLines, Parquet, TextFiles
from ziggurat.data.tokenizers import byte_level

COUNT = 60


def texts(first: int = 0, count: int = COUNT) -> list[str]:
    return [f"document {n} " + "abc" * (n % 7) for n in range(first, first + count)]


def jsonl(path, lines: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))


def fill(directory) -> None:
    """The same documents in files of several kinds."""
    directory.mkdir()
    jsonl(directory / "all.jsonl", texts())
    with gzip.open(directory / "packed.jsonl.gz", "wb") as file:
        file.write((directory / "all.jsonl").read_bytes())
    (directory / "text").mkdir()
    for number, text in enumerate(texts()):
        (directory / "text" / f"{number:02}.txt").write_text(text)
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"text": texts()}), directory / "all.parquet")


SOURCES = {
    "file": lambda d: JsonLines(path=f"{d}/all.jsonl"),
    "packed": lambda d: JsonLines(path=f"{d}/packed.jsonl.gz"),
    "directory": lambda d: TextFiles(path=f"{d}/text", glob="*.txt"),
    "parquet": lambda d: Parquet(path=f"{d}/all.parquet"),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Two directories of the same bytes, of different names and times."""
    base = tmp_path_factory.mktemp("places")
    fill(base / "mv1")
    shutil.copytree(base / "mv1", base / "elsewhere and longer")
    return base / "mv1", base / "elsewhere and longer"


def settings(source, **more) -> DataConfig:
    defaults = {"sequence_length": 32, "batch_size": 4, "eval_fraction": 0.3, "prefetch": 0}
    return DataConfig(sources=(source,), **defaults | more)


def held_out(data) -> set[tuple[str, int]]:
    """What a split holds, as tokens."""
    parts = data.components
    return {
        tuple(part.store.document(int(number)).tolist())
        for part in parts
        for number in (
            range(len(part.store)) if part.selection.numbers is None else part.selection.numbers
        )
    }


def test_the_same_documents_are_held_out_wherever_they_lie(places, tmp_path):
    """Under every path and in every kind of file, the filter's share included."""
    found = []
    for kind, source in SOURCES.items():
        for place in places:
            made = settings(source(place), filter=Filter(share=0.8))
            found.append(held_out(build(made, byte_level(), 0, tmp_path / kind, "eval")))
            train = held_out(build(made, byte_level(), 0, tmp_path / kind))
            assert not found[-1] & train
            assert len(found[-1]) + len(train) < COUNT
    assert all(one == found[0] for one in found)
    assert 5 < len(found[0]) < 25


@pytest.mark.parametrize("tokenize", ["ahead", "stream"])
@pytest.mark.parametrize("kind", SOURCES)
def test_data_that_moved_resumes(places, tmp_path, kind, tokenize):
    """The state of one place is accepted in the other, and the batches are the same to a bit."""
    more = {"eval_fraction": 0.0, "tokenize": "stream"} if tokenize == "stream" else {}
    here, there = (
        build(settings(SOURCES[kind](place), **more), byte_level(), 3, tmp_path) for place in places
    )
    state = json.loads(json.dumps(here.state(5)))
    assert there.check_state(state) == 5
    for step in (5, 6):
        one, other = here.batch(step), there.batch(step)
        assert all((one[name] == other[name]).all() for name in one)


@pytest.mark.parametrize("kind", ["preference", "labelled"])
def test_answers_are_held_out_by_record(tmp_path, kind):
    """Both answers of a record lie on one side, and on the same one under another path."""
    rows = [
        {"prompt": f"ask {n % 5}", "chosen": f"good {n}", "rejected": f"bad {n}"}
        if kind == "preference"
        else {"prompt": f"ask {n % 5}", "completion": f"answer {n}", "label": n % 2 == 0}
        for n in range(COUNT)
    ]
    sides = []
    for name in ("a", "b"):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        made = settings(JsonLines(path=str(path), content=kind), epochs=1, sequence_length=48)
        both = []
        for split in ("train", "eval"):
            data = build_answers(made, byte_level(), 0, tmp_path, kind, split)
            held = [h.record for s in range(data.steps) for row in data.documents(s) for h in row]
            both.append(sorted(set(held)))
        sides.append(both)
    assert sides[0] == sides[1]
    train, evaluated = sides[0]
    assert sorted(train + evaluated) == list(range(1, COUNT + 1))
    assert 8 < len(evaluated) < 30


def test_images_are_held_out_by_their_pixels(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"images": rng.random((40, 4, 4)).astype(np.float32), "labels": np.arange(40) % 3}
    found = []
    for name in ("a", "b"):
        np.savez(tmp_path / f"{name}.npz", **arrays)
        source = ImageArrays(path=tmp_path / f"{name}.npz")
        data = build_images(ImageData(source=source, batch_size=4, eval_fraction=0.3), 0)
        found.append((data._numbers.tolist(), data.state(3)))
    assert found[0] == found[1]
    assert 20 < len(found[0][0]) < 40


def change(directory, how: str) -> str:
    """Change one file; returns what an error has to say of it."""
    path = directory / "b.jsonl"
    if how == "appended":
        jsonl(path, texts(20, 21))
        return f"{path} has 21 documents, 20 before"
    if how == "edited":
        jsonl(path, [*texts(20, 19), "something else"])
        return f"{path} has other documents than before"
    if how == "removed":
        path.unlink()
        return f"{path} is gone"
    jsonl(directory / "d.jsonl", texts(100, 3))
    return f"{directory / 'd.jsonl'} is new, with 3 documents"


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("how", ["appended", "edited", "removed", "added"])
def test_an_error_names_the_file_that_changed(tmp_path, how, moved):
    """One line with the file and the way on; files that only moved are not in it."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, name in enumerate("abc"):
        jsonl(corpus / f"{name}.jsonl", texts(20 * number, 20))
    before = build(settings(JsonLines(path=str(corpus))), byte_level(), 0, tmp_path / "cache")
    if moved:
        corpus = corpus.rename(tmp_path / "moved")
    said = change(corpus, how)
    after = build(settings(JsonLines(path=str(corpus))), byte_level(), 0, tmp_path / "cache")
    with pytest.raises(DataError) as caught:
        after.check_state(json.loads(json.dumps(before.state(2))))
    message = str(caught.value)
    # of a file that moved and changed, both names are told
    assert (said.split("/")[-1].split(" ")[0] if moved else said) in message
    assert "a source of their own" in message
    assert "a.jsonl" not in message
    assert "\n" not in message
    shutil.rmtree(tmp_path / "cache" / before.components[0].store.path.name)
    with pytest.raises(DataError, match=r"found .* documents of content"):
        after.check_state(before.state(2))


@pytest.mark.parametrize("tokens_first", [False, True])
def test_a_source_may_join_for_a_later_stage(tmp_path, tokens_first):
    """It moves no row of the steps before, and refused is only what would."""
    for number, name in enumerate(("web", "code", "new")):
        jsonl(tmp_path / f"{name}.jsonl", texts(100 * number, 30))

    def source(name):
        return JsonLines(path=str(tmp_path / f"{name}.jsonl"), name=name)

    weights = {"web": 3.0, "code": 1.0}
    base = dataclasses.replace(
        settings(source("web"), eval_fraction=0.0),
        sources=(source("web"), source("code")),
        mixture=Mixture(weights=weights),
    )
    names = ("new", "web", "code") if tokens_first else ("web", "code", "new")
    later = Stage(step=6, weights={"new": 1.0, "web": 1.0})
    joined = dataclasses.replace(
        base,
        sources=tuple(map(source, names)),
        mixture=Mixture(weights=weights, schedule=(later,)),
    )
    old, new = (build(one, byte_level(), 0, tmp_path / "cache") for one in (base, joined))
    for step in range(6):
        state = json.loads(json.dumps(old.state(step)))
        assert new.check_state(state) == step
        one, other = old.batch(step), new.batch(step)
        assert all((one[key] == other[key]).all() for key in one)
    assert {p.component for row in new.documents(7) for p in row} == {"new", "web"}
    with pytest.raises(DataError, match=r"mixture up to step 8: found rows .*new"):
        new.check_state(old.state(8))
    with pytest.raises(DataError, match="source new: found no source of that name"):
        old.check_state(new.state(3))
