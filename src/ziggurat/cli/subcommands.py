"""Commands that have commands of their own: ``ziggurat data stats``, ``ziggurat kernels list``."""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ziggurat.cli import console
from ziggurat.core.errors import ConfigError, did_you_mean


class Subcommand(NamedTuple):
    """A command's subcommand: function, summary and example."""

    function: Callable[..., int | None] | str
    """Function that runs the subcommand, or the name of a module of this package that has it.

    The module is imported only when the subcommand runs; its function has the subcommand's name.
    """
    summary: str
    example: str


def dispatch(
    command: str,
    subcommands: Mapping[str, Subcommand],
    args: list[str],
    about: str,
    form: str,
    note: str = "",
) -> int:
    """Run one of a command's own commands, or print their table.

    Args:
        command: the command.
        subcommands: its commands by name.
        args: what follows the command on the command line.
        about: what it is for, a sentence or two of its help.
        form: what follows the name of a subcommand, such as ``RUN [OPTIONS]``.
        note: more for the help, below the table.

    Raises:
        ConfigError: there is no such subcommand.
    """
    if not args or args[0] in ("-h", "--help"):
        sys.stdout.write(_help(command, subcommands, about, form, note))
        raise SystemExit(0)
    name, *rest = args
    if name not in subcommands:
        raise ConfigError(
            command,
            found=repr(name),
            expected="one of " + ", ".join(subcommands),
            fix=did_you_mean(name, subcommands) or f"see ziggurat {command} --help",
        )
    chosen, _, example = subcommands[name]
    function: Callable[..., int | None]
    if isinstance(chosen, str):
        function = getattr(importlib.import_module(f"ziggurat.cli.{chosen}"), name)
    else:
        function = chosen
    return console.run(function, rest, f"ziggurat {command} {name}", example)


def _help(
    command: str, subcommands: Mapping[str, Subcommand], about: str, form: str, note: str
) -> str:
    width = max(map(len, subcommands))
    table = "\n".join(f"  {name:<{width}}  {one.summary}" for name, one in subcommands.items())
    example = next(iter(subcommands.values())).example
    below = f"\n{note}\n" if note else ""
    return f"""\
usage: ziggurat {command} COMMAND {form}

{about}

commands:
{table}
{below}
example:
  {example}
"""
