"""Typed configuration: TOML to frozen dataclasses, all errors at once, with provenance.

A configuration class is declared with :func:`node`; a string under a field is its help and unit.
:func:`load` reads a TOML file, merges dotted overrides (written as TOML values), validates the
whole tree at once and remembers where every value came from.

>>> @node
... class Optimizer:
...     lr: float = 1e-3
...     '''Peak learning rate.'''
>>> @node
... class Run:
...     steps: int
...     optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
>>> run = parse(Run, "steps = 10", overrides=["optimizer.lr=3e-4"])
>>> run.value.optimizer.lr, run.provenance["optimizer.lr"], run.provenance["steps"]
(0.0003, 'command line', '<text>')
>>> parse(Run, "step = 10")
Traceback (most recent call last):
ziggurat.core.errors.ConfigError: <text>: step: unknown key, did you mean steps?; steps: missing
"""

import dataclasses
import functools
import json
import tomllib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, dataclass_transform

from ziggurat.core.errors import ConfigError, ZigguratError, did_you_mean
from ziggurat.core.json_types import Json, JsonMapping, JsonObject
from ziggurat.core.kinds import Kinds

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def node(cls: type[T]) -> type[T]:
    """Declare a configuration class: a frozen, keyword-only dataclass that refuses unknown keys."""
    made = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    made.__pydantic_config__ = {  # type: ignore[attr-defined]
        "extra": "forbid",
        "strict": True,
        "use_attribute_docstrings": False,
    }
    return made


def require(condition: bool, key: str, found: object, expected: str) -> None:
    """Check one rule of a node in ``__post_init__``; the loader reports it with the full path."""
    if not condition:
        raise ValueError(f"{key}: found {found!r}, expected {expected}")


@dataclasses.dataclass(frozen=True)
class Resolved(Generic[T]):
    """A loaded configuration and the source of each of its values."""

    value: T
    provenance: dict[str, str]
    """Dotted key -> ``default``, ``command line``, or the name of the file it came from."""

    def table(self) -> list[tuple[str, str, str]]:
        """Rows of (key, value, source) for the whole tree, in declaration order."""
        return [
            (key, _as_toml_value(value), self.provenance.get(key, "default"))
            for key, value in _leaves(to_plain(self.value))
        ]


def kind_or(default: str) -> Callable[[Any], str]:
    """For ``pydantic.Discriminator``: a union of nodes is told apart by ``kind``, and a table
    without one is of kind ``default``. Every member then needs its ``pydantic.Tag``."""

    def kind(value: object) -> str:
        given = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
        return default if given is None else str(given)

    return kind


def load(cls: type[T], path: Path, overrides: Sequence[str] = ()) -> Resolved[T]:
    """Read a TOML file into ``cls``; see :func:`parse`.

    Raises:
        ConfigError: the file is missing or not TOML, or any key is unknown, missing or wrong; the
            text lists every such error with its dotted path.
    """
    return parse(cls, read_text(path), overrides, source=str(path))


def read_text(path: Path) -> str:
    """The text of a configuration file.

    Raises:
        ConfigError: the file is missing or not readable as UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"run file {path}", found="no such file", expected="a TOML file", fix="check the path"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"run file {path}", found=error, expected="a readable UTF-8 file"
        ) from None


def parse(
    cls: type[T], text: str, overrides: Sequence[str] = (), source: str = "<text>"
) -> Resolved[T]:
    """Read TOML text and dotted overrides (``"optimizer.lr=3e-4"``) into ``cls``."""
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            source, found=error, expected="valid TOML", fix="correct that line"
        ) from None
    return resolve(cls, tree, overrides, source)


def resolve(
    cls: type[T], tree: JsonObject, overrides: Sequence[str] = (), source: str = "Python"
) -> Resolved[T]:
    """Merge dotted overrides into a nested dict, which changes, and validate it into ``cls``.

    >>> @node
    ... class Run:
    ...     steps: int
    >>> resolve(Run, {"steps": 10}).provenance
    {'steps': 'Python'}
    """
    provenance = {key: source for key, _ in _leaves(tree)}
    for override in overrides:
        key, value = _split_override(override)
        _set(tree, key, value)
        stale = [known for known in provenance if known == key or known.startswith(key + ".")]
        for known in stale:
            del provenance[known]
        provenance |= {name: "command line" for name, _ in _leaves(value, key)}
    return Resolved(from_plain(cls, tree, source), provenance)


def from_plain(cls: type[T], tree: JsonMapping, source: str = "configuration") -> T:
    """Validate a nested mapping into ``cls``, reporting every error together."""
    from pydantic import ValidationError

    try:
        return _validator(cls).validate_json(json.dumps(tree, default=str))
    except ValidationError as error:
        lines = sorted({_explain(cls, entry) for entry in error.errors()})
        raise ConfigError(f"{source}: {'; '.join(lines)}") from None


@functools.cache
def _validator(cls: type) -> Any:
    """Pydantic's validator of a class. The one of a run file takes 0.1 s to make."""
    from pydantic import TypeAdapter

    return TypeAdapter(cls)


