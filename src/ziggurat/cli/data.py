"""``ziggurat data``: prepare a run's data, and look into it; a table of verbs of its own."""

import importlib
import sys
from collections.abc import Callable

from ziggurat.cli import console
from ziggurat.core.errors import ConfigError, did_you_mean

VERBS: dict[str, tuple[str, str, str]] = {
    "prepare": (
        "data_prepare",
        "tokenise all documents once, into a cache that training reads",
        "ziggurat data prepare recipes/tiny-python.toml",
    ),
    "stats": (
        "data_stats",
        "count documents, tokens, duplicates, damage and padding",
        "ziggurat data stats recipes/tiny-python.toml --html data.html",
    ),
    "sample": (
        "data_rows",
        "show rows of a batch as text, and what of it is learned",
        "ziggurat data sample runs/tiny-python --step 20 --rows 2",
    ),
    "decode": (
        "data_rows",
        "show a row of a batch token by token, or what some ids mean",
        "ziggurat data decode runs/tiny-python --step 20 --row 1\n"
        "  ziggurat data decode runs/tiny-python --ids 15,2,7",
    ),
    "trace": (
        "data_trace",
        "which documents a step saw, and which steps saw a document",
        "ziggurat data trace runs/tiny-python --step 20\n"
        "  ziggurat data trace runs/tiny-python --document json/decoder.py",
    ),
}
"""Verb -> module of this package, what it does, example."""


def main(args: list[str]) -> int:
    """Run one verb of ``ziggurat data``."""
    if not args or args[0] in ("-h", "--help"):
        sys.stdout.write(help_text())
        raise SystemExit(0)
    verb, *rest = args
    if verb not in VERBS:
        raise ConfigError(
            "data",
            found=repr(verb),
            expected="one of " + ", ".join(VERBS),
            fix=did_you_mean(verb, VERBS) or "see ziggurat data --help",
        )
    module, _, example = VERBS[verb]
    function: Callable[..., int] = getattr(importlib.import_module(f"ziggurat.cli.{module}"), verb)
    return console.run(function, rest, f"ziggurat data {verb}", example)


def help_text() -> str:
    """The text of ``ziggurat data --help``."""
    width = max(map(len, VERBS))
    lines = "\n".join(f"  {verb:<{width}}  {summary}" for verb, (_, summary, _) in VERBS.items())
    return f"""\
usage: ziggurat data VERB RUN [OPTIONS]

Prepare the data of a run, and look into it. RUN is a run file or a run's directory.

verbs:
{lines}

After a verb, --help shows its options; any key of [data], --data.batch_size=8, can be changed.

example:
  ziggurat data stats recipes/tiny-python.toml
"""
