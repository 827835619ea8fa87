"""Write docs/glossary.md from the dimension table: ``python scripts/write_glossary.py``."""

from pathlib import Path

from ziggurat.core.dimensions import DIMENSIONS

PATH = Path(__file__).parents[1] / "docs" / "glossary.md"

HEAD = """\
# Glossary of dimensions

One letter and one logical axis name per dimension, everywhere: the letter in shape annotations
(`Float[Array, "b t d"]`) and einsum strings, the axis name on parameters and in the sharding rules
of `ziggurat.mesh`.

<!-- Generated from src/ziggurat/core/dimensions.py by `python scripts/write_glossary.py`. -->

| letter | logical axis | meaning |
| --- | --- | --- |
"""


def render() -> str:
    """The page's text."""
    rows = (f"| `{entry.letter}` | `{entry.axis}` | {entry.meaning} |\n" for entry in DIMENSIONS)
    return HEAD + "".join(rows)


if __name__ == "__main__":
    PATH.write_text(render(), encoding="utf-8")
