"""The ``ziggurat`` command: a table of commands, each imported only when it is called.

``ziggurat --help`` is answered from the table with the standard library alone. A command is one
module of this package with a function ``main(args) -> int``; its name here is the module's name,
with a trailing underscore where that would be a Python keyword (``import`` lives in
``import_.py``).
"""

import difflib
import importlib
import keyword
import os
import signal
import sys
from collections.abc import Sequence

from ziggurat import __version__
from ziggurat.core import extras
from ziggurat.core.errors import ZigguratError
from ziggurat.core.host_memory import restart_with_huge_pages

COMMANDS: dict[str, str] = {
    "train": "train a run file, or resume an interrupted run",
    "cluster": "train over several hosts from one process, whichever of them are there",
    "plan": "say whether a run fits a TPU topology, how fast and at what cost, without a TPU",
    "data": "prepare a run's data and look into it: stats, sample, decode, trace",
    "import": "read a Hugging Face directory, a GGUF file or other weights into a checkpoint",
    "export": "write a model as transformers reads it, or its weights as PyTorch does",
    "eval": "say how often a model solves problems it has not seen, and its loss on text",
    "models": "list model families, and what one model needs: parameters, FLOPs, memory",
    "quantize": "make a model smaller by rules, and say what it costs",
    "checkpoints": "list what a run has saved, and verify it",
    "kernels": "list, time, tune and build the implementations of operations",
    "profile": "say where a run's time went, and what to do about it",
    "generate": "continue a prompt",
    "transcribe": "write what is said in an audio",
    "sample": "draw images of classes from a diffusion model",
    "chat": "talk to a model in the terminal",
    "bundle": "write a JAX function and its weights as one hermetic, verifiable bundle",
    "serve": "serve a model as OpenAI's API does, and bundles as KServe v2",
    "demo": "all of it in a few minutes: train, kill, resume, export, serve",
    "tour": "one command of every function, and a page that links all results",
    "doctor": "say what this machine has, what is missing and how to install it",
}
"""Command -> what it does, in the order of the help text. A new one is a module and a line here."""

LONG = frozenset({"train", "cluster", "eval", "serve", "demo", "tour"})
"""Commands that compute for long enough to be worth a fresh start with huge pages."""

USER_ERROR = 2
INTERRUPTED = 130
BROKEN_PIPE = 141
TERMINATED = 143


class Terminated(BaseException):
    """Exception for SIGTERM, so that a command removes half-done work."""


def main(args: Sequence[str] | None = None) -> int:
    """Run one command and return the process's exit code.

    0 is success, 2 an error the user can mend (printed as one line on standard error), 130 and 143
    an end by SIGINT and SIGTERM before the work was done. What the operating system refuses about
    files is such an error, whichever command met it. Any other exception is a defect of Ziggurat
    and keeps its traceback.
    """
    rest = list(sys.argv[1:] if args is None else args)
    debug, verbose = _take(rest, "--debug"), _take(rest, "--verbose")
    if not rest or rest[0] in ("-h", "--help", "help"):
        sys.stdout.write(help_text())
        return 0
    if rest[0] == "--version":
        sys.stdout.write(f"ziggurat {__version__}\n")
        return 0
    if args is None and rest[0] in LONG:
        restart_with_huge_pages()
    if args is None:
        signal.signal(signal.SIGTERM, _terminate)
    try:
        return _run(rest[0], rest[1:], verbose or debug)
    except (KeyboardInterrupt, Terminated) as stop:
        if debug:
            raise
        return TERMINATED if isinstance(stop, Terminated) else INTERRUPTED
    except BrokenPipeError:  # the reader, say `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (ZigguratError, OSError, ModuleNotFoundError) as error:
        line = _explained(error, rest[0])
        if debug or line is None:
            raise
        return _fail(line)


def _explained(error: ZigguratError | OSError | ModuleNotFoundError, command: str) -> str | None:
    """The one line for an error; ``None`` for a module that is missing and belongs to no extra."""
    if isinstance(error, OSError):
        from ziggurat.core.storage import storage_error

        return str(storage_error(f"ziggurat {command}", error))
    if isinstance(error, ModuleNotFoundError):
        lacking = extras.missing(error)
        return None if lacking is None else str(lacking)
    return str(error)


def help_text() -> str:
    """The text of ``ziggurat --help``."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(
        f"  {command:<{width}}  {summary}" for command, summary in COMMANDS.items()
    )
    return f"""\
usage: ziggurat COMMAND [OPTIONS]

The whole JAX AI stack as one product: from raw text to a served model.

commands:
{commands}

options, anywhere on the line:
  --debug    show the traceback of an error
  --verbose  log more
  --version  print the version (alone)
  --help     this text, or after a command its options and an example

examples:
  ziggurat doctor
  ziggurat train recipes/tiny-python.toml --train.steps=200
"""


def module_name(command: str) -> str:
    """The module that holds a command.

    >>> module_name("doctor"), module_name("import")
    ('ziggurat.cli.doctor', 'ziggurat.cli.import_')
    """
    return f"ziggurat.cli.{command}{'_' if keyword.iskeyword(command) else ''}"


def _run(command: str, args: list[str], verbose: bool) -> int:
    if command not in COMMANDS:
        # Prefixes ("doc") are as likely a slip as misspellings ("docter").
        near = [name for name in COMMANDS if name.startswith(command)] or difflib.get_close_matches(
            command, COMMANDS, n=1
        )
        hint = f"did you mean {near[0]}?" if near else "see ziggurat --help"
        return _fail(f"command: found {command!r}; expected one of {', '.join(COMMANDS)}; {hint}")
    from ziggurat.cli import console

    console.set_up_logging(verbose)
    choose_platform()
    return importlib.import_module(module_name(command)).main(args)


def choose_platform() -> None:
    """Keep JAX from looking for a TPU that is not there.

    With libtpu installed (for planning) and no TPU in the machine, JAX would try it first and print
    alarming lines. ``JAX_PLATFORMS`` set by the user is left alone.
    """
    import glob
    import importlib.util

    here = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    if here or "JAX_PLATFORMS" in os.environ or not importlib.util.find_spec("libtpu"):
        return
    cuda = any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13))
    os.environ["JAX_PLATFORMS"] = "cuda,cpu" if cuda else "cpu"


def _terminate(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one does not wait for cleaning up
    raise Terminated


def _take(args: list[str], flag: str) -> bool:
    """Remove ``flag`` wherever it stands before a ``--``; whether it was there."""
    end = args.index("--") if "--" in args else len(args)
    kept = [arg for arg in args[:end] if arg != flag]
    found = len(kept) < end
    args[:end] = kept
    return found


def _fail(line: str) -> int:
    from ziggurat.cli import console

    console.print_error(line)
    return USER_ERROR


if __name__ == "__main__":
    sys.exit(main())
