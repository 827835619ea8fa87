"""Shapes and types of arrays are checked while tests run, by jaxtyping and beartype.

jaxtyping's import hook wraps every function. Binding and checking arguments takes tens of
microseconds a call, also where no array is annotated: 40 % of the time of a test that traces
models. Only functions and dataclasses whose annotations hold a shape are wrapped here; plain types
are pyright's to check.
"""

import dataclasses
import inspect
import re
import sys
from collections.abc import Callable
from typing import Any, get_args

import jaxtyping
from jaxtyping import AbstractArray, install_import_hook

_decorator = jaxtyping.jaxtyped
_WRITTEN = re.compile(r"\b(?:Shaped|Inexact|Real|Num|Key|Bool|U?Int\d*|B?Float\w*|Complex\d*)\[")


def install() -> None:
    """Check shapes in modules of the package that are imported from now on.

    Raises:
        RuntimeError: the package is imported already.
    """
    if "ziggurat" in sys.modules:
        raise RuntimeError("ziggurat is imported already, so its shapes would not be checked")
    jaxtyping.jaxtyped = _only_with_shapes
    install_import_hook("ziggurat", "beartype.beartype")


def has_shape(annotation: object) -> bool:
    """Whether an annotation holds an array type with a shape.

    >>> has_shape(jaxtyping.Float[Any, "a b"] | None), has_shape("dict[str, Int[Array, 'n']]")
    (True, True)
    >>> has_shape(dict[str, int]), has_shape("int")
    (False, False)
    """
    if isinstance(annotation, str):
        return _WRITTEN.search(annotation) is not None
    if inspect.isclass(annotation) and issubclass(annotation, AbstractArray):
        return True
    return any(map(has_shape, get_args(annotation)))


def _only_with_shapes(*, typechecker: Any) -> Callable[[Any], Any]:
    """Stands in for ``jaxtyping.jaxtyped`` in what the import hook inserts."""

    def decorated(one: Any) -> Any:
        own = vars(one).get("__annotations__", {}) if inspect.isclass(one) else one.__annotations__
        if inspect.isclass(one) and not dataclasses.is_dataclass(one):
            return one
        if not any(map(has_shape, own.values())):
            return one
        return _decorator(one, typechecker=typechecker)

    return decorated
