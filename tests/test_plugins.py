"""docs/how-to/extend.md, executed: its package is installed outside the source tree and its run
file trained in a process of its own."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs/how-to/extend.md"
BLOCK = re.compile(r"```(?:toml|python)\n# (\S+)\n(.*?)```", re.DOTALL)
FILES = dict(BLOCK.findall(PAGE.read_text(encoding="utf-8")))


def installed(folder: Path, **changed: str) -> Path:
    """A folder for PYTHONPATH with the page's package, as pip would install it; ``changed`` is the
    text of some of its modules."""
    project = tomllib.loads(FILES["pyproject.toml"])["project"]
    points = project["entry-points"]["ziggurat.plugins"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    for module in points.values():
        (folder / f"{module}.py").write_text(changed.get(module) or FILES[f"{module}.py"])
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines = "".join(f"{name} = {value}\n" for name, value in points.items())
    (info / "entry_points.txt").write_text(f"[ziggurat.plugins]\n{lines}")
    return folder


def ran(folder: Path, cwd: Path, *args: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, *args], cwd=cwd, env=environment, capture_output=True, text=True
    )


TASK = """
from ziggurat.core import config
from ziggurat.post.rl import tasks
from ziggurat.post.rl.config import Problems
from ziggurat.post.rl.scoring import Verifier

read = config.parse(Problems, "task = { kind = 'doubles', count = 3 }\\nbatch_size = 2\\n"
                    "sequence_length = 8").value
task = tasks.build(read.task)
print(task.problem(2), task.scorer.load()("", "4", task.problem(2).row))
print(Verifier("short").load()("", "abc", {}))

from ziggurat.quantize.recipe import Recipe
from ziggurat.serve.llm.sampling import SamplingParams

rule = "rules = [{ module_path = 'blocks/.*', weight = 'octal' }]"
print(config.parse(Recipe, rule).value.rules[0].weight)
print(SamplingParams(extra={"top_a": 0.2}).extra)
"""


@pytest.mark.slow
def test_a_run_file_names_parts_of_an_installed_package(tmp_path):
    folder = installed(tmp_path / "site")
    (tmp_path / "run.toml").write_text(FILES["run.toml"])
    done = ran(folder, tmp_path, "-m", "ziggurat.cli.main", "train", "run.toml")
    assert done.returncode == 0, done.stderr
    assert "extended finished at step 2" in done.stdout
    losses = (tmp_path / "runs/extended/loss.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in losses] == ["0", "1"]
    stored = tomllib.loads((tmp_path / "runs/extended/run.toml").read_text())
    assert stored["objective"] == {
        "kind": "scaled",
        "scale": 0.5,
        "loss": stored["objective"]["loss"],
    }
    assert {path.name for path in (tmp_path / "tape").iterdir()} == {"1.tar", "2.tar"}
    shutil.rmtree(tmp_path / "runs/extended/checkpoints")  # the disk is lost
    more = ["--train.steps=3", "--optimizer.schedule.steps=2"]
    done = ran(folder, tmp_path, "-m", "ziggurat.cli.main", "train", "run.toml", *more)
    assert done.returncode == 0, done.stderr
    losses = (tmp_path / "runs/extended/loss.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in losses] == ["0", "1", "2"], "it began anew"
    assert {path.name for path in (tmp_path / "tape").iterdir()} == {"2.tar", "3.tar"}
    done = ran(
        folder, tmp_path, "-m", "ziggurat.cli.main", "generate", "runs/extended", "--prompt=def"
    )
    assert done.returncode == 0, done.stderr  # the mixer keeps its state while decoding
    export = ["export", "hf", "runs/extended", "--output=exported"]
    done = ran(folder, tmp_path, "-m", "ziggurat.cli.main", *export)
    assert done.returncode == 2
    assert "found model.mixer of kind bypassed" in done.stderr
    done = ran(folder, tmp_path, "-c", TASK)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "Problem(prompt='2 + 2 = ', row={'answer': '4'}) 1.0",
        "0.25",
        "octal",
        "{'top_a': 0.2}",
    ]


@pytest.mark.slow
def test_objects_from_python(tmp_path):
    (tmp_path / "from_python.py").write_text(FILES["from_python.py"])
    done = ran(tmp_path, tmp_path, "from_python.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "finished"


@pytest.mark.slow
def test_a_plugin_that_fails_is_named_in_one_line_and_hurts_no_other_run(tmp_path):
    folder = installed(tmp_path / "site", my_parts="raise RuntimeError('broken\\nin two')\n")
    (tmp_path / "run.toml").write_text(FILES["run.toml"])
    train = ["-m", "ziggurat.cli.main", "train", "run.toml", "--dry-run"]
    done = ran(folder, tmp_path, *train)
    assert done.returncode == 2
    named = "plugin my-parts of my-parts 1.0 (my_parts): RuntimeError: broken in two"
    assert any(named in line for line in done.stderr.splitlines()), done.stderr
    plain = ["objective={kind='lm'}", "optimizer={kind='adamw',lr=1e-3}", "train={steps=2}"]
    llama = "model={kind='llama',vocab_size=288,d_model=32,n_layers=2,n_heads=4}"
    plain += ["report={}", "checkpoint={}", llama]
    done = ran(folder, tmp_path, *train, *(f"--set={one}" for one in plain))
    assert done.returncode == 0, done.stderr
    assert "plugin" not in done.stderr
