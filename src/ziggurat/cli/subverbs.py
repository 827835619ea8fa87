"""Verbs that have verbs of their own: ``ziggurat data stats``, ``ziggurat kernels list``."""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ziggurat.cli import console
from ziggurat.core.errors import ConfigError, did_you_mean


class Subverb(NamedTuple):
    """One of them."""

    function: Callable[..., int | None] | str
    """Function that runs the subcommand, or the name of a module of this package that has it.

    The module is imported only when the subcommand runs; its function has the subcommand's name.
    """
    summary: str
    example: str


def dispatch(
    verb: str,
    subverbs: Mapping[str, Subverb],
    args: list[str],
    about: str,
    form: str,
    note: str = "",
) -> int:
    """Run one of a verb's own verbs, or print their table.

    Args:
        verb: the verb.
        subverbs: its verbs by name.
        args: what follows the verb on the command line.
        about: what it is for, a sentence or two of its help.
        form: what follows the name of a subverb, such as ``RUN [OPTIONS]``.
        note: more for the help, below the table.

    Raises:
        ConfigError: there is no such subverb.
    """
    if not args or args[0] in ("-h", "--help"):
        sys.stdout.write(_help(verb, subverbs, about, form, note))
        raise SystemExit(0)
    name, *rest = args
    if name not in subverbs:
        raise ConfigError(
            verb,
            found=repr(name),
            expected="one of " + ", ".join(subverbs),
            fix=did_you_mean(name, subverbs) or f"see ziggurat {verb} --help",
        )
    chosen, _, example = subverbs[name]
    function: Callable[..., int | None]
    if isinstance(chosen, str):
        function = getattr(importlib.import_module(f"ziggurat.cli.{chosen}"), name)
    else:
        function = chosen
    return console.run(function, rest, f"ziggurat {verb} {name}", example)


def _help(verb: str, subverbs: Mapping[str, Subverb], about: str, form: str, note: str) -> str:
    width = max(map(len, subverbs))
    table = "\n".join(f"  {name:<{width}}  {one.summary}" for name, one in subverbs.items())
    example = next(iter(subverbs.values())).example
    below = f"\n{note}\n" if note else ""
    return f"""\
usage: ziggurat {verb} COMMAND {form}

{about}

commands:
{table}
{below}
example:
  {example}
"""
