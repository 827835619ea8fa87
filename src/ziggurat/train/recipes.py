"""Run files that come with the package: ``ziggurat train tiny-python`` works in any directory."""

import difflib
from pathlib import Path

from ziggurat.core.errors import ConfigError


def directory() -> Path:
    """Directory of the recipes, in the installed package or in the checkout."""
    package = Path(__file__).parents[1]
    places = [package / "recipes", package.parents[1] / "recipes"]
    return next(place for place in places if place.is_dir())


def run_file(given: Path) -> Path:
    """Resolve a run file: a path, or a recipe's name.

    A file that exists always wins. ``tiny-python`` and ``recipes/tiny-python.toml`` name the recipe
    where there is no such file.

    Raises:
        ConfigError: neither a file nor a recipe.

    >>> run_file(Path("tiny-python")).name
    'tiny-python.toml'
    """
    if given.exists():
        return given
    named = len(given.parts) == 1 or given.parent == Path("recipes")
    known = sorted(path.stem for path in directory().glob("*.toml"))
    name = given.name.removesuffix(".toml")
    if named and name in known:
        return directory() / f"{name}.toml"
    near = difflib.get_close_matches(name, known, n=1)
    raise ConfigError(
        f"run file {given}",
        found="no such file",
        expected=f"a TOML file, or a recipe: {', '.join(known)}",
        fix=f"did you mean {near[0]}?" if near else "check the path",
    )
