"""What holds for the repository as a whole: packages, generated pages, locks, hygiene."""

import ast
import importlib
import os
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from ziggurat.cli.main import COMMANDS, module_name
from ziggurat.core.dimensions import DIMENSIONS

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = sorted(path.parent.name for path in (ROOT / "src/ziggurat").glob("*/__init__.py"))
LOCKS = sorted(ROOT.glob("requirements*.lock"))

# Built from parts, so that this file does not name what it forbids.
HOSTS = ("pypi org", "pythonhosted org", "npmjs org", "crates io", "debian org", "golang org")
HOST = re.compile("|".join(host.replace(" ", r"\.") for host in HOSTS), re.IGNORECASE)
FOLDERS = "work|tmp|root|opt|home|Users"
MACHINE_PATH = re.compile(rf"(?<![\w.$)}}\]*/-])/(?:{FOLDERS})/[\w.]")


def tracked_texts() -> dict[str, str]:
    """Text files that are in git or would be added."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    texts = {}
    for name in sorted(set(listing.decode().split("\0")) - {""}):
        path = ROOT / name
        content = path.read_bytes() if path.is_file() else b"\0"
        if b"\0" not in content[:4096]:
            texts[name] = content.decode("utf-8", errors="replace")
    return texts


@pytest.mark.parametrize(
    ("pattern", "bad"),
    [
        (HOST, "https://" + "files.pythonhosted" + ".org/x"),
        (HOST, "registry." + "npmjs" + ".org"),
        (MACHINE_PATH, "/" + "work/main"),
        (MACHINE_PATH, "open('/" + "tmp/x')"),
        (MACHINE_PATH, "file:///" + "home/me"),
    ],
)
def test_the_patterns_find_what_they_forbid(pattern, bad):
    assert pattern.search(bad.replace("file://", "file:"))


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
@pytest.mark.parametrize("pattern", [HOST, MACHINE_PATH], ids=["registry host", "machine path"])
def test_no_file_names(pattern):
    texts = tracked_texts()
    assert "pyproject.toml" in texts
    found = [
        f"{name}:{number}: {match[0]}"
        for name, text in texts.items()
        for number, line in enumerate(text.splitlines(), 1)
        if (match := pattern.search(line))
    ]
    assert not found, "\n".join(found)


def test_every_package_is_in_the_import_contract_and_the_reference():
    contract, _ = PROJECT["tool"]["importlinter"]["contracts"]
    ordered = [name for layer in contract["layers"] for name in re.split(r"\s*\|\s*", layer)]
    assert len(PACKAGES) == 18
    assert sorted(ordered) == PACKAGES
    assert contract["exhaustive"] is True
    assert sorted(path.stem for path in (ROOT / "docs/api").glob("*.md")) == PACKAGES


@pytest.mark.parametrize("package", PACKAGES)
def test_package_imports_and_says_what_it_is(package):
    module = importlib.import_module(f"ziggurat.{package}")
    assert (module.__doc__ or "").strip()


def test_import_order_is_kept():
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def modules_after(code: str) -> set[str]:
    """Top-level packages that a fresh interpreter has imported after ``code``."""
    code += "\nprint('\\n' + ' '.join({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", "import sys\n" + code], capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


def test_help_imports_nothing_heavy():
    loaded = modules_after("from ziggurat.cli.main import main\nassert main(['--help']) == 0")
    assert "ziggurat" in loaded
    assert not loaded & {"jax", "jaxlib", "numpy", "pydantic", "tyro", "rich", "flax"}


def test_verbs_import_no_jax_before_they_run():
    lines = [f"importlib.import_module({module_name(command)!r})" for command in COMMANDS]
    loaded = modules_after("\n".join(["import importlib", *lines]))
    assert not loaded & {"jax", "flax", "orbax", "grain", "pyarrow"}


def test_glossary_is_what_the_table_gives():
    script = runpy.run_path(str(ROOT / "scripts/write_glossary.py"), run_name="script")
    page = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")
    assert page == script["render"](), "run python scripts/write_glossary.py"
    for field in ("letter", "axis"):
        values = [getattr(entry, field) for entry in DIMENSIONS]
        assert len(set(values)) == len(values), field


def pins(lock: Path) -> dict[str, Requirement]:
    """The requirements of a lock that count on this machine, by name."""
    text = lock.read_text(encoding="utf-8").replace("\\\n", " ")
    entries = [Requirement(line.partition(" --hash")[0]) for line in text.splitlines()]
    return {entry.name: entry for entry in entries if not entry.marker or entry.marker.evaluate()}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_lock_holds_pins_and_hashes_only(lock):
    entry = r"[a-z0-9-]+==[\w.+!]+( ; [^\\\n]+)?( \\\n    --hash=sha256:[0-9a-f]{64})+"
    text = lock.read_text(encoding="utf-8")
    assert re.fullmatch(rf"({entry}\n)+", text), "run make lock"
    assert not re.search(
        r"://|--index|--find-links|^-|^(torch|triton)==|^nvidia-", text, re.MULTILINE
    )


@pytest.mark.parametrize(
    ("lock", "extras", "groups"),
    [
        ("requirements.lock", ["demo", "serve"], ["build"]),
        ("requirements-dev.lock", ["dev", "serve", "plan-tpu"], ["build", "lock"]),
        ("requirements-oracle.lock", ["oracle"], []),
        ("requirements-docs.lock", None, ["docs"]),
    ],
)
def test_lock_is_up_to_date(lock, extras, groups):
    texts = [text for group in groups for text in PROJECT["dependency-groups"][group]]
    if extras is not None:
        texts += PROJECT["project"]["dependencies"]
        texts += [t for e in extras for t in PROJECT["project"]["optional-dependencies"][e]]
    pinned = pins(ROOT / lock)
    for wanted in map(Requirement, texts):
        if wanted.name in ("ziggurat", "torch"):
            continue
        if wanted.marker and not wanted.marker.evaluate():
            continue
        found = pinned.get(canonical(wanted.name))
        assert found, f"{wanted} is not in {lock}: run make lock"
        (pin,) = found.specifier
        assert wanted.specifier.contains(pin.version), f"{lock}: {found}: run make lock"


def test_locks_agree():
    seen: dict[str, str] = {}
    for lock in LOCKS:
        for name, pin in pins(lock).items():
            assert seen.setdefault(name, str(pin.specifier)) == str(pin.specifier), (lock, name)


def test_an_old_python_is_told_what_to_do(tmp_path, capsys):
    script = runpy.run_path(str(ROOT / "scripts/install.py"), run_name="script")
    script["main"].__globals__["LEAST_PYTHON"] = (99, 0)
    assert script["main"]([str(tmp_path / "env")]) == 1
    assert "expected 99.0 or newer; install one and run make PYTHON=" in capsys.readouterr().err
    assert not (tmp_path / "env").exists()


def test_ci_runs_make_check_and_nothing_else():
    path = ROOT / ".ci/run"
    assert os.access(path, os.X_OK)
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    assert lines == ["set -euo pipefail", 'cd "$(dirname "$0")/.."', "make check"]


PRIVATE_NAMES = {
    "src/ziggurat/core/jax_private.py": {"jax", "jaxlib"},
    "src/ziggurat/checkpoint/orbax_private.py": {"orbax"},
}
"""The only file that may use private names of a library."""

WATCHED = {"jax", "jaxlib", "flax", "optax", "orbax", "grain", "qwix", "grpc_health"}
NO_PUBLIC_INTERFACE = {"jaxlib"}
"""Libraries that promise nothing: JAX has what it shows of them under names of its own."""


def is_private(module: str) -> bool:
    library, *inner = module.split(".")
    hidden = any(part.startswith("_") and not part.startswith("__") for part in inner)
    return library in WATCHED and (hidden or library in NO_PUBLIC_INTERFACE)


def private_names(text: str) -> set[str]:
    """Private names of the watched libraries that a Python file uses, by full path.

    Found are imports, attributes of what was imported, and paths in strings.
    """
    found, imported = set(), {}
    nodes = list(ast.walk(ast.parse(text)))
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
            for alias in node.names:
                top = alias.name.partition(".")[0]
                imported[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            paths = {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
            found |= set(paths.values())
            imported |= paths
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= {node.value} if re.fullmatch(r"[\w.]+\.[\w.]+", node.value) else set()
    for node in nodes:
        parts = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if parts and isinstance(node, ast.Name):
            found.add(".".join([imported.get(node.id, ""), *reversed(parts)]))
    return {path for path in found if is_private(path)}


@pytest.mark.parametrize(
    "text",
    [
        "from jax._src import core",
        "import jax._src.core",
        "import jaxlib.xla_client",
        "from flax.nnx import _hidden",
        "import jax as j\nj.numpy._hidden()",
        "import orbax.checkpoint as ocp\nocp.handlers._hidden",
        "import pytest\npytest.importorskip('jax._src.core')",
    ],
)
def test_private_names_are_found(text):
    assert private_names(text)


def test_public_names_are_not_taken_for_private_ones():
    text = "import jax\nfrom jax import extend as e\njax.__version__, e.core, 'jax.numpy', self._x"
    assert not private_names(text)


@pytest.mark.slow
def test_private_names_of_other_libraries_stand_in_one_file_each():
    wrong, used = [], set()
    for folder in ("src", "tests", "scripts", "benchmarks", "examples"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if name == "tests/test_repository.py":  # the examples above
                continue
            for private in private_names(path.read_text(encoding="utf-8")):
                library = private.partition(".")[0]
                used.add(library)
                if library not in PRIVATE_NAMES.get(name, ()):
                    wrong.append(f"{name}: {private}")
    assert used >= {"jax", "orbax"}
    assert not wrong, "use a public name, or add it to a *_private.py with what it is for: " + (
        "; ".join(wrong)
    )


@pytest.mark.parametrize("library", ["jax", "orbax-checkpoint"])
def test_a_library_of_which_private_names_are_used_is_bounded(library):
    texts = PROJECT["project"]["dependencies"]
    (wanted,) = [w for w in map(Requirement, texts) if w.name == library]
    operators = {part.operator for part in wanted.specifier}
    assert operators == {">=", "<"}, f"{wanted}: bound it from both sides"


CONCEPTS = {
    "checkpoint": {"chaos", "damage", "earlier_versions", "failures", "several_processes"},
    "cli": {
        *("bad_input", "front_door", "hints", "hub_ids"),
        *("reading_writes_nothing", "refused_by_the_system"),
    },
    "cluster": {"training"},
    "data": {"elastic", "identity", "object_store", "positions"},
    "models": {
        *("larger_tokenizer", "mixer_sharding", "model_errors", "recurrent_sharding", "smollm2"),
    },
    "models/conversion": {"published_configs"},
    "models/conversion/quantization": {"memory"},
    "models/loading": {"sharded"},
    "nn": {"layers", "recurrent_stacks"},
    "post": {"objectives"},
    "quantize": {"against_qwix", "smollm2"},
    "serve": {"abuse", "clients", "hostile_llm", "parity", "smollm2_load", "tools", "traffic"},
    "serve/llm": {"chained_steps", "hybrids", "layer_states", "mesh", "mesh_images"},
    "serve/openai": {"large_bodies"},
    "serve/predict": {
        *("access", "broken_requests", "hostile", "kserve_sdk", "minilm"),
        *("together", "triton_client"),
    },
    "train": {
        *("average", "first_start_killed", "indices", "life", "low_precision", "run_config"),
        "sparse",
    },
}
"""Test files that hold for several modules of a folder of ``src/ziggurat``, by that folder."""


def test_tests_mirror_the_source_by_path():
    """``tests/A/B/test_X.py`` tests module or folder ``X`` of ``src/ziggurat/A/B``, or an aspect of
    it (``test_X_ASPECT.py``), or the whole of folder ``B`` if that is ``X``, or a named concept."""
    tests, used, stray = ROOT / "tests", set(), []
    for path in sorted(tests.glob("*/**/test_*.py")):
        folder, name = path.relative_to(tests).parent, path.stem.removeprefix("test_")
        source = ROOT / "src/ziggurat" / folder
        known = {entry.stem.strip("_") for entry in source.glob("[!_]*")} | {source.name}
        if source.is_dir() and any(name == x or name.startswith(f"{x}_") for x in known):
            continue
        if source.is_dir() and name in CONCEPTS.get(folder.as_posix(), ()):
            used.add((folder.as_posix(), name))
        else:
            stray.append(path.relative_to(ROOT).as_posix())
    assert not stray, f"move them to the path of what they test, or name their concept: {stray}"
    unused = {(folder, name) for folder in CONCEPTS for name in CONCEPTS[folder]} - used
    assert not unused, f"concepts without a test file, or of a module's name: {sorted(unused)}"


SHARED_NAMES = {
    "TextEmbedder": "the protocol of the embeddings endpoint, and the model that implements it",
}
"""Class names that two packages may share, since they are the interface of one idea."""


def test_a_class_name_stands_for_one_thing():
    """A reader who meets a name in two packages must be able to take it for one thing."""
    found: dict[str, list[str]] = {}
    source = ROOT / "src/ziggurat"
    for path in sorted(source.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(str(path.relative_to(source)))
    shared = {name: files for name, files in found.items() if len(files) > 1}
    assert shared.keys() == SHARED_NAMES.keys(), shared


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('"""What a step carries."""', "opens with 'What'"),
        ('"""The same for encoders."""', "opens with 'The same'"),
        ('"""token ids."""', "opens with the lower-case"),
        ('"""Number of products."""', "write matmuls"),
        ("class Lane: ...", "write Sequence"),
    ],
)
def test_the_language_check_finds(line, problem, tmp_path, capsys):
    check = runpy.run_path(str(ROOT / "scripts/check_language.py"))
    file = tmp_path / "module.py"
    file.write_text(line + "\n")
    assert check["main"]([str(file)]) == 1
    assert problem in capsys.readouterr().out
    file.write_text('"""Types of parameters."""\n')
    assert check["main"]([str(file)]) == 0
