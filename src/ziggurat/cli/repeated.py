"""Options that hold a list and are given several times: all their values count, in order.

The parser keeps the last occurrence of an option and drops the others without a word. So the values
of all occurrences are put behind the last one before the arguments are parsed: there the command's
own argument may follow.

>>> def command(run: str, /, key: tuple[str, ...] = (), count: int = 1) -> None: ...
>>> gather(command, ["--key", "a", "--count", "2", "--key=b", "runs/x"])
['--count', '2', '--key', 'a', 'b', 'runs/x']
"""

import functools
import inspect
import re
import typing
from collections.abc import Callable, Sequence
from typing import Any

_NUMBER = re.compile(r"-\.?\d")
_MARK = "\x00"
"""Put before a value that begins with a hyphen, which the parser would take for an option; no
argument of a process can hold it."""


def list_options(function: Callable[..., Any]) -> dict[str, str]:
    """Parameters of a command that hold any number of values, by their flag."""
    found: dict[str, str] = {}
    hints = typing.get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        hint, shown = hints.get(name), name
        for extra in getattr(hint, "__metadata__", ()):  # Annotated[..., tyro.conf.arg(name=...)]
            shown = getattr(extra, "name", None) or shown
        hint = typing.get_args(hint)[0] if hasattr(hint, "__metadata__") else hint
        several = typing.get_origin(hint) is list or typing.get_args(hint)[-1:] == (...,)
        if several and parameter.kind is not parameter.POSITIONAL_ONLY:
            found["--" + shown.replace("_", "-")] = name
    return found


def gather(function: Callable[..., Any], args: Sequence[str]) -> list[str]:
    """The arguments with each list option at most once, holding the values of all occurrences.

    Args:
        function: the command; its signature says which options hold lists.
        args: the command line after the command.
    """
    lists, first = list_options(function), dict[str, list[str]]()
    pieces: list[list[str]] = [[]]
    """Arguments before the first option, then each option with its values."""
    pending = iter(args)
    for arg in pending:
        flag, equals, value = arg.partition("=")
        name = "--" + flag[2:].replace("_", "-")
        if arg == "--":
            pieces.append([arg, *pending])
        elif not arg.startswith("-") or _NUMBER.match(arg):
            pieces[-1].append(arg)
        elif name not in lists:
            pieces.append([arg])
        else:
            piece = first.setdefault(name, [flag])
            pieces.append(piece)
            piece += [_marked(value)] if equals else []
    last = {id(piece): place for place, piece in enumerate(pieces)}
    return [arg for n, piece in enumerate(pieces) if last[id(piece)] == n for arg in piece]


def restoring(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a command so that it gets list options as they were before :func:`gather`."""
    names = list_options(function).values()

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        for name in names:
            if given := kwargs.get(name):
                kwargs[name] = type(given)(_restored(value) for value in given)
        return function(*args, **kwargs)

    return call


def _marked(value: str) -> str:
    return _MARK + value if value.startswith("-") and not _NUMBER.match(value) else value


def _restored(value: Any) -> Any:
    text = str(value)
    return type(value)(text.removeprefix(_MARK)) if text.startswith(_MARK) else value
