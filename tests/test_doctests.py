"""Every example in a docstring or a page runs, and none is passed over.

Tests of their own rather than pytest's collection of ``src``: they run under this folder's set-up,
and the examples that doctest finds are compared with those that stand in the file (it does not look
into strings under fields, say, and would pass them over).
"""

import ast
import doctest
import importlib
import inspect
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}


def examples_in(source: str) -> int:
    """Number of examples in all strings that stand as statements: docstrings, also of fields."""
    parser = doctest.DocTestParser()
    strings = (
        node.value.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
    return sum(len(parser.get_examples(inspect.cleandoc(text))) for text in strings)


@pytest.mark.parametrize("name", MODULES)
def test_module(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    tests = doctest.DocTestFinder().find(module, name)
    found = sum(len(test.examples) for test in tests)
    assert found == examples_in(MODULES[name].read_text(encoding="utf-8"))
    for test in tests:
        run(test)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_page(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = path.read_text(encoding="utf-8")
    run(doctest.DocTestParser().get_doctest(text, {}, path.name, str(path), 0))


def run(test: doctest.DocTest) -> None:
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS, verbose=False)
    runner.run(test, out=said.append)
    assert not runner.failures, "".join(said)


def test_an_example_that_doctest_passes_over_is_counted():
    assert examples_in("class A:\n    x: int = 1\n    '''>>> 1\n    1\n    '''\n") == 1


def test_a_wrong_example_fails():
    test = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    with pytest.raises(AssertionError, match="Expected"):
        run(test)
