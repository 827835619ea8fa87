"""Documentation pages as programs: files are written, commands run, and their output compared.

- A ``toml`` or ``python`` block that starts with ``# NAME`` is a file; ``# cell`` runs at once, in
  one namespace for the page, and a ``text`` block after it is what it printed.
- In a ``console`` block the lines after ``$ COMMAND`` are its output, with ``...`` for what varies.
  Commands are ``ziggurat ...``, ``python FILE`` and ``curl ...``; ``ziggurat serve ... &`` serves
  until the page ends and must then leave with exit code 0.
- Ports 8000 and 8001 stand for free ones.
"""

import contextlib
import doctest
import http.client
import io
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import jax

from tests.free_port import free_port
from ziggurat.cli.main import main

BLOCK = re.compile(r"```(toml|python|console|text)\n(.*?)```", re.DOTALL)
_CHECKER = doctest.OutputChecker()
_OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def run_page(text: str) -> int:
    """Run a page in the current directory; returns how many outputs were compared."""
    for port in ("8000", "8001"):
        text = text.replace(port, str(free_port()))
    names: dict[str, object] = {"__name__": "notebook"}
    compared, printed = 0, None
    with contextlib.ExitStack() as servers:
        # a reader's own code runs under JAX's own promotion
        servers.enter_context(jax.numpy_dtype_promotion("standard"))
        servers.enter_context(jax.numpy_rank_promotion("allow"))
        for kind, block in BLOCK.findall(text):
            if kind == "text" and printed is not None:
                _compare("cell", block, printed)
                compared += 1
            printed = None
            if kind == "python" and block.startswith("# cell"):
                printed = _printed_by(
                    lambda block=block: exec(compile(block, "cell", "exec"), names)
                )
            elif kind == "console":
                compared += _run_console(block, servers)
            elif block.startswith("# ") and kind in ("toml", "python"):
                Path(block.split()[1]).write_text(block, encoding="utf-8")
    return compared


def _run_console(block: str, servers: contextlib.ExitStack) -> int:
    compared = 0
    for command in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        line, _, expected = command.partition("\n")
        words = shlex.split(line)
        while "=" in words[0]:  # the tests have set these variables already
            name, _, value = words.pop(0).partition("=")
            assert value in os.environ[name], line
        if words[-1] == "&":
            servers.enter_context(_serving(words[:-1]))
            continue
        _compare(line, expected, _printed_by(lambda words=words: _run(words)))
        compared += 1
    return compared


def _run(words: list[str]) -> None:
    program, *args = words
    if program == "python":
        with warnings.catch_warnings():  # a page's reader sees warnings of libraries as they are
            warnings.simplefilter("default")
            runpy.run_path(args[0], run_name="__main__")
    elif program == "curl":
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        print(done.stdout)
    else:
        assert program == "ziggurat"
        assert main(args) == 0


def _printed_by(action) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        action()
    return out.getvalue()


def _compare(line: str, expected: str, shown: str) -> None:
    if "SHOW_PAGES" in os.environ:
        print(f"$ {line}\n{shown}", file=sys.stderr)
    # a command that prints nothing is shown without a line, or with dots
    matches = _CHECKER.check_output(expected or "\n", shown or "\n", _OPTIONS)
    assert matches, f"{line}\nexpected:\n{expected}\nprinted:\n{shown}"


@contextlib.contextmanager
def _serving(words: list[str]) -> Iterator[None]:
    """A server in a process of its own, ready when the block begins."""
    assert words[:2] == ["ziggurat", "serve"]
    command = [str(Path(sys.executable).parent / "ziggurat"), *words[1:]]
    port = int(words[words.index("--port") + 1])
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        while not _ready(port):
            assert process.poll() is None, process.stdout and process.stdout.read()
            time.sleep(0.2)
        yield
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0, said
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def _ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
