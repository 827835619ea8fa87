"""Self-contained HTML pages: one style for all of them, no script, no network."""

import importlib.resources
import re

from markupsafe import Markup

from ziggurat.core.json_types import Json


def render(package: str, template: str, **values: Json) -> str:
    """Render a page as HTML text.

    All text is escaped; control characters and lone surrogates in it become visible replacements.

    Args:
        package: where the template lies, e.g. ``ziggurat.train``.
        template: its file name; it places the common style where it says ``{{ style }}``.
        values: what the template names.
    """
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    text = importlib.resources.files(package).joinpath(template).read_text(encoding="utf-8")
    style = importlib.resources.files("ziggurat.profile").joinpath("page.css")
    return environment.from_string(text).render(
        style=Markup(style.read_text(encoding="utf-8")), **values
    )


_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f]")
_INVALID = re.compile("[\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def _visible(value: Json) -> Json:
    """Text that HTML and UTF-8 can hold: control characters as their Unicode pictures."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    pictured = _CONTROL.sub(lambda found: chr(0x2400 + ord(found[0])), value.replace("\r", "␍"))
    return _INVALID.sub("\ufffd", pictured)
