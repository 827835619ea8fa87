"""The how-to pages and tutorials: run files are written, commands run, their output compared."""

import logging
import os
from pathlib import Path

import pytest

from tests.pages import run_page

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(
    [*DOCS.glob("how-to/*.md"), *DOCS.glob("tutorials/*.md"), DOCS / "start/quick-start.md"]
)
PAGES.remove(DOCS / "how-to/extend.md")  # its package is installed by tests/test_plugins.py
QUICK = ("data.md", "kernels.md", "plan.md")
"""Pages that `make test` runs; the others train or serve, and are slow."""
ORACLE = ("hugging-face.md",)
"""Pages that load what they wrote with PyTorch."""
LONG = ("rl.md", "diffusion.md")
"""Pages whose commands train for half a minute each, which CI has no time for; what they show is
also in ``tests/post/rl`` and ``tests/cli/test_sample.py``. ``LONG_PAGES=1 pytest`` runs them."""


def _marks(path: Path) -> list[pytest.MarkDecorator]:
    marks = [] if path.name in QUICK else [pytest.mark.slow]
    return [*marks, pytest.mark.parity] if path.name in ORACLE else marks


@pytest.fixture(autouse=True)
def _keep_logging(monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", logging.getLogger().handlers[:])
    yield
    for name, level in ((None, logging.WARNING), ("ziggurat", logging.NOTSET)):
        logging.getLogger(name).setLevel(level)


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=_marks(p), id=f"{p.parent.name}/{p.name}") for p in PAGES],
)
def test_page(path, tmp_path, monkeypatch):
    if path.name in LONG and "LONG_PAGES" not in os.environ:
        pytest.skip("half a minute; set LONG_PAGES=1")
    monkeypatch.chdir(tmp_path)
    assert run_page(path.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_a_page_whose_output_differs_fails():
    with pytest.raises(AssertionError, match="printed"):
        run_page("```python\n# cell\nprint(1)\n```\n\n```text\n2\n```\n")
