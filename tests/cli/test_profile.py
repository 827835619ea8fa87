"""``ziggurat profile`` of a run that was trained, stopped and gone on with."""

import json
import subprocess
import sys

import pytest
from tests.train.runs import TEXT

from ziggurat.cli.main import main
from ziggurat.profile.journal import read_journal

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("profiled")
    (folder / "tiny.toml").write_text(TEXT)
    fixed = [str(folder / "tiny.toml"), f"--set=output={folder}", "--set=name=profiled"]
    fixed += ["--profile.trace_after_s=0", f"--train.compile_cache={folder / 'compiled'}"]
    for steps in (4, 8):
        command = [sys.executable, "-m", "ziggurat.cli.main", "train", *fixed]
        subprocess.run([*command, f"--train.steps={steps}"], check=True, timeout=300)
    return folder / "profiled"


def test_the_account_adds_up(trained, capsys):
    assert main(["profile", str(trained), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    sessions = read_journal(trained / "ledger.jsonl")
    wall = sessions[-1][-1].time_unix_s - sessions[0][0].began_unix_s
    assert found["wall_s"] == pytest.approx(wall, rel=0.01)
    assert sum(found["seconds"].values()) == pytest.approx(found["wall_s"], rel=1e-3)
    assert (found["sessions"], found["steps"], found["replayed_steps"]) == (2, 8, 0)
    assert found["seconds"]["step"] > 0
    assert {"attention", "mlp", "optimizer", "loss"} <= {o["module"] for o in found["operations"]}
    assert not (trained / "profile.html").exists()


def test_terminal_and_page(trained, capsys):
    assert main(["profile", str(trained)]) == 0
    out = capsys.readouterr().out
    assert "profiled: goodput" in out
    assert "step time, 90th percentile" in out
    page = (trained / "profile.html").read_text(encoding="utf-8")
    assert "Longest operations" in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_not_a_run(tmp_path, capsys):
    assert main(["profile", str(tmp_path)]) == 2
    assert "found no ledger.jsonl" in capsys.readouterr().err
