"""Pages against the code: error messages, keys, options, manifests, the code map, and pages that
scripts write."""

import ast
import functools
import inspect
import json
import re
import runpy
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.oracle import families
from ziggurat.cli.serve import serve
from ziggurat.core import config
from ziggurat.models import FAMILIES
from ziggurat.serve import access
from ziggurat.train.config import RunConfig

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
OPERATOR = DOCS / "tutorials/operator.md"


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def blocks(path: Path, kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", read(path), re.DOTALL)


@pytest.mark.parametrize(
    ("script", "page"),
    [
        ("write_run_file_reference.py", DOCS / "reference/run-file.md"),
        ("write_benchmarks.py", DOCS / "reference/benchmarks.md"),
        ("write_sampling_parameters.py", DOCS / "reference/sampling-parameters.md"),
        ("write_parity.py", DOCS / "reference/parity.md"),
    ],
    ids=["run file", "benchmarks", "sampling parameters", "parity"],
)
def test_page_is_what_its_script_writes(script, page):
    written = runpy.run_path(str(ROOT / "scripts" / script), run_name="script")["render"]()
    assert read(page) == written, f"run python scripts/{script}"


def test_parity_page_has_every_case_within_its_bound():
    script = runpy.run_path(str(ROOT / "scripts/write_parity.py"), run_name="script")
    figures = json.loads(read(script["RESULTS"]))
    assert list(figures) == [*families.CASES, *families.ENCODER_CASES]
    beyond = {case: row for case, row in figures.items() if max(row.values()) > script["LARGEST"]}
    assert not beyond


def test_reference_has_every_key_of_the_run_file():
    page = read(DOCS / "reference/run-file.md")
    listed = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    assert {key.rpartition(".")[2] for key in config.keys_of(RunConfig)} - {"kind"} <= listed


def test_reference_says_range_default_and_source():
    page = read(DOCS / "reference/run-file.md")
    assert "| `accumulate` | integer | `1` | a number >= 1 | Micro-batches per step;" in page
    assert "Declared in `src/ziggurat/train/config.py`." in page


def test_readme_shows_the_results_as_they_are():
    script = runpy.run_path(str(ROOT / "scripts/write_benchmarks.py"), run_name="script")
    text = read(ROOT / "README.md")
    assert script["BLOCK"].search(text)
    assert script["readme"](text) == text, "run python scripts/write_benchmarks.py"


@functools.cache
def texts_in_the_code() -> tuple[str, ...]:
    """Every string of the package but docstrings, and the parts of formatted ones."""
    found = []
    for path in (ROOT / "src").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(read(path))))
        told = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        strings = (node for node in nodes if isinstance(node, ast.Constant))
        found += [node.value for node in strings if id(node) not in told]
    return tuple(text for text in found if isinstance(text, str))


MESSAGES = re.findall(r"^### `(.+)`$", read(DOCS / "start/troubleshooting.md"), re.MULTILINE)


@pytest.mark.parametrize("message", MESSAGES)
def test_error_message_still_exists(message):
    for part in message.split("..."):
        assert any(part.strip() in text for text in texts_in_the_code()), part


def test_troubleshooting_has_messages():
    assert len(MESSAGES) >= 20


@pytest.mark.parametrize("name", ["hugging-face.md", "maxtext.md"])
def test_migration_page_names_keys_that_exist(name):
    known = set(config.keys_of(RunConfig))
    tables = {key.partition(".")[0] for key in known}
    right = [row.split("|")[2] for row in read(DOCS / "migrate" / name).splitlines() if "|" in row]
    keys = {key for cell in right for key in re.findall(r"`([a-z_]+(?:\.[a-z_0-9]+)+)", cell)}
    named = {key for key in keys if key.partition(".")[0] in tables}
    assert len(named) > 12
    assert not named - known


def test_install_page_lists_the_extras_there_are():
    project = tomllib.loads(read(ROOT / "pyproject.toml"))["project"]
    rows = re.findall(r"^\| (`.+?`) \|", read(DOCS / "start/install.md"), re.MULTILINE)
    listed = [extra for row in rows for extra in re.findall(r"`([a-z0-9-]+)`", row)]
    assert sorted(listed) == sorted(project["optional-dependencies"])


