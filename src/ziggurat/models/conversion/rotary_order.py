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
from ziggurat.nn.attention import GroupedAttentionConfig


def pairs_to_halves(heads: int, plain: int, rotary: int, rest: int = 0) -> Int[np.ndarray, "f"]:
    """Which row of a projection as published stands where here.

    Args:
        heads: heads, whose rows follow one another.
        plain: rows of each head that do not rotate; they come first.
        rotary: rows of each head that do.
        rest: rows of each head behind them that do not.

    >>> pairs_to_halves(1, 2, 4).tolist()
    [0, 1, 2, 4, 3, 5]
    >>> pairs_to_halves(1, 0, 4, 2).tolist()
    [0, 2, 1, 3, 4, 5]
    """
    first, second = plain + np.arange(0, rotary, 2), plain + np.arange(1, rotary, 2)
    size = plain + rotary + rest
    one = np.concatenate([np.arange(plain), first, second, np.arange(plain + rotary, size)])
    return (np.arange(heads)[:, None] * size + one).reshape(-1)


def attention_orders(attention: GroupedAttentionConfig) -> dict[str, np.ndarray]:
    """Orders of the query's and the key's rows in grouped attention whose pairs stand side by side,
    by published module; the first channels of a head rotate."""
    rotary, rest = attention.rope_dim, attention.head_dim - attention.rope_dim
    return {
        "self_attn.q_proj": pairs_to_halves(attention.heads, 0, rotary, rest),
        "self_attn.k_proj": pairs_to_halves(attention.kv_heads, 0, rotary, rest),
    }


def reordered(name: WeightName, orders: Mapping[str, np.ndarray]) -> WeightName:
    """A weight's name with the order of its rows, if its published module is among ``orders``."""
    for theirs, order in orders.items():
        if f".{theirs}." in name.theirs:
            by, back = _taker(order), _taker(np.argsort(order))
            return dataclasses.replace(name, reorder=by, restore=back)
    return name


def channels_reordered(name: WeightName, order: np.ndarray) -> WeightName:
    """Name record of a weight whose last dimension is reordered on import, and back on export."""
    back = np.argsort(order)
    return dataclasses.replace(
        name,
        reorder=lambda tensor: tensor[..., order],
        restore=lambda tensor: tensor[..., back],
    )


def _taker(rows: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    return lambda tensor: tensor[rows]
