"""What a program is compiled for is asked of one function; nothing asks the machine it runs on."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1] / "src" / "ziggurat"
QUESTIONS = {"default_backend", "platform", "device_kind", "get_backend", "xla_bridge"}
"""Attributes by which code would learn what it runs on, or on what kind of device an array is."""

# Where a real question about this machine, or a device that is named, is asked; and why.
ALLOWED = {
    "mesh/layout.py:Layout.platform": "the answer itself: of the layout's own devices",
    "kernels/placement.py:platform": "the one function; outside a layout programs run here",
    "kernels/choices.py:machine": "measured times belong to the machine they were taken on",
    "kernels/choices.py:chosen": "they count only where the program runs on that machine",
    "kernels/catalogue.py:_why_not": "lists what serves on this machine, for doctor and tune",
    "train/state.py:initial_state": "of the devices of the sharding that is compiled for",
    "serve/accepting.py:_native": "asks the operating system, not a device",
    "serve/turns.py:set_slice": "asks the operating system, not a device",
    "train/summary.py:*": "the report names the machine",
    "train/loop.py:_Throughput.__init__": "peak of the devices that train, for MFU",
    "profile/trace.py:can_trace": "whether this process can record a trace",
    "profile/hardware.py:*": "looks a given device up in the table of published figures",
    "profile/memory.py:*": "memory of the process on this system",
    "core/host_memory.py:*": "of the C library of this system",
    "serve/predict/export.py:*": "golden pairs say on what machine they were recorded",
    "serve/predict/bundle.py:*": "of the devices that a bundle was loaded for",
    "serve/predict/model_card.py:*": "of the device on which a bundle runs",
    "serve/llm/programs.py:_environment": "compiled programs on disk belong to one machine",
    "checkpoint/memory/peer.py:*": "the name of this machine, to tell hosts apart",
    "cluster/worker.py:*": "versions and name of this machine",
    "cli/kernels.py:*": "prints what this machine is",
    "cli/doctor.py:*": "prints what this machine is",
    "cli/bundle.py:*": "prints on what machine golden pairs were recorded",
    "kernels/cpu/build.py:*": "compiles C++ for this machine's CPU",
}


def questions(path: Path) -> list[tuple[str, int, str]]:
    """Functions of a file that ask, with the line and the attribute."""
    found: list[tuple[str, int, str]] = []

    def visit(node: ast.AST, scope: tuple[str, ...]) -> None:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            scope = (*scope, node.name)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "layout")
            if node.attr in QUESTIONS and not own:
                found.append((".".join(scope), node.lineno, node.attr))
        for child in ast.iter_child_nodes(node):
            visit(child, scope)

    visit(ast.parse(path.read_text(encoding="utf-8")), ())
    return found


def allowed(file: str, scope: str) -> bool:
    return f"{file}:{scope}" in ALLOWED or f"{file}:*" in ALLOWED


def test_nothing_asks_the_host_but_for_a_reason():
    """Add a line to ``ALLOWED`` for a real question about this machine; else call
    ``kernels.placement.platform()`` or ask the layout."""
    wrong = []
    for path in sorted(ROOT.rglob("*.py")):
        file = path.relative_to(ROOT).as_posix()
        for scope, line, attribute in questions(path):
            if not allowed(file, scope):
                wrong.append(f"{file}:{line}: {scope} reads .{attribute}")
    assert not wrong, "\n".join(wrong)
    assert all((ROOT / key.partition(":")[0]).is_file() for key in ALLOWED)


def test_the_search_finds_what_it_forbids(tmp_path):
    file = tmp_path / "x.py"
    file.write_text("import jax\ndef pick():\n    return jax.default_backend() == 'cpu'\n")
    assert questions(file) == [("pick", 3, "default_backend")]
    file.write_text("import jax\ndef pick():\n    return jax.devices()[0].platform\n")
    assert questions(file) == [("pick", 3, "platform")]