def test_migration_page_lists_the_families_there_are():
    page = read(DOCS / "migrate/hugging-face.md").partition("## Models")[2].partition("\n## ")[0]
    listed = set(re.findall(r"`(\w+(?:ForCausalLM|LMHeadModel))`", page))
    families = [FAMILIES[name] for name in FAMILIES]
    decoders = {name for one in families if not one.encoder for name in one.architectures}
    assert listed == decoders
    encoders = {name for one in families if one.encoder for name in one.architectures}
    bare = {name for name in encoders if "For" not in name}  # heads stand in a column of their own
    assert {name for name in bare if f"`{name}`" not in page} == set()


SERVE_OPTIONS = {"--" + name.replace("_", "-") for name in inspect.signature(serve).parameters}


@pytest.mark.parametrize("name", ["migrate/vllm.md", "migrate/triton.md", "tutorials/operator.md"])
def test_page_names_options_of_serve_that_exist(name):
    rows = [line.split("|") for line in read(DOCS / name).splitlines() if line.startswith("| ")]
    cells = [row[1] if name.startswith("tutorials") else row[2] for row in rows]
    named = {option for cell in cells for option in re.findall(r"`[^`]*?(--[a-z-]+)", cell)}
    known = SERVE_OPTIONS | {"--no-prefix-cache", "--recipe"}
    assert named
    assert not named - known


def test_dockerfile_starts_a_server_with_options_that_exist():
    (text,) = blocks(OPERATOR, "dockerfile")
    lines = [line.partition(" ") for line in text.splitlines() if line]
    allowed = {"FROM", "COPY", "RUN", "USER", "EXPOSE", "ENTRYPOINT", "CMD"}
    assert lines[0][0] == "FROM"
    assert {word for word, _, _ in lines} <= allowed
    content = {word: rest for word, _, rest in lines}
    command = json.loads(content["ENTRYPOINT"]) + json.loads(content["CMD"])
    assert command[:2] == ["ziggurat", "serve"]
    assert {word for word in command if word.startswith("--")} <= SERVE_OPTIONS
    for word, _, rest in lines:
        if word == "RUN":
            assert shlex.split(rest)


def test_manifest_is_yaml_that_fits_the_server():
    (text,) = blocks(OPERATOR, "yaml")
    deployment, service = yaml.safe_load_all(text)
    assert (deployment["apiVersion"], deployment["kind"]) == ("apps/v1", "Deployment")
    assert (service["apiVersion"], service["kind"]) == ("v1", "Service")
    spec = deployment["spec"]["template"]["spec"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels == service["spec"]["selector"]
    (container,) = spec["containers"]
    options = dict(arg.split("=") for arg in container["args"][1:])
    assert options.keys() <= SERVE_OPTIONS
    assert spec["terminationGracePeriodSeconds"] > int(options["--drain-seconds"])
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] in access.OPEN  # answered without a key
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in spec["volumes"]}
    assert service["spec"]["ports"][0]["targetPort"] == container["ports"][0]["name"]


def test_code_map_names_files_that_exist():
    section = read(ROOT / "CONTRIBUTING.md").partition("## Code map")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ") and "`" in line]
    assert len(rows) >= 20  # the twenty likely changes, and more
    for row in rows:
        paths = re.findall(r"`((?:src|tests|docs|scripts|recipes)/[^`]*)`", row)
        assert paths, row
        for path in paths:
            assert (ROOT / path).exists(), path


def test_every_drawing_is_used_and_has_a_title():
    pages = "".join(read(path) for path in [*DOCS.rglob("*.md"), ROOT / "mkdocs.yml"])
    for path in (DOCS / "assets").glob("*.svg"):
        assert f"assets/{path.name}" in pages, path
        assert "<title>" in read(path), path
        assert "http" not in read(path).replace("http://www.w3.org/2000/svg", ""), path
