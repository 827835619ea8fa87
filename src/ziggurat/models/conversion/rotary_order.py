"""Order of the rotary channels in published weights: in pairs there, in halves here.

Rotation turns channels two by two. Weights whose pairs stand side by side are brought to the order
of :func:`ziggurat.nn.rope.rotate`, where the first of all pairs come before the second; scores do
not change, since queries and keys are reordered alike.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Int

from ziggurat.models.conversion.weight_names import WeightName


def pairs_to_halves(heads: int, plain: int, rotary: int) -> Int[np.ndarray, "f"]:
    """Which row of a projection as published stands where here.

    Args:
        heads: heads, whose rows follow one another.
        plain: rows of each head that do not rotate; they come first.
        rotary: rows of each head that do.

    >>> pairs_to_halves(1, 2, 4).tolist()
    [0, 1, 2, 4, 3, 5]
    """
    first, second = plain + np.arange(0, rotary, 2), plain + np.arange(1, rotary, 2)
    one = np.concatenate([np.arange(plain), first, second])
    return (np.arange(heads)[:, None] * (plain + rotary) + one).reshape(-1)


def reordered(name: WeightName, orders: Mapping[str, np.ndarray]) -> WeightName:
    """A weight's name with the order of its rows, if its published module is among ``orders``."""
    for theirs, order in orders.items():
        if f".{theirs}." in name.theirs:
            by, back = _taker(order), _taker(np.argsort(order))
            return dataclasses.replace(name, reorder=by, restore=back)
    return name


def _taker(rows: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    return lambda tensor: tensor[rows]