def to_plain(value: object) -> Json:
    """A configuration as nested dicts, lists and scalars; ``None`` entries are left out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
        return {name: to_plain(entry) for name, entry in pairs if entry is not None}
    if isinstance(value, Mapping):
        return {str(name): to_plain(entry) for name, entry in value.items() if entry is not None}
    if isinstance(value, (tuple, list)):
        return [to_plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value


def to_toml(value: object) -> str:
    """A configuration as TOML text that :func:`parse` reads back to an equal value."""
    import tomli_w

    return tomli_w.dumps(to_plain(value))


def _split_override(override: str) -> tuple[str, Json]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(
            "override", found=override, expected="KEY=VALUE", fix="e.g. train.steps=100"
        )
    try:
        return key.strip(), tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), text.strip()


def _set(tree: JsonObject, key: str, value: Json) -> None:
    *parents, last = key.split(".")
    here: dict | list = tree
    for depth, parent in enumerate(parents):
        if isinstance(here, list):
            entry = here[_index(here, parent, key)]
        else:
            entry = here.setdefault(parent, {})
        if not isinstance(entry, (dict, list)):
            where = ".".join(parents[: depth + 1])
            raise ConfigError(f"override {key}", found=f"{where} is a value", expected="a table")
        here = entry
    if isinstance(here, list):
        here[_index(here, last, key)] = value
    else:
        here[last] = value


def _index(entries: list, part: str, key: str) -> int:
    if not part.isdigit() or int(part) >= len(entries):
        raise ConfigError(
            f"override {key}", found=f"index {part!r}", expected=f"0 to {len(entries) - 1}"
        )
    return int(part)


def _leaves(tree: Json, prefix: str = "") -> list[tuple[str, Json]]:
    if isinstance(tree, dict) and tree:
        pairs = tree.items()
    elif isinstance(tree, list) and any(isinstance(entry, dict) for entry in tree):
        pairs = ((str(index), entry) for index, entry in enumerate(tree))
    else:
        return [(prefix, tree)] if prefix else []
    dotted = prefix + "." if prefix else ""
    return [leaf for name, entry in pairs for leaf in _leaves(entry, dotted + str(name))]


def _as_toml_value(value: Json) -> str:
    import tomli_w

    return tomli_w.dumps({"v": value}).removeprefix("v = ").strip()


def _explain(cls: type, entry: Any) -> str:
    """One pydantic error as ``dotted.path: what is wrong``."""
    path = [str(part) for part in entry["loc"]]
    kind, given = entry["type"], entry["input"]
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        shown, names = _fields_at(cls, path[:-1])
        hint = _meant(cls, path[-1], names)
        advice = hint or (f"known keys: {', '.join(names)}" if names else "")
        return f"{'.'.join([*shown, path[-1]])}: unknown key{', ' + advice if advice else ''}"
    dotted = ".".join(_fields_at(cls, path)[0])
    dotted = dotted or "run file"
    if kind in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{dotted}: missing"
    if kind == "union_tag_not_found":
        return f"{dotted}: missing key kind"
    if kind == "union_tag_invalid":
        known = [tag.strip("' ") for tag in entry["ctx"]["expected_tags"].split(",")]
        hint = did_you_mean(str(entry["ctx"]["tag"]), known)
        return (
            f"{dotted}.kind: found {entry['ctx']['tag']!r}, expected one of {', '.join(known)}"
            + (f", {hint}" if hint else "")
        )
    if kind == "value_error":
        cause = entry.get("ctx", {}).get("error")
        return f"{dotted}.{cause}" if not isinstance(cause, ZigguratError) else str(cause)
    expected = entry["msg"].removeprefix("Input should be ")
    return f"{dotted}: found {given!r}, expected {expected}"


def keys_of(cls: type) -> list[str]:
    """Dotted keys of a whole tree, those of every variant; entries of lists are left out.

    >>> @node
    ... class Leaf:
    ...     lr: float = 1.0
    >>> @node
    ... class Tree:
    ...     steps: int = 1
    ...     leaf: Leaf = Leaf()
    >>> keys_of(Tree)
    ['steps', 'leaf', 'leaf.lr']
    """
    found: dict[str, None] = {}

    def walk(hint: object, prefix: str, seen: tuple[Any, ...]) -> None:
        for option in variants(hint):
            if option in seen or not hasattr(option, "__pydantic_config__"):
                continue
            for field in dataclasses.fields(option):
                found[prefix + field.name] = None
                if typing.get_origin(field.type) is not tuple:
                    walk(field.type, f"{prefix}{field.name}.", (*seen, option))

    walk(cls, "", ())
    return list(found)


def _meant(cls: type, name: str, siblings: Sequence[str]) -> str:
    """The key that an unknown one was meant for: a key of that name elsewhere in the tree, what
    other programs call so (``cls.SYNONYMS``), or the nearest spelling."""
    plain = name.replace("-", "_").lower()
    synonyms = getattr(cls, "SYNONYMS", {})
    known = synonyms.get(plain)
    if plain in siblings:
        return f"did you mean {plain}?"
    places = [known] if known else [k for k in keys_of(cls) if k.rpartition(".")[2] == plain]
    if places:
        return f"did you mean {' or '.join(places[:3])}?"
    last = {key.rpartition(".")[2]: key for key in reversed(keys_of(cls))} | dict(synonyms)
    return did_you_mean(name, siblings) or did_you_mean(plain, last, last)


def _fields_at(cls: type, path: Sequence[str]) -> tuple[list[str], list[str]]:
    """Walk ``path`` through nested nodes; returns the path without union tags, and the field names
    known at its end."""
    shown: list[str] = []
    here: Any = cls
    for part in path:
        kinds = _kinds(here)
        if kinds is not None:
            here = kinds.node_of(part)
            continue
        options = variants(here)
        tagged = [o for o in options if tag(o) == part]
        if tagged and len(options) > 1:
            here = tagged[0]
            continue
        shown.append(part)
        if part.isdigit() and not any(dataclasses.is_dataclass(o) for o in [here]):
            continue  # an index into a list: the element type is found by _nodes
        hints: dict[str, Any] = {}
        for option in options:
            hints |= {field.name: field.type for field in dataclasses.fields(option)}
        here = hints.get(part)
    names = [f.name for option in variants(here) for f in dataclasses.fields(option)]
    return shown, list(dict.fromkeys(names))


def variants(hint: object) -> list[Any]:
    """The node classes inside a type hint (unions, optionals, tuples, Annotated, open kinds)."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return [hint]
    if (kinds := _kinds(hint)) is not None:
        return kinds.nodes()
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is not None:
        return [inner for argument in typing.get_args(hint) for inner in variants(argument)]
    return []


def _kinds(hint: object) -> Kinds | None:
    """The open kinds that a type hint is annotated with."""
    return next((one for one in getattr(hint, "__metadata__", ()) if isinstance(one, Kinds)), None)


def tag(cls: Any) -> str | None:
    """The kind of a node class; None for one without variants."""
    for field in dataclasses.fields(cls):
        if field.name == "kind":
            return typing.get_args(field.type)[0]
    return None
