"""Which commands work in this installation: each one's imports are carried out, here and now.

What a command imports is read from its own module, and from the modules of ``ziggurat.cli`` that
it imports: commands import late, inside functions, so importing the module alone proves nothing.
"""

import ast
import dataclasses
import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ziggurat.cli.main import COMMANDS, module_name
from ziggurat.core import extras

PARTLY: dict[str, tuple[str, str]] = {
    "cluster": ("ray", "--engine ray needs it; --engine subprocess works"),
    "plan": ("libtpu", "compiled plans need it; --analytic works"),
    "tour": ("starlette", "rows that serve need it; the others work"),
}
"""Command -> a module that some of its options need, and what works without."""


class Import(NamedTuple):
    """An import statement of a command, ``import module`` or ``from module import name``."""

    module: str
    name: str = ""


@dataclasses.dataclass(frozen=True)
class Command:
    """Whether a command's imports succeed."""

    works: bool
    note: str
    """The missing package and how to install it; empty if none is missing."""


def check() -> dict[str, Command]:
    """Every command of the table, in its order."""
    return {name: check_command(name) for name in COMMANDS}


def check_command(name: str) -> Command:
    """Execute all imports of one command, those inside its functions too.

    >>> check_command("checkpoints")
    Command(works=True, note='')
    """
    try:
        for wanted in imports(module_name(name)):
            _import(wanted)
    except ModuleNotFoundError as error:
        return Command(False, str(extras.missing(error) or error))
    except ImportError as error:  # a package of a version that lacks something
        return Command(False, " ".join(str(error).split()))
    module, consequence = PARTLY.get(name, ("", ""))
    if module and not _is_module(module):
        error = extras.missing(ModuleNotFoundError(name=module))
        return Command(True, f"{error}; {consequence}")
    return Command(True, "")


def imports(module: str, seen: set[str] | None = None) -> Iterator[Import]:
    """Imports anywhere in a module of ``ziggurat.cli`` and in those that it imports of them."""
    seen = set() if seen is None else seen
    if module in seen:
        return
    seen.add(module)
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    for node in ast.walk(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found = [Import(alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found = [Import(node.module, alias.name) for alias in node.names]
        else:
            continue
        for wanted in found:
            yield wanted
            inner = f"{wanted.module}.{wanted.name}" if wanted.name else wanted.module
            for name in (wanted.module, inner):
                if name.startswith("ziggurat.cli.") and _is_module(name):
                    yield from imports(name, seen)


def _import(wanted: Import) -> None:
    module = importlib.import_module(wanted.module)
    if wanted.name and not hasattr(module, wanted.name):
        importlib.import_module(f"{wanted.module}.{wanted.name}")


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # a function of a module
        return False
