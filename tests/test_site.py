"""The built site: no reStructuredText left on a page, every example in a block of code, no network
needed, every link within."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow
MKDOCS = Path(sys.executable).parent / "mkdocs"

ROLE = re.compile(r":(?:func|class|mod|meth|attr|data|exc|obj|math|ref|term|py:\w+):`?")
"""A Sphinx role that was not rendered."""
DIRECTIVE = re.compile(r"\.\. (?:math|note|warning|code|code-block)::|\.\. \[")
LITERAL = re.compile(r"\w::\s")
"""Two colons before a block of code, which Markdown does not know."""
FORMULA = re.compile(r"\$\$|\\(?:frac|sum|sqrt|begin|left|alpha|beta|sigma|epsilon)\b")


class Page(HTMLParser):
    """The text of a page outside of code, its prompts outside of code, ids, links and scripts."""

    def __init__(self, path: Path):
        super().__init__()
        self.prose: list[str] = []
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag in ("code", "pre", "script", "style"):
            self._open.append(tag)
        self.ids |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag in ("img", "script", "iframe") and "src" in values:
            self.loaded.append(values["src"])
        if tag == "link" and values.get("rel") in ("stylesheet", "icon", "preload"):
            self.loaded.append(values["href"])

    def handle_endtag(self, tag: str) -> None:
        if self._open and self._open[-1] == tag:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if not self._open:
            self.prose.append(data)

    @property
    def text(self) -> str:
        return "".join(self.prose)


def wrong_in(text: str) -> list[str]:
    """Raw markup in the text of a page."""
    found = [
        match[0] for form in (ROLE, DIRECTIVE, LITERAL, FORMULA) for match in form.finditer(text)
    ]
    return found + [sign for sign in (">>>", "``", "```") if sign in text]


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[Path, Page]:
    """Pages by path: of the site that ``make check`` has just built, else of one built here."""
    site = ROOT / os.environ["ZIGGURAT_SITE"] if "ZIGGURAT_SITE" in os.environ else None
    if site is None:
        site = built(tmp_path_factory.mktemp("site").resolve())
    return {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}


def built(site: Path) -> Path:
    if not MKDOCS.exists():
        pytest.skip("mkdocs is not installed; make docs installs it")
    command = [str(MKDOCS), "build", "--strict", "--site-dir", str(site)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr
    return site


def test_no_page_shows_raw_markup(pages):
    assert len(pages) > 60
    wrong = {path.name: wrong_in(page.text) for path, page in pages.items()}
    assert not {name: found for name, found in wrong.items() if found}


def test_raw_markup_is_found():
    assert wrong_in("see :func:`load`") == [":func:`"]
    assert wrong_in(".. math:: y") == [".. math::", "h:: "]
    assert wrong_in(r"\frac{1}{2} and $$x$$") == [r"\frac", "$$", "$$"]
    assert wrong_in(">>> 1 + 1") == [">>>"]
    assert wrong_in("Example::\n") == ["e::\n"]
    assert wrong_in("a sentence with `code` in it") == []


def test_pages_load_nothing_from_elsewhere(pages):
    loaded = {source for page in pages.values() for source in page.loaded}
    assert loaded
    assert not [source for source in loaded if urlsplit(source).netloc]


def test_links_lead_to_pages_and_headings(pages):
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            known = pages[target].ids if target in pages else None
            if not target.exists() or (parts.fragment and known and parts.fragment not in known):
                broken.append(f"{path.name}: {link}")
    assert not broken
