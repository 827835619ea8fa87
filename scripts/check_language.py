"""Check names and docstrings against the house's language; `make static` runs it.

The first line of a docstring must stand alone, as in a list of search results: a noun phrase or an
imperative in the field's terms. Some words have one term in this code, and the check names it.

    python scripts/check_language.py [PATH ...]
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
OPENINGS = re.compile(
    r"(What|The same|Both|See above|As above|Such|It|They|Them|These|Those|This|That|There|He|She"
    r"|Its|Their|Of|Why|Fewer)\b"
)
"""Openings that mean nothing without what stands before them."""
NAMES = {
    "Lane": "Sequence",
    "Knobs": "SamplingArrays",
    "Flight": "StepHandle",
    "Pools": "KVCache",
    "Surroundings": "a name that says what it holds",
    "Held": "a name that says what it holds",
    "Asked": "a name of the request",
}
"""Identifiers that this code once had, and the term to use."""
WORDS = {
    r"\bverbs?\b": "command",
    r"\bgo(es)? on\b": "continue or resume",
    r"\bexchanges\b": "collectives",
    r"(?<!/)\bproducts\b": "matmuls",
    r"\blikeliest token\b": "most likely token, or top-1 agreement",
}
"""Words in docstrings, as patterns, and the term to use."""

MOST_ANY = {
    "api": 25,
    "checkpoint": 35,
    "cli": 83,
    "cluster": 33,
    "core": 36,
    "data": 102,
    "kernels": 87,
    "mesh": 7,
    "optim": 4,
    "plan": 10,
    "post": 18,
    "profile": 9,
    "serve": 164,
    "train": 39,
}
"""How often a package may write ``Any``: lower a bound after taking some away, never raise it.
Values have their types, JSON and pytrees an alias (``core.json_types``, ``core.pytrees``,
jaxtyping's ``PyTree``)."""


def problems(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers and messages of one Python file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for line, text, attribute in docstrings(tree):
        first = text.strip().split("\n", 1)[0]
        if opening := OPENINGS.match(first):
            yield line, f"docstring opens with {opening[0]!r}; say what it is in the field's terms"
        elif not attribute and first[:1].islower():
            yield line, f"docstring opens with the lower-case {first.split()[0]!r}"
        for pattern, term in WORDS.items():
            if found := re.search(pattern, text, re.IGNORECASE):
                yield line, f"docstring says {found[0]!r}; write {term}"
    for node in ast.walk(tree):
        name = getattr(node, "name", None) if isinstance(node, ast.ClassDef) else None
        if name in NAMES:
            yield node.lineno, f"class {name}; write {NAMES[name]}"


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str, bool]]:
    """Docstrings below a module: line, text, and whether an attribute owns it."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        owner = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        for place, statement in enumerate(body):
            text = _text(statement)
            before = body[place - 1] if place else None
            if text is None:
                continue
            if owner and place == 0:
                yield statement.lineno, text, False
            elif isinstance(before, ast.Assign | ast.AnnAssign):
                yield statement.lineno, text, True


def _text(statement: ast.AST) -> str | None:
    value = statement.value if isinstance(statement, ast.Expr) else None
    found = value.value if isinstance(value, ast.Constant) else None
    return found if isinstance(found, str) else None


def too_many(root: Path) -> Iterator[str]:
    """Packages below a folder that write ``Any`` more often than :data:`MOST_ANY` says."""
    for package, most in MOST_ANY.items():
        trees = (ast.parse(f.read_text(encoding="utf-8")) for f in (root / package).rglob("*.py"))
        nodes = (node for tree in trees for node in ast.walk(tree))
        count = sum(isinstance(node, ast.Name) and node.id == "Any" for node in nodes)
        if count > most:
            yield f"{root / package}: Any stands {count} times, at most {most}; write the type"


def main(arguments: list[str]) -> int:
    """Print every problem below the given paths; 1 if there is any."""
    roots = [Path(argument) for argument in arguments] or [ROOT / "src"]
    files = [f for root in roots for f in (sorted(root.rglob("*.py")) if root.is_dir() else [root])]
    count = 0
    for path in files:
        for line, message in problems(path):
            print(f"{path}:{line}: {message}")
            count += 1
    for message in too_many(ROOT / "src" / "ziggurat"):
        print(message)
        count += 1
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
