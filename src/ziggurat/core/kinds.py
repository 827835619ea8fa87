"""Nodes of the run file that are told apart by ``kind``, from an open registry."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

from ziggurat.core.registry import Registry


def _itself(entry: Any) -> Any:
    return entry


@dataclasses.dataclass(frozen=True, eq=False)
class Kinds:
    """Variants of a node, for ``Annotated``: those of a registry, plugins included.

    Only the node that a file names is imported.

    >>> from typing import Annotated, Any, Literal
    >>> from ziggurat.core import config
    >>> @config.node
    ... class Square:
    ...     kind: Literal["square"] = "square"
    ...     side: float = 1.0
    >>> shapes = Registry("shape")
    >>> shapes.add("square", Square)
    >>> @config.node
    ... class Drawing:
    ...     shape: Annotated[Any, Kinds(shapes)]
    >>> config.parse(Drawing, "shape = { kind = 'square', side = 2.0 }").value.shape
    Square(kind='square', side=2.0)
    >>> config.parse(Drawing, "shape = { kind = 'sqare' }")
    Traceback (most recent call last):
    ziggurat.core.errors.ConfigError: <text>: shape.kind: found 'sqare', expected one of square, \
did you mean square?
    """

    registry: Registry[Any]
    node: Callable[[Any], Any] = _itself
    """The node of an entry; None for an entry that run files cannot name."""
    default: str | None = None
    """The kind of a table without ``kind``; a default of None refuses one."""
    also: Mapping[str, type] = dataclasses.field(default_factory=dict)
    """Nodes by kind beside those of the registry."""

    def names(self) -> list[str]:
        """Names of all kinds, sorted; imports every entry."""
        named = [name for name in self.registry if self.node(self.registry[name]) is not None]
        return sorted([*named, *self.also])

    def node_of(self, name: str) -> Any:
        """Node class of a kind; ``None`` if there is none."""
        if name in self.also:
            return self.also[name]
        return self.node(self.registry[name]) if name in self.registry else None

    def nodes(self) -> list[Any]:
        """Node classes of all kinds."""
        return [self.node_of(name) for name in self.names()]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(self._validated)

    def _validated(self, value: Any) -> Any:
        from pydantic import TypeAdapter
        from pydantic_core import PydanticKnownError

        if dataclasses.is_dataclass(value):
            return value
        if not isinstance(value, dict):
            raise PydanticKnownError("dict_type")
        name = value.get("kind", self.default)
        if name is None:
            raise PydanticKnownError("union_tag_not_found", {"discriminator": "'kind'"})
        cls = self.node_of(str(name))
        if cls is None:
            known = ", ".join(f"'{one}'" for one in self.names())
            told = {"discriminator": "'kind'", "tag": str(name), "expected_tags": known}
            raise PydanticKnownError("union_tag_invalid", told)
        # JSON is read leniently where a dict is not: lists become tuples, texts paths. A table of
        # one kind keeps the kind in the path of an error.
        table: Any = dict[str, cls]  # pyright: ignore[reportInvalidTypeForm]
        read = TypeAdapter(table).validate_json(json.dumps({name: value}, default=str))
        return read[name]
