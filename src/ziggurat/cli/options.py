"""How a command's parameters look in its help, and what is said of an option that it has not.

Types, defaults and help come from the function: a positional argument is called by its own name,
a default of nothing is left to the help text, sentences are wrapped where the terminal ends, and a
switch that is on by default is described by what turning it off does.
"""

import dataclasses
import difflib
import functools
import importlib
import inspect
import re
import shutil
import textwrap
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from ziggurat.core import config
from ziggurat.core.errors import ConfigError, did_you_mean
from ziggurat.core.registry import Registry

_SHOWN = {int: "INT", float: "NUMBER", str: "TEXT", Path: "PATH"}
_NUMBER = re.compile(r"-\.?\d")
_WIDEST = 100
_SOURCE = "command line"


@dataclasses.dataclass(frozen=True)
class Names:
    """Mark of a text option whose values are the names of a registry, and some more.

    >>> Names("ziggurat.optim.config:OPTIMIZERS", "none").known()[:3]
    ['none', 'adafactor', 'adamw']

    Args:
        registry: its home, as ``module:NAME``; imported when help is shown or a value is given.
        others: values besides its names.
    """

    registry: str
    others: tuple[str, ...]

    def __init__(self, registry: str, *others: str):
        object.__setattr__(self, "registry", registry)
        object.__setattr__(self, "others", others)

    def table(self) -> Registry[Any]:
        """The registry."""
        module, _, name = self.registry.partition(":")
        return getattr(importlib.import_module(module), name)

    def known(self) -> list[str]:
        """All values, the registry's in alphabetic order."""
        return [*self.others, *self.table()]


def check_name(options: Any, name: str) -> None:
    """Refuse an option that is no name of the registry in its :class:`Names`.

    Raises:
        ConfigError: with the names that there are; another error if the registry has its own.
    """
    hint = typing.get_type_hints(type(options), include_extras=True)[name]
    (mark,) = (one for one in hint.__metadata__ if isinstance(one, Names))
    value = getattr(options, name)
    if value not in mark.others:
        mark.table()[value]


def presented(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adapt a function for the command-line parser: names of arguments, help in whole sentences."""
    import docstring_parser
    import tyro

    parsed = docstring_parser.parse(inspect.getdoc(function) or "")
    help_of = {one.arg_name: " ".join((one.description or "").split()) for one in parsed.params}
    hints = typing.get_type_hints(function, include_extras=True)
    signature, parameters = inspect.signature(function), []
    for name, parameter in signature.parameters.items():
        text, default = help_of.get(name, ""), parameter.default
        if default is True:
            text = f"do not {text}"
        settings: dict[str, Any] = {"help": text}
        if parameter.kind is parameter.POSITIONAL_ONLY and not _choices(hints[name]):
            settings["metavar"] = name.upper()
        elif shown := _shown(hints[name]):
            settings["metavar"] = shown
        if default in (None, (), "") or isinstance(default, bool):
            settings["help_behavior_hint"] = ""
        hint = Annotated[hints[name], tyro.conf.arg(**settings)]
        parameters.append(parameter.replace(annotation=hint))

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {one.name: one.annotation for one in parameters}
    call.__doc__ = None
    del call.__wrapped__  # the parser would read the help from there
    return call


def spread(cls: type, parameter: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Decorator that turns one parameter, a config node, into an option for each of its fields.

    Names, types, defaults and help are the node's own, so that an option never differs from it.

    >>> from ziggurat.core import config
    >>> @config.node
    ... class Limits:
    ...     most: int = 3
    ...     '''Most at once.'''
    >>> @spread(Limits, "limits")
    ... def command(model: str, *, limits: Limits) -> int:
    ...     '''Serve.
    ...
    ...     Args:
    ...         model: which.
    ...         limits: spread.
    ...     '''
    ...     return limits.most
    >>> command("a", most=5), list(inspect.signature(command).parameters)
    (5, ['model', 'most'])

    Args:
        cls: the node; every field has a default.
        parameter: keyword parameter of the command; its line in ``Args`` is replaced.
    """
    import docstring_parser

    known = docstring_parser.parse_from_object(cls).params
    texts = {one.arg_name: one.description or "" for one in known}
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {one.name: one for one in dataclasses.fields(cls)}

    def decorate(function: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(function)
        def call(*args: Any, **given: Any) -> int:
            values = {name: given.pop(name) for name in fields if name in given}
            return function(*args, **given, **{parameter: config.from_plain(cls, values, _SOURCE)})

        kept = [p for p in inspect.signature(function).parameters.values() if p.name != parameter]
        spread_out = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=hints[name]
            )
            for name, one in fields.items()
        ]
        signature = inspect.Signature([*kept, *spread_out])
        own = typing.get_type_hints(function, include_extras=True)
        call.__signature__ = signature  # type: ignore[attr-defined]
        call.__annotations__ = {p.name: own.get(p.name, p.annotation) for p in [*kept, *spread_out]}
        lines = [f"    {name}: {_as_help(texts.get(name, ''))}" for name in fields]
        doc = re.sub(rf"(?m)^ *{parameter}: .*$", "\n".join(lines), inspect.getdoc(function) or "")
        call.__doc__ = doc
        del call.__wrapped__
        return call

    return decorate


