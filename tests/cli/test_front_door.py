"""A core installation, recipes by name, and older Pythons: what a newcomer meets first."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from tests.compilation import QUICK

from ziggurat.cli import doctor_commands
from ziggurat.cli.main import COMMANDS
from ziggurat.core import extras
from ziggurat.core.errors import ConfigError
from ziggurat.train import recipes

ROOT = Path(__file__).parents[2]
CORE = [sys.executable, "-m", "tests.cli.without_extras"]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
# Not modules of commands: tools of this checkout, and what JAX or Ziggurat is installed with.
NOT_OURS = {"dev", "oracle", "cuda", "tpu"}
TOP_LEVEL = {
    "grpcio": "grpc",
    "grpcio-health-checking": "grpc_health",
    "grpcio-reflection": "grpc_reflection",
    "pillow": "PIL",
    "prometheus-client": "prometheus_client",
    "protobuf": "google",
    "scikit-learn": "sklearn",
}


def core(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": QUICK}
    return subprocess.run(
        [*CORE, *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )


def test_every_requirement_of_an_extra_is_a_module_that_names_it():
    for extra in EXTRAS.keys() - NOT_OURS:
        for requirement in map(Requirement, EXTRAS[extra]):
            if requirement.name != "ziggurat":
                module = TOP_LEVEL.get(requirement.name, requirement.name)
                assert extras.MODULES[module] == extra, requirement.name
    assert set(extras.MODULES.values()) <= EXTRAS.keys()


def test_a_module_of_no_extra_is_not_explained():
    assert extras.missing(ModuleNotFoundError("No module named 'x'", name="x")) is None
    assert extras.missing(ModuleNotFoundError("no name")) is None


@pytest.mark.slow
def test_doctor_tries_every_command_of_a_core_installation(tmp_path):
    """What it says of ``serve`` is what ``serve`` itself says."""
    done = core("doctor", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    commands = json.loads(done.stdout)["commands"]
    assert list(commands) == list(COMMANDS)
    broken = {name for name, found in commands.items() if not found["works"]}
    assert broken == {"serve", "demo"}
    for name in broken:
        line = core(name, *(["nothing-here"] if name == "serve" else []), cwd=tmp_path)
        assert line.returncode == 2
        (extra,) = re.findall(r"ziggurat\[([a-z]+)\]", line.stderr)
        assert f"ziggurat[{extra}]" in commands[name]["note"]
        assert line.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_core_installation_trains_and_generates(tmp_path):
    """Two steps of a recipe by its name, in a directory that is no checkout."""
    small = ["--model.n_layers=1", "--model.d_model=48", "--data.sequence_length=32"]
    small += ["--set=data.sources=[{kind='text',path='{stdlib}/json',glob='*.py'}]"]
    small += ["--train.steps=2", "--checkpoint.every=2", "--set=report.prompts=[]"]
    small += ["--set=optimizer.schedule={kind='constant'}", "--set=data.eval_fraction=0"]
    small += ["--tokenizer.vocab_size=300", "--model.vocab_size=300", "--data.batch_size=1"]
    trained = core("train", "tiny-python", *small, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    made = core("generate", "runs/tiny-python", "--prompt=import", "--max-tokens=2", cwd=tmp_path)
    assert made.returncode == 0, made.stderr


def test_imports_are_those_of_the_code():
    found = set(doctor_commands.imports("ziggurat.cli.serve"))
    assert doctor_commands.Import("ziggurat.serve.server", "Server") in found
    assert doctor_commands.Import("prometheus_client", "CollectorRegistry") in found


def test_a_file_wins_over_a_recipe_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("tiny-python", "tiny-python.toml", "recipes/tiny-python.toml"):
        assert recipes.run_file(Path(name)) == recipes.directory() / "tiny-python.toml"
    Path("tiny-python").touch()
    assert recipes.run_file(Path("tiny-python")) == Path("tiny-python")
    with pytest.raises(ConfigError, match=r"found no such file; .*did you mean tiny-mixture\?"):
        recipes.run_file(Path("tiny-mixtur"))
    with pytest.raises(ConfigError, match="check the path"):
        recipes.run_file(Path("elsewhere/of-mine.toml"))


OLDER = [
    found
    for version in ("2.7", *(f"3.{minor}" for minor in range(6, 11)))
    for found in sorted((Path.home() / ".pyenv/versions").glob(f"{version}.*/bin/python"))
]


@pytest.mark.skipif(not OLDER, reason="no Python below 3.11 is here")
@pytest.mark.parametrize("python", OLDER, ids=lambda path: path.parts[-3])
def test_an_older_python_is_told_which_is_needed(python, tmp_path):
    command = [str(python), str(ROOT / "scripts/install.py"), str(tmp_path / "no"), "any.lock"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    told = r"error: Python: found [23]\.\S+; expected 3\.11 or newer; .*\n"
    assert re.fullmatch(told, done.stderr)
