"""``ziggurat plan``: a real compile for TPU, the search, and what is said of wrong input."""

import json

import pytest
from tests.train.runs import TEXT

from ziggurat.cli.main import main

pytest.importorskip("libtpu")

SMALL = ["--model.d-model=256", "--model.d-ff=512", "--data.sequence-length=128"]


@pytest.fixture
def run_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.toml"
    path.write_text(TEXT, encoding="utf-8")
    return str(path)


@pytest.mark.tpu_compile
def test_a_step_compiled_for_tpu(run_file, tmp_path, capsys):
    (tmp_path / "prices.toml").write_text(
        'currency = "USD"\nsource = "a test, 2026-11-26"\n[per_chip_hour]\nv5p = 2\n'
    )
    args = [run_file, "--topology", "v5p:2x2x1", *SMALL, "--mesh.fsdp=-1", "--train.accumulate=2"]
    files = ["--json", "plan.json", "--html", "plan.html", "--prices", "prices.toml"]
    assert main(["plan", *args, *files]) == 0
    shown = capsys.readouterr().out
    assert "fits: " in shown
    assert "2.0 a chip-hour: a test, 2026-11-26" in shown
    assert "collectives are those of the compiled program" in shown
    found = json.loads((tmp_path / "plan.json").read_text())
    memory = found["program"]["memory"]
    # arithmetic over the shardings, but for the padding of small arrays
    held = found["analytic_memory"]["argument_bytes"]
    assert held <= memory["argument_bytes"] <= 1.05 * held
    assert found["peak_bytes"] == memory["argument_bytes"] + memory["temp_bytes"]
    assert found["peak_bytes"] < found["hbm_bytes"]
    kinds = {(e["kind"], *e["axes"]) for e in found["program"]["collectives"]}
    assert ("all-gather", "fsdp") in kinds
    assert kinds & {("reduce-scatter", "fsdp"), ("all-reduce", "fsdp")}
    # each layer's weights are gathered in each of two micro-batches
    assert max(e["count"] for e in found["program"]["collectives"]) >= 4
    cost = found["cost_of_a_billion_tokens"]
    assert cost == pytest.approx(1e9 / found["estimate"]["tokens_per_s"] / 3600 * 4 * 2)
    page = (tmp_path / "plan.html").read_text()
    assert "tiny on v5p:2x2x1" in page
    assert "What this assumes" in page
    assert "http:" not in page.replace("https:", "http:")


@pytest.mark.slow
def test_the_search_writes_the_winner_as_a_run_file(run_file, tmp_path, capsys):
    args = [run_file, "--topology", "v5e:2x2", "--model.n-layers=1", "--search", "--analytic"]
    assert main(["plan", *args]) == 0
    shown = capsys.readouterr().out
    assert "best of" in shown
    assert "winner: " in shown
    assert main(["plan", "tiny-planned.toml", "--topology", "v5e:2x2", "--analytic"]) == 0
    winner = capsys.readouterr().out
    assert winner.rpartition("fits: ")[2] == shown.rpartition("fits: ")[2]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--topology", "v5e:3x3"], "nearest: v5e:2x4"),
        (
            ["--topology", "v5e:2x2", "--mesh.fsdp=3"],
            "nearest that divides: --mesh.data=1 --mesh.fsdp=4",
        ),
        (
            ["--topology", "v5e:2x2", "--mesh.fsdp=1", "--mesh.tensor=4"],
            "kv_heads = 2; expected a multiple of 4",
        ),
        (["--topology", "v5p:2x2x2", "--slices", "2"], "mesh.dcn: found 1 slices; expected 2"),
        (["--topology", "v5e:2x2", "--out", "x.toml"], "--out: found no --search"),
        (["--topology", "v5e:2x2", "--prices", "none.toml"], "none.toml: found no such file"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line_with_what_works(run_file, capsys, options, line):
    assert main(["plan", run_file, *options]) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("error:") == 1


def test_a_model_too_large_names_a_topology_that_holds_it(run_file, capsys):
    args = ["--model.d-model=8192", "--model.d-ff=28672", "--model.n-layers=80", "--mesh.fsdp=4"]
    assert main(["plan", run_file, "--topology", "v5e:2x2", *args]) == 2
    error = capsys.readouterr().err
    assert "model too large for v5e:2x2" in error
    assert "nearest: --topology v5e:8x16 with fsdp over all" in error


def test_a_layout_that_cuts_nothing_is_told_to_cut(run_file, capsys):
    args = ["--model.d-model=2048", "--model.d-ff=8192", "--model.n-layers=24"]
    mesh = ["--mesh.data=4", "--mesh.fsdp=1"]
    assert main(["plan", run_file, "--topology", "v5e:2x2", *args, *mesh]) == 2
    assert "cut the parameters over all devices" in capsys.readouterr().err
