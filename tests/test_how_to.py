"""The how-to pages: their run files are written, their commands run, their output compared."""

import doctest
import logging
import os
import re
import runpy
import shlex
from pathlib import Path

import pytest

from ziggurat.cli.main import main

FOLDER = Path(__file__).parents[1] / "docs/how-to"
PAGES = sorted(page for page in FOLDER.glob("*.md") if page.name != "extend.md")
"""All but the one whose package ``tests/test_plugins.py`` installs."""
QUICK = ("data.md", "kernels.md", "plan.md")
"""Pages that `make test` runs; the others train or serve, and are slow."""
LONG = ("rl.md", "diffusion.md")
"""Pages whose commands train for half a minute each, which CI has no time for; what they show is
also in ``tests/post/rl`` and ``tests/cli/test_sample.py``. ``LONG_PAGES=1 pytest`` runs them."""
BLOCK = re.compile(r"```(toml|python|console)\n(.*?)```", re.DOTALL)


@pytest.fixture(autouse=True)
def _keep_logging(monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", logging.getLogger().handlers[:])
    yield
    for name, level in ((None, logging.WARNING), ("ziggurat", logging.NOTSET)):
        logging.getLogger(name).setLevel(level)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=() if path.name in QUICK else pytest.mark.slow, id=path.name)
        for path in PAGES
    ],
)
def test_page(path, tmp_path, monkeypatch, capsys):
    """A ``toml`` or ``python`` block that starts with ``# NAME`` is a file; in a ``console`` block
    the lines after ``$ ziggurat ...`` or ``$ python FILE`` are what it prints, with ``...`` for
    what varies."""
    if path.name in LONG and "LONG_PAGES" not in os.environ:
        pytest.skip("half a minute; set LONG_PAGES=1")
    monkeypatch.chdir(tmp_path)
    same, options = doctest.OutputChecker(), doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    done = 0
    for kind, text in BLOCK.findall(path.read_text(encoding="utf-8")):
        if kind != "console":
            if text.startswith("# "):
                Path(text.split()[1]).write_text(text, encoding="utf-8")
            continue
        for command in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
            line, _, expected = command.partition("\n")
            program, *args = shlex.split(line)
            capsys.readouterr()
            if program == "python":
                runpy.run_path(args[0], run_name="__main__")
            else:
                assert program == "ziggurat"
                assert main(args) == 0
            shown = capsys.readouterr().out
            assert same.check_output(expected, shown, options), f"{line}\n{shown}"
            done += 1
    assert done
