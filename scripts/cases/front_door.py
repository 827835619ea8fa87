"""Installation, documentation, hub ids."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from cases.case import Differs, Scratch, case, expect

ROOT = Path(__file__).resolve().parents[2]
OLD_PYTHONS = ("python2.7", "python3.6", "python3.7", "python3.8", "python3.9", "python3.10")


@case("ux/01-base-install", note="modules of extras hidden; make matrix installs the wheel")
def base_install(scratch: Scratch) -> str:
    """The core installation trains and generates."""
    scratch.environment["PYTHONPATH"] = str(ROOT)
    scratch.copy("train/base.toml")
    core = ("-m", "tests.cli.without_extras")
    trained = scratch.python(*core, "train", "base.toml", "--train.steps=4", limit_s=180)
    said = scratch.python(*core, "generate", "runs/a", "--prompt", "import", "--max-tokens", "4",
                          limit_s=180)  # fmt: skip
    served = scratch.python(*core, "serve", "runs/a")
    seen = (
        f"train exit {trained.code}, generate exit {said.code}, serve exit {served.code}: "
        f"{served.last.strip()}"
    )
    fits = (trained.code, said.code, served.code) == (0, 0, 2) and "ziggurat[serve]" in served.text
    return expect(fits, seen if fits else f"{seen}; {trained.last}; {said.last}")


@case("ux/02-report-after-training", note="20 steps")
def report(scratch: Scratch) -> str:
    """Refused before step 1, or the report written."""
    scratch.copy("ux/02-report-after-training/run.toml")
    done = scratch.ziggurat("train", "run.toml", "--train.steps=20", limit_s=240)
    written = (scratch.path / "runs/ok3/report.html").exists()
    trained = (scratch.path / "runs/ok3/metrics.jsonl").exists()
    fits = (done.code == 0 and written) or (done.code == 2 and not trained)
    line = done.find("^error|^report") or done.last
    return expect(fits, f"exit {done.code}, report {written}: {line.strip()[:160]}")


@case("ux/03-docs-strict")
def documentation(scratch: Scratch) -> str:
    """The strict build counts warnings, and has none."""
    scratch.environment["NO_MKDOCS_2_WARNING"] = "1"
    mkdocs = Path(sys.executable).with_name("mkdocs")
    done = scratch.command(
        str(mkdocs), "build", "--strict", "--config-file", str(ROOT / "mkdocs.yml"),
        "--site-dir", str(scratch.path / "site"), limit_s=600,
    )  # fmt: skip
    rule = re.search(r"mkdocs build.*", (ROOT / "Makefile").read_text())
    quiet = rule is None or "--quiet" in rule[0]
    warnings = len(re.findall(r"^WARNING", done.text, re.MULTILINE))
    fits = done.code == 0 and not quiet and not warnings
    return expect(fits, f"exit {done.code}, {warnings} warnings; {rule[0] if rule else 'no rule'}")


DIGESTS = """
from unittest import mock
from ziggurat.kernels.cpu import build
major, minor = build.interface_version()
def digest(version):
    getattr(build.digest, "cache_clear", lambda: None)()
    with mock.patch.object(build, "interface_version", lambda: version):
        return build.digest()
print("same minor-independent name:", digest((major, minor)) == digest((major, minor + 2)))
print("another major differs:", digest((major, minor)) != digest((major + 1, minor)))
"""


@case("ux/04-wheel-kernels", note="another FFI minor is simulated; make matrix installs the wheel")
def kernels(scratch: Scratch) -> str:
    """Kernels of a wheel serve every minor version of XLA's FFI of the same major."""
    done = scratch.python("-c", DIGESTS)
    return expect(done.code == 0 and done.text.count("True") == 2, done.text.strip())


@case("ux/06-hub-id", note="a cache laid out by hand")
def hub_id(scratch: Scratch) -> str:
    """An id is found in the cache, without a network."""
    scratch.copy("train/base.toml")
    trained = scratch.ziggurat("train", "base.toml", "--train.steps=2", limit_s=180)
    snapshot = scratch.path / "home/hub/models--acme--tiny/snapshots/abc123"
    exported = scratch.ziggurat("export", "hf", "runs/a", "--output", str(scratch.path / "hf"))
    expect(trained.code == exported.code == 0, f"{trained.last}; {exported.last}")
    snapshot.parent.mkdir(parents=True)
    shutil.move(scratch.path / "hf", snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text("abc123")
    scratch.environment["HF_HOME"] = str(scratch.path / "home")
    found = scratch.ziggurat("generate", "acme/tiny", "--prompt", "a", "--max-tokens", "3")
    missing = scratch.ziggurat("generate", "acme/other", "--prompt", "a")
    seen = f"exit {found.code}; another id: exit {missing.code}, {missing.last.strip()[:200]}"
    return expect((found.code, missing.code) == (0, 2), seen if not found.code else found.last)


@case("ux/08-old-python")
def old_python(scratch: Scratch) -> str:
    """An old Python gets the script's own message."""
    said = {}
    for name in OLD_PYTHONS:
        python = _old(name)
        if python:
            done = scratch.command(python, str(ROOT / "scripts/install.py"), "x", "r.lock")
            said[name] = (done.code, done.last)
    if not said:
        raise Differs("no Python before 3.11 is installed here")
    fits = all(code == 1 and "3.11 or newer" in line for code, line in said.values())
    return expect(fits, "; ".join(f"{name}: {line}" for name, (_, line) in said.items()))


def _old(name: str) -> str:
    """The path of an old Python, of pyenv too; empty if there is none."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = sorted(root.glob(f"{name.removeprefix('python')}.*/bin/{name}"))
    candidate = str(found[-1]) if found else shutil.which(name) or ""
    if not candidate:
        return ""
    works = subprocess.run([candidate, "-c", ""], capture_output=True, check=False)
    return candidate if works.returncode == 0 else ""
