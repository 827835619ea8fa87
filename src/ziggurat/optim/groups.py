"""Which parameter is treated how: decayed or not, orthogonalised or not.

Parameters of equal layers are stacked, so the rank of a leaf says little: ``[layers, embed]`` is a
stack of norm scales. The leading ``layers`` and ``experts`` axes are therefore set aside, and the
rest of the logical axes decide.
"""

import dataclasses
import fnmatch
from collections.abc import Iterable, Mapping, Sequence

import jax
from jaxtyping import PyTree

from ziggurat.core.errors import ConfigError, did_you_mean
from ziggurat.core.pytrees import leaf_name

Axes = tuple[str | None, ...]
"""Logical axis names of one array, one per dimension."""

STACKED_AXES = ("layers", "experts")
"""Leading axes over which a parameter repeats; ``experts`` alone, as in a router's bias, is a
dimension like any other."""


@dataclasses.dataclass(frozen=True)
class Treatment:
    """Optimizer settings of one parameter."""

    name: str
    """Dotted name."""
    axes: Axes
    group: str
    """The rule that updates it: ``adamw``, ``lion``, ``muon``, ``adafactor`` or ``sgd``."""
    decayed: bool
    """Whether weight decay applies."""


def is_axes(value: object) -> bool:
    """Whether ``value`` is a leaf of an axes tree, and not one of Optax's (named) tuples of state.

    >>> import optax
    >>> is_axes(("embed", None)), is_axes({"a": ("embed",)}), is_axes(optax.EmptyState())
    (True, False, False)
    """
    return type(value) is tuple and all(a is None or isinstance(a, str) for a in value)


def named_axes(axes: PyTree) -> dict[str, Axes]:
    """Axes by dotted parameter name.

    Raises:
        ConfigError: a leaf is not a tuple of names.
    """
    leaves = jax.tree_util.tree_leaves_with_path(axes, is_leaf=is_axes)
    for path, leaf in leaves:
        if not is_axes(leaf):
            raise ConfigError(
                f"logical axes of {leaf_name(path)}",
                found=repr(leaf),
                expected="a tuple of axis names, one per dimension",
            )
    return {leaf_name(path): leaf for path, leaf in leaves}


def stacked_dims(axes: Axes) -> int:
    """Number of leading stacked dimensions.

    >>> stacked_dims(("layers", "experts", "embed", "mlp")), stacked_dims(("layers", "embed"))
    (2, 1)
    >>> stacked_dims(("layers", "embed", "experts"))  # a router: experts are its outputs
    1
    """
    count = 0
    while count < len(axes) and axes[count] in STACKED_AXES:
        if axes[count] == "experts" and count + 1 == len(axes):
            break
        count += 1
    return count


def is_matrix(axes: Axes) -> bool:
    """Whether at least two dimensions remain without the stacked ones."""
    return len(axes) - stacked_dims(axes) >= 2


def matrix_dims(name: str, axes: Axes) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Input and output dimensions of a parameter seen as a matrix.

    With more than two dimensions, the model's width tells the sides apart: ``embed`` first means
    that all others are outputs, ``embed`` last that all others are inputs.

    >>> matrix_dims("query", ("layers", "embed", "heads", "head_dim"))
    ((1,), (2, 3))
    >>> matrix_dims("output", ("layers", "heads", "head_dim", "embed"))
    ((1, 2), (3,))

    Raises:
        ConfigError: the sides cannot be told apart.
    """
    first = stacked_dims(axes)
    dims = tuple(range(first, len(axes)))
    if len(dims) == 2 or axes[first] == "embed":
        return dims[:1], dims[1:]
    if axes[-1] == "embed":
        return dims[:-1], dims[-1:]
    raise ConfigError(
        f"optimizer muon: parameter {name}",
        found=f"axes {axes}",
        expected="two dimensions, or embed first or last",
        fix="add its name to adam_patterns",
    )


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a dotted name matches any pattern (case counts)."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def check_patterns(
    key: str, patterns: Sequence[str], defaults: Sequence[str], names: Sequence[str]
) -> None:
    """Refuse a pattern that matches no parameter. Default patterns may match none, since not every
    model has, say, biases.

    Raises:
        ConfigError: naming the pattern and the nearest parameter name.
    """
    for pattern in patterns:
        if pattern in defaults or any(fnmatch.fnmatchcase(name, pattern) for name in names):
            continue
        parts = {part for name in names for part in name.split(".")}
        known = {part: part for part in parts} | {name: name for name in names}
        hint = did_you_mean(pattern.strip("*."), known)
        raise ConfigError(
            f"optimizer {key}",
            found=f"{pattern!r}, which matches no parameter",
            expected="a pattern over dotted names",
            fix=hint or f"parameters are named like {', '.join(list(names)[:3])}",
        )


def decayed(axes: Mapping[str, Axes], no_decay: Sequence[str]) -> dict[str, bool]:
    """Per parameter, whether it is a matrix that no pattern excludes."""
    return {name: is_matrix(a) and not matches(name, no_decay) for name, a in axes.items()}


def orthogonalised(axes: Mapping[str, Axes], adam_patterns: Sequence[str]) -> dict[str, bool]:
    """Per parameter, whether Muon takes it: a matrix without ``vocab`` that no pattern excludes."""
    return {
        name: is_matrix(a) and "vocab" not in a and not matches(name, adam_patterns)
        for name, a in axes.items()
    }
