"""How docstrings become pages: doctests as code blocks, Sphinx roles as code, LaTeX as MathML.

mkdocstrings reads docstrings as Markdown, where ``>>>`` opens three nested quotations and
``:func:`` means nothing. This griffe extension rewrites each docstring before it is parsed; the
sources keep the notation that Python's own ``help()`` shows well.
"""

import re
import textwrap

from griffe import Docstring, Extension
from latex2mathml.converter import convert

_DOCTEST = re.compile(r"^( *)>>> .*(?:\n\1(?! *$).+)*", re.MULTILINE)
_EQUATION = re.compile(r"^( *)\.\. math::\n\n?((?:\1 +.*(?:\n|$)|\n)+)", re.MULTILINE)
_SHORT_EQUATION = re.compile(r"^( *)\.\. math:: (.+)$", re.MULTILINE)
_LITERAL = re.compile(r"^( *)(.*\S)::\n\n((?:\1 +\S.*(?:\n|$)|\n)+)", re.MULTILINE)
"""A block of code after two colons."""
_COMMENT = re.compile(r"^( *)\.\. (?=\[)", re.MULTILINE)
_MATH = re.compile(r":math:`([^`]+)`")
_ROLE = re.compile(r":(?:func|class|mod|meth|attr|data|exc|obj):`(~?)([^`]+)`")


class ReadableDocstrings(Extension):
    """Rewrites every docstring of the package once it is loaded."""

    def on_instance(self, *, node, obj, agent, **kwargs) -> None:
        """Called by griffe for each object that it has read."""
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring)


def markdown(docstring: Docstring) -> str:
    """The docstring's text in Markdown, with its indentation kept for the section parser."""
    text = _EQUATION.sub(_equation, docstring.value)
    text = _SHORT_EQUATION.sub(_equation, text)
    text = _LITERAL.sub(_literal, text)
    text = _MATH.sub(lambda found: _mathml(found[1], "inline"), text)
    text = _ROLE.sub(
        lambda found: f"`{found[2].rpartition('.')[2] if found[1] else found[2]}`", text
    )
    text = _COMMENT.sub(r"\1- ", text)
    return _DOCTEST.sub(_fenced, text)


def _fenced(found: re.Match) -> str:
    return f"{found[1]}```pycon\n{found[0]}\n{found[1]}```"


def _literal(found: re.Match) -> str:
    indent, lead, body = found[1], found[2], textwrap.dedent(found[3]).strip("\n")
    # "Example:" alone would open a section, whose content is prose
    lead, language = ("**Example**", "python") if lead == "Example" else (f"{lead}:", "text")
    return textwrap.indent(f"{lead}\n\n```{language}\n{body}\n```\n\n", indent)


def _equation(found: re.Match) -> str:
    lines = " ".join(line.strip() for line in found[2].splitlines())
    if "&" in lines or "\\\\" in lines:
        lines = rf"\begin{{aligned}} {lines} \end{{aligned}}"
    return f"{found[1]}{_mathml(lines, 'block')}\n\n"


def _mathml(latex: str, display: str) -> str:
    # Markdown would take two asterisks or underscores of a formula for emphasis.
    text = convert(latex, display=display).replace("*", "&#42;").replace("_", "&#95;")
    # A line that begins with <math> would become a paragraph of its own.
    return f"<span>{text}</span>" if display == "inline" else text
