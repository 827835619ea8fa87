"""Factors of inputs, folded into what comes before the matrices that read them.

A place is left as it is where one of its matrices stays a float: its factors would have to be
rounded into it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from ziggurat.quantize.inputs import FindFactors, FoldPlace, InputMoments
from ziggurat.quantize.recipe import Rule
from ziggurat.quantize.rounding import METHODS, Rounding, function_of


def fold_layer(
    own: Mapping[str, Any],
    moments: Mapping[str, InputMoments],
    rules: Mapping[str, Rule],
    rounding: Rounding,
    places: Sequence[FoldPlace],
) -> tuple[dict[str, Any], dict[str, InputMoments]]:
    """Find the factors of a layer's inputs, and fold them away.

    Args:
        own: the layer's parameters by name.
        moments: of the matrices' inputs.
        rules: of the matrices that are quantised.
        rounding: method and its settings.
        places: where factors fold away.

    Returns:
        The parameters that changed, float32, and the moments of the inputs behind them.
    """
    method = METHODS[rounding.method]
    find: FindFactors = function_of(method.fold or "")
    changed: dict[str, Any] = {}
    seen = dict(moments)
    for place in places:
        names = place.consumers
        matrices = names if place.into_norm else (*names, place.producers[0])
        if not all(name in rules and name in seen for name in matrices):
            continue
        if not place.into_norm and not method.folds_projections:
            continue
        now = {**own, **changed}
        weights = [jnp.asarray(now[name], jnp.float32) for name in names]
        inputs = seen[names[0]]
        wanted = find(weights, inputs, [rules[name] for name in names], rounding)
        made, factors = place.applied(now, wanted)
        changed |= {name: jnp.asarray(leaf) for name, leaf in made.items()}
        for name, weight in zip(names, weights):
            changed[name] = weight * factors[:, None]
            seen[name] = inputs.divided(factors)
    return changed, seen
