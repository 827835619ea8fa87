"""Quantisation-aware training: the weights that a recipe chooses are rounded in the forward pass.

A run keeps float weights. Beside them its checkpoints hold the formats, by which the weights are
rounded when the model is read to be used.
"""

from collections.abc import Mapping
from typing import Any

from ziggurat.core.pytrees import map_named, named_leaves
from ziggurat.kernels.linear import is_quantized
from ziggurat.kernels.linear.rounded import fake_quantized
from ziggurat.quantize.recipe import Recipe, Rule
from ziggurat.quantize.weights import checked_rules, format_of


class FakeQuantization:
    """Rounds the parameters of one model by a recipe.

    >>> import jax.numpy as jnp
    >>> from ziggurat.quantize import NAMED
    >>> blocks = {"up": {"kernel": jnp.ones((1, 32, 4))}}
    >>> tree = {"blocks": blocks, "embedding": {"table": jnp.ones((3, 8))}}
    >>> axes = {"blocks.up.kernel": -2, "embedding.table": -1}
    >>> rounded = FakeQuantization(NAMED["int8"], tree, axes)
    >>> rounded(tree)["blocks"]["up"]["kernel"].shape
    (1, 32, 4)

    Args:
        recipe: the rules.
        abstract: the parameters, or their shapes.
        summed_axes: weights that may be quantised, as for
            :func:`ziggurat.quantize.weights.quantize`.

    Raises:
        ConfigError: a rule decides nothing, a tile does not divide, or a weight is quantised
            already.
    """

    def __init__(self, recipe: Recipe, abstract: Any, summed_axes: Mapping[str, int]):
        leaves = named_leaves(abstract, is_leaf=is_quantized)
        self.rules: dict[str, Rule] = checked_rules(leaves, recipe, summed_axes)
        self._axes = dict(summed_axes)

    def __call__(self, params: Any) -> Any:
        """Parameters with the weights rounded, as floats; differentiable."""

        def one(name: str, leaf: Any) -> Any:
            rule = self.rules.get(name)
            if rule is None:
                return leaf
            return fake_quantized(leaf, format_of(rule), self._axes[name], rule.clip)

        return map_named(one, params)
