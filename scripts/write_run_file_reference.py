"""Write docs/reference/run-file.md from the config dataclasses: every table, key, type, default and
range, with the file that declares it: ``python scripts/write_run_file_reference.py``.

A range is what the class itself checks: its ``__post_init__`` runs with a ``require`` that records
what is expected of each key.
"""

import ast
import contextlib
import dataclasses
import inspect
import itertools
import json
import re
import textwrap
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from ziggurat.core import config
from ziggurat.train.config import RunConfig

ROOT = Path(__file__).parents[1]
PATH = ROOT / "docs" / "reference" / "run-file.md"
LONGEST_RANGE = 90

HEAD = """\
# The run file

A run file is the config of a run, in TOML. This page lists every table and key. A table with `kind`
comes in variants; each variant has its own keys. An unknown key is an error that names the nearest
known one. `ziggurat train RUN_FILE --dry-run` prints every value and its source. Set any key on
the command line: `--optimizer.lr=3e-4`.

<!-- Generated from the config dataclasses by `python scripts/write_run_file_reference.py`. -->

"""


def render() -> str:
    """The page's text."""
    page = _Page()
    page.table(RunConfig, "", "Top level")
    return HEAD + "\n".join(page.lines).rstrip() + "\n"


class _Page:
    """Collects the page; each class is written once, and linked wherever it comes again."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._anchors: dict[type, str] = {}
        self._linked: set[str] = set()
        self._headings: set[str] = set()

    def table(self, cls: type, path: str, title: str) -> None:
        """A heading, the keys of ``cls``, then the tables inside it."""
        anchor = _anchor(path, config.tag(cls) if _variant(title) else None)
        self._anchors[cls] = anchor
        self._headings.add(anchor)
        level = "##" if path.count(".") < 1 and not _variant(title) else "###"
        self.lines += [f"{level} {title} {{ #{anchor} }}", ""]
        self.lines += [_about(cls), "", f"Declared in `{_source(cls)}`.", ""]
        fields = [f for f in dataclasses.fields(cls) if f.name != "kind"]
        if fields:
            self.lines += ["| key | type | default | range | meaning |", "| - | - | - | - | - |"]
        texts, ranges = _field_texts(cls), _ranges(cls)
        for field in fields:
            about = texts.get(field.name, "")
            shown = (f"`{field.name}`", self._type(field, path), _default(field))
            cells = (*shown, ranges.get(field.name, ""), about)
            self.lines.append("| " + " | ".join(map(_cell, cells)) + " |")
        self.lines.append("")
        for field in fields:
            self._inner(field, path)

    def _inner(self, field: dataclasses.Field, path: str) -> None:
        nodes = [n for n in _nodes(field.type) if n not in self._anchors]
        inner = f"{path}.{field.name}" if path else field.name
        title = f"[[{inner}]]" if _is_list(field.type) else f"[{inner}]"
        several = len(_nodes(field.type)) > 1
        if several and nodes:
            self._headings.add(_anchor(inner))
            level = "##" if inner.count(".") < 1 else "###"
            kinds = ", ".join(f"`{config.tag(n)}`" for n in _nodes(field.type))
            self.lines += [f"{level} {title} {{ #{_anchor(inner)} }}", ""]
            self.lines += [f"`kind` is one of {kinds}.", ""]
        elif _anchor(inner) in self._linked - self._headings and not nodes:
            node = _nodes(field.type)[0]  # a sibling's, written before it
            kind, keys = config.tag(node), self._anchors[node]
            self.lines += [f"### {title} {{ #{_anchor(inner)} }}", ""]
            self.lines += [f'`kind = "{kind}"`, with the keys of [this table](#{keys}).', ""]
        for node in nodes:
            tag = config.tag(node)
            self.table(node, inner, f'{title} kind = "{tag}"' if several else title)

    def _type(self, field: dataclasses.Field, path: str) -> str:
        nodes = _nodes(field.type)
        if not nodes:
            return _type_name(field.type)
        inner = f"{path}.{field.name}" if path else field.name
        anchor = self._anchors.get(nodes[0]) or _anchor(inner)
        self._linked.add(anchor)
        if len(nodes) > 1:
            anchor = anchor.partition("--")[0]
        return f"[{'list of tables' if _is_list(field.type) else 'table'}](#{anchor})"


def _nodes(hint: Any) -> list[type]:
    return [n for n in config.variants(hint) if hasattr(n, "__pydantic_config__")]


def _variant(title: str) -> bool:
    return " kind = " in title


def _anchor(path: str, tag: str | None = None) -> str:
    return path.replace(".", "-") + (f"--{tag}" if tag else "") or "top-level"


def _about(cls: type) -> str:
    text = " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())
    return re.sub(r":\w+:`~?([\w.]+)`", r"`\1`", text)


def _source(cls: type) -> str:
    return Path(inspect.getfile(cls)).relative_to(ROOT).as_posix()


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("``", "`").replace("|", "\\|")


def _field_texts(cls: type) -> dict[str, str]:
    """The string under each field, base classes included."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        (body,) = [node.body for node in tree.body if isinstance(node, ast.ClassDef)]
        for field, text in itertools.pairwise(body):
            is_text = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and is_text:
                texts[field.target.id] = text.value.value  # type: ignore[union-attr]
    return texts


