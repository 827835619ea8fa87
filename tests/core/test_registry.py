"""Registries: a name is given once, an unknown one is answered with what exists."""

import pytest

from ziggurat.core.errors import ConfigError, ModelError
from ziggurat.core.registry import Registry


def test_lookup_and_order():
    table: Registry[int] = Registry("shape")
    table.add("square", 4)
    table.register("pentagon")(5)
    assert (table["square"], table["pentagon"]) == (4, 5)
    assert list(table) == ["pentagon", "square"]
    assert "square" in table
    assert "circle" not in table


def test_decorator_gives_back_what_it_decorates():
    table: Registry = Registry("function")

    @table.register("double")
    def double(x):
        return 2 * x

    assert table["double"] is double
    assert double(2) == 4


def test_a_name_is_given_once():
    table: Registry[int] = Registry("shape")
    table.add("square", 4)
    with pytest.raises(ValueError, match="shape 'square' is registered already"):
        table.add("square", 5)
    assert table["square"] == 4


@pytest.mark.parametrize("kind", [ConfigError, ModelError])
def test_unknown_names(kind):
    table: Registry[int] = Registry("shape", kind)
    for name in ("square", "pentagon"):
        table.add(name, 1)
    with pytest.raises(kind) as caught:
        table["sqare"]
    assert str(caught.value) == (
        "shape: found 'sqare'; expected one of pentagon, square; did you mean square?"
    )
