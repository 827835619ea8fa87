"""Shared by every command: options from a function's signature, the console, errors and logging.

A command's options are the parameters of one function; types, defaults and help come from its
signature and docstring. A parameter before ``/`` is positional. If the function has a parameter
``overrides``, the command also takes changes to its run file, ``--train.steps=100`` or
``--set train.steps=100``, and hands them over as ``"key=value"`` strings for
:func:`ziggurat.core.config.load`.

>>> def train(run: str, /, dry_run: bool = False, overrides: tuple[str, ...] = ()) -> int:
...     '''Train a model.
...
...     Args:
...         run: run file.
...         dry_run: stop before the first step.
...     '''
...     output().print(run, dry_run, *overrides)
...     return 0
>>> run(train, ["a.toml", "--dry-run", "--train.steps=9"], "ziggurat train", "train a.toml")
a.toml True train.steps=9
0
"""

import contextlib
import functools
import inspect
import io
import logging
import re
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from ziggurat.cli import options, repeated
from ziggurat.core.errors import ConfigError

_log = logging.getLogger(__name__)
_DOTTED = re.compile(r"--(?P<key>\w[\w-]*(?:\.[\w-]+)+)(?:=(?P<value>.*))?", re.DOTALL)

_PLAIN = re.compile(r"--(?P<key>(?!set\b)\w[\w-]*)(?:=(?P<value>.*))?", re.DOTALL)

_ABOUT = "(about)"
"""Stands for the description while the parser lays the help out: it would join its lines."""
_EMPTY_ROW = re.compile(r"^│ +│\n", re.MULTILINE)


def run(function: Callable[..., int | None], args: Sequence[str], prog: str, example: str) -> int:
    """Parse ``args`` by the signature of ``function`` and call it; returns its exit code.

    Args:
        function: the command; returns an exit code or ``None`` for 0.
        args: the command line after the command.
        prog: what ``--help`` calls the program, e.g. ``ziggurat train``.
        example: one or more command lines that ``--help`` shows at its end.

    Raises:
        ConfigError: an override has no value.
        SystemExit: after ``--help`` (0) or an option that does not parse (2).
    """
    import tyro

    call: Callable[..., int | None] = repeated.restoring(function)
    closing = f"\nexample:\n  {example}"
    if "overrides" in inspect.signature(function).parameters:
        args, overrides = split_overrides(args, options.flags_of(function))
        call = _bind_overrides(call, tuple(overrides))
        closing = "\nany key of the run file: --train.steps=100 or --set seed=3\n" + closing
    options.check_known(function, args, prog)
    shown, given = options.presented(call), repeated.gather(call, args)
    settings = {"prog": prog, "description": _ABOUT, "config": (tyro.conf.FlagCreatePairsOff,)}
    if not _asks_for_help(args):
        return tyro.cli(shown, args=given, **settings) or 0
    with contextlib.redirect_stdout(io.StringIO()) as page, contextlib.suppress(SystemExit):
        tyro.cli(shown, args=["--help"], **settings)
    text = page.getvalue().replace(_ABOUT, options.description(function))
    sys.stdout.write(_EMPTY_ROW.sub("", text) + closing + "\n")
    raise SystemExit(0)


def split_overrides(args: Sequence[str], own: Collection[str] = ()) -> tuple[list[str], list[str]]:
    """Separate overrides of a run file from a command's own options.

    Args:
        args: the command line after the command.
        own: its options. Given these, ``--KEY=VALUE`` without a dot is an override too.

    >>> split_overrides(["a.toml", "--name=x", "--json"], own={"--json"})
    (['a.toml', '--json'], ['name=x'])
    >>> split_overrides(["a.toml", "--train.steps=9", "--set", "seed=3", "--json"])
    (['a.toml', '--json'], ['train.steps=9', 'seed=3'])
    """
    rest: list[str] = []
    overrides: list[str] = []
    pending = iter(args)
    for arg in pending:
        dotted = _DOTTED.fullmatch(arg)
        if own and dotted is None and arg.partition("=")[0].replace("_", "-") not in own:
            options.check_near(arg, own)
            dotted = _PLAIN.fullmatch(arg)
        if arg == "--":
            rest += [arg, *pending]
        elif dotted:
            overrides.append(_override(arg, dotted["key"].replace("-", "_"), dotted["value"]))
        elif arg == "--set" or arg.startswith("--set="):
            given = next(pending, "") if arg == "--set" else arg.removeprefix("--set=")
            key, equals, value = given.partition("=")
            overrides.append(_override(f"--set {given}".strip(), key, value if equals else None))
        else:
            rest.append(arg)
    return rest, overrides


def _asks_for_help(args: Sequence[str]) -> bool:
    own = args[: args.index("--")] if "--" in args else args
    return "--help" in own or "-h" in own


def output() -> Console:
    """The console for results, on standard output; wide and plain when that is not a terminal."""
    return Console(width=None if sys.stdout.isatty() else 200)


@contextlib.contextmanager
def progress(what: str, every_s: float = 10.0) -> Iterator[Callable[[str, int, int], None]]:
    """Progress bar on a terminal, else a line in the log now and then.

    Args:
        what: is being done, such as ``compiling``.
        every_s: seconds between lines in the log.

    Yields:
        A function to be told what comes next, how many are done, and how many there are.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    out = Console(stderr=True)
    columns = (BarColumn(bar_width=16), MofNCompleteColumn(), TimeElapsedColumn())
    text = TextColumn("{task.description}", markup=False)
    bar = Progress(text, *columns, console=out, transient=True, disable=not out.is_terminal)
    told_s = time.monotonic()
    with bar:
        task = bar.add_task(what, total=None)

        def tell(name: str, done: int, total: int) -> None:
            nonlocal told_s
            bar.update(task, description=f"{what} {name}", completed=done, total=total)
            if not out.is_terminal and time.monotonic() - told_s > every_s:
                told_s = time.monotonic()
                _log.info("%s %s (%d of %d)", what, name, done + 1, total)

        yield tell


def print_error(line: str) -> None:
    """Print ``error: line`` on standard error, unwrapped; red on a terminal."""
    text = Text.assemble(("error: ", "bold red"), (line, "red"))
    Console(stderr=True, highlight=False).print(text, soft_wrap=True)


def set_up_logging(verbose: bool) -> None:
    """Send the log to standard error: ours from INFO, others' from WARNING (verbose: a step more).

    On a terminal through rich, else as plain lines that no width wraps.
    """
    handler: logging.Handler
    if sys.stderr.isatty():
        from rich.logging import RichHandler

        handler = RichHandler(console=Console(stderr=True), show_path=False, log_time_format="%X")
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, handlers=[handler], force=True
    )
    logging.getLogger("ziggurat").setLevel(logging.DEBUG if verbose else logging.INFO)


def _override(shown: str, key: str, value: str | None) -> str:
    if not key or value is None:
        raise ConfigError(
            "override",
            found=shown,
            expected="--KEY=VALUE for a key of the run file, or --set KEY=VALUE",
            fix="e.g. --train.steps=100",
        )
    return f"{key}={value}"


def _bind_overrides(function: Callable[..., Any], overrides: tuple[str, ...]) -> Callable[..., Any]:
    """``function`` with ``overrides`` given and gone from the signature that tyro reads."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, overrides=overrides, **kwargs)

    signature = inspect.signature(function)
    kept = [entry for name, entry in signature.parameters.items() if name != "overrides"]
    call.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    return call
