"""``ziggurat kernels``: what it lists, times, tunes and builds."""

import json

import pytest
from tests.kernels.cpu_library import require_library

from ziggurat.cli import kernels
from ziggurat.core.errors import ConfigError, EnvironmentError
from ziggurat.kernels import attention, choices, linear, measure
from ziggurat.kernels.cpu import build, library


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """A cache of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    choices.saved.cache_clear()
    yield tmp_path
    choices.saved.cache_clear()


def listed(capsys) -> dict:
    assert kernels.main(["list", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_list_names_every_implementation(capsys):
    require_library()
    found = listed(capsys)
    rows = {(x["operation"], x["implementation"]): x for x in found["implementations"]}
    assert {name for operation, name in rows if operation == "attention"} == set(
        attention.IMPLEMENTATIONS
    )
    assert rows["attention", "cpu"]["usable"]
    assert rows["attention", "splash"]["why_not"].startswith("for TPU; this is cpu")
    assert "product" in found["cpu_library"]["operations"]
    assert found["choices"] is None
    kernels.main(["list"])
    assert f"built for {found['cpu_library']['level']}" in capsys.readouterr().out


def test_list_says_why_there_is_no_library(capsys, monkeypatch):
    gone = library.Library(None, None, frozenset(), "not built; do this")
    monkeypatch.setattr("ziggurat.kernels.catalogue.library", lambda: gone)
    found = listed(capsys)
    why = {x["why_not"] for x in found["implementations"] if x["implementation"] == "cpu"}
    assert why == {"not built; do this"}


def test_tune_writes_what_auto_then_takes(capsys, monkeypatch, cache):
    require_library()
    monkeypatch.setitem(measure.SIZES, "linear", (16, 64))
    times = iter([{"flat": [1.0], "cpu": [2.0]}, {"flat": [2.0], "cpu": [1.0]}])
    monkeypatch.setattr(measure, "times", lambda case, rounds: next(times))
    assert kernels.main(["tune", "linear"]) == 0
    (written,) = cache.rglob("choices-*.json")
    assert written == choices.path()
    assert json.loads(written.read_text())["choices"] == {"linear": {"16": "flat", "64": "cpu"}}
    assert str(written) in capsys.readouterr().out.replace("\n", "")
    assert [choices.chosen("linear", n) for n in (1, 16, 33, 64, 5000)] == [
        "flat",
        "flat",
        "cpu",
        "cpu",
        "cpu",
    ]
    assert choices.chosen("attention", 16) is None
    assert listed(capsys)["choices"] == str(written)


def test_a_damaged_file_counts_as_none(cache):
    choices.path().parent.mkdir(parents=True)
    choices.path().write_text("{")
    assert choices.chosen("linear", 64) is None


def test_linear_goes_by_the_file(monkeypatch):
    import jax.numpy as jnp

    require_library()
    taken = []
    monkeypatch.setattr(linear, "chosen", lambda operation, rows: taken.append(rows) or "flat")
    assert linear._choose(jnp.ones((4, 16, 3)), jnp.ones((3, 2))) == "flat"
    assert taken == [64]


def test_bench_times_every_usable_implementation(capsys):
    require_library()
    assert kernels.main(["bench", "linear", "--rows", "16", "--rounds", "1", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["implementation"] for row in rows} == {"flat", "cpu"}
    assert all(row["seconds"] > 0 and row["speedup"] > 0 for row in rows)


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["benhc"], "did you mean bench"),
        (["bench", "attentoin"], "did you mean attention"),
        (["bench", "linear", "--rounds", "0"], "--rounds: found 0"),
    ],
)
def test_refusals(args, part):
    with pytest.raises(ConfigError, match=part):
        kernels.main(args)


def test_build_puts_it_where_it_can_and_clears_the_stale(capsys, monkeypatch, cache):
    made = []

    def built(level, directory):
        made.append((level.name, directory))
        return directory / build.file_name(level)

    monkeypatch.setattr(library, "directories", lambda: [cache / "package"])
    monkeypatch.setattr(build, "build", built)
    (cache / "package").mkdir()
    stale = cache / "package" / "cpu-x86-64-v3-0123456789abcdef.so"
    stale.touch()
    monkeypatch.setattr(build, "levels", lambda: build.LEVELS[1:2])
    assert kernels.main(["build"]) == 0
    assert made == [("x86-64-v4", cache / "package")]
    assert not stale.exists()
    assert "built for x86-64-v4" in capsys.readouterr().out
    monkeypatch.setattr(build, "levels", lambda: ())
    with pytest.raises(EnvironmentError, match="nothing to do: XLA's own code is used"):
        kernels.main(["build"])