def _as_help(text: str) -> str:
    """A field's docstring as the help of an option begins: with a small letter."""
    text = " ".join(text.split())
    return text[:1].lower() + text[1:]


def description(function: Callable[..., Any]) -> str:
    """The docstring without its sections, wrapped to the terminal."""
    text = re.split(r"\n(?:Args|Raises|Returns):\n", inspect.getdoc(function) or "")[0]
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    paragraphs = [" ".join(part.split()) for part in text.strip().split("\n\n")]
    return "\n\n".join(
        textwrap.fill(part, width, break_long_words=False, break_on_hyphens=False)
        for part in paragraphs
    )


def check_known(function: Callable[..., Any], args: Sequence[str], prog: str) -> None:
    """Refuse options that the function has no parameter for.

    Raises:
        ConfigError: with the nearest option there is, or all of them.
    """
    flags = flags_of(function)
    for arg in args:
        if arg == "--":
            return
        flag = arg.partition("=")[0].replace("_", "-")
        if not arg.startswith("--") or flag in flags:
            continue
        shown = ", ".join(sorted(flags - {"--help"}))
        raise ConfigError(
            prog,
            found=f"an option {arg.partition('=')[0]}",
            expected=f"one of {shown}" if shown else "no option",
            fix=did_you_mean(flag, flags),
        )


def check_near(arg: str, flags: Iterable[str]) -> None:
    """Refuse an option that is no key of a run file, with the nearest key.

    Raises:
        ConfigError: with the option that was meant, or how a key is given.
    """
    flag, equals, _ = arg.partition("=")
    near = difflib.get_close_matches(flag.replace("_", "-"), list(flags), n=1, cutoff=0.85)
    if not arg.startswith("--") or arg == "--" or flag == "--set" or (equals and not near):
        return
    raise ConfigError(
        f"option {flag}",
        found="no such option",
        expected="one that --help lists, or --KEY=VALUE for a key of the run file",
        fix=f"did you mean {near[0]}?" if near else "",
    )


def flags_of(function: Callable[..., Any]) -> set[str]:
    """The options of a command, as they are written."""
    flags, hints = {"--help"}, typing.get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.POSITIONAL_ONLY or name == "overrides":
            continue
        for extra in getattr(hints[name], "__metadata__", ()):
            name = getattr(extra, "name", None) or name
        dashed = name.replace("_", "-")
        flags.add(f"--no-{dashed}" if parameter.default is True else f"--{dashed}")
    return flags


def key_value(option: str) -> Callable[[str], tuple[str, str]]:
    """A function that splits one ``NAME=VALUE`` of this option.

    >>> key_value("--label")("owner=search")
    ('owner', 'search')
    """

    def split(text: str) -> tuple[str, str]:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ConfigError(option, found=repr(text), expected="NAME=VALUE")
        return name, value

    return split


def is_number(arg: str) -> bool:
    """Whether an argument that begins with a hyphen is a number."""
    return _NUMBER.match(arg) is not None


def _shown(hint: Any) -> str:
    """How a value is written; empty where the parser's own form is right."""
    if typing.get_origin(hint) is Annotated:
        hint, *marks = typing.get_args(hint)
        for names in (mark for mark in marks if isinstance(mark, Names)):
            return "{" + ",".join(names.known()) + "}"
    several = typing.get_args(hint)[-1:] == (...,)
    if several:
        one = _shown(typing.get_args(hint)[0])
        return f"{one} [{one} ...]" if one else ""
    if choices := _choices(hint):
        return "{" + ",".join(map(str, choices)) + "}"
    kinds = [one for one in (typing.get_args(hint) or (hint,)) if one is not type(None)]
    return _SHOWN.get(kinds[0], "") if len(kinds) == 1 else ""


def _choices(hint: Any) -> list[Any]:
    """Values of a ``Literal``, also of one that may be left out."""
    return list(_literals([hint]))


def _literals(hints: Iterable[Any]) -> Iterable[Any]:
    for hint in hints:
        if typing.get_origin(hint) is Literal:
            yield from typing.get_args(hint)
        elif type(None) in typing.get_args(hint):
            yield from _literals(typing.get_args(hint))