def _ranges(cls: type) -> dict[str, str]:
    """Key -> what the class requires of it, where its check says so in few words."""
    found: dict[str, str] = {}
    names = {field.name for field in dataclasses.fields(cls)}

    def record(condition: bool, key: str, value: object, expected: str) -> None:
        if key in names and len(expected) <= LONGEST_RANGE:
            found.setdefault(key, expected)

    for fill in (False, True):
        instance = object.__new__(cls)
        for field in dataclasses.fields(cls):
            object.__setattr__(instance, field.name, _example(field, fill))
        # a check of several tables together reads values that this example lacks
        with (
            mock.patch.object(config, "require", record),
            contextlib.suppress(AttributeError, TypeError),
        ):
            getattr(instance, "__post_init__", lambda: None)()
    return found


def _example(field: dataclasses.Field, fill: bool) -> Any:
    """The default; else, and for ``None`` if asked to, some value of the field's type."""
    if field.default is not dataclasses.MISSING and not (fill and field.default is None):
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    kinds = {bool: False, int: 2, float: 0.5, str: "x", Path: Path("x")}
    return next((kinds[kind] for kind in _plain_types(field.type) if kind in kinds), None)


def _plain_types(hint: Any) -> Iterator[Any]:
    if typing.get_origin(hint) is tuple:
        return
    yield hint
    for inner in typing.get_args(hint):
        yield from _plain_types(inner)


def _is_list(hint: Any) -> bool:
    inner = typing.get_args(hint) if _is_union(hint) else (hint,)
    return any(typing.get_origin(option) is tuple for option in inner)


def _is_union(hint: Any) -> bool:
    return isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Annotated:
        return _type_name(typing.get_args(hint)[0])
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(f"`{json.dumps(value)}`" for value in typing.get_args(hint))
    if _is_union(hint):
        given = [inner for inner in typing.get_args(hint) if inner is not type(None)]
        return " or ".join(map(_type_name, given))
    if typing.get_origin(hint) is tuple:
        return "list of " + _type_name(typing.get_args(hint)[0])
    if typing.get_origin(hint) is not None:
        return "table of " + _type_name(typing.get_args(hint)[-1])
    names = {int: "integer", float: "number", str: "string", bool: "boolean", Path: "path"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def _default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "**required**"
    if value is None:
        return "not set"
    if dataclasses.is_dataclass(value):
        tag = getattr(value, "kind", None)
        return f'`kind = "{tag}"`' if tag else "its defaults"
    plain = config.to_plain(value)
    return f"`{json.dumps(plain)}`" if plain not in ([], {}) else "empty"


if __name__ == "__main__":
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(render(), encoding="utf-8")
