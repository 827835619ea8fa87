"""Quantization by rules on Qwix's numbers, without model edits: recipes, quantising a parameter
tree, and the report of what it cost.

>>> from ziggurat.quantize import NAMED
>>> sorted(NAMED)
['fp8', 'int4', 'int8', 'nf4', 'w8a8']

The package is callable: ``ziggurat.quantize(model, output)`` is
:func:`ziggurat.api.quantizing.quantize`.
"""

from ziggurat.core import lazy
from ziggurat.quantize.recipe import NAMED, QuantizedTraining, Recipe, Rule, resolve

__all__ = ["NAMED", "QuantizedTraining", "Recipe", "Rule", "resolve"]

lazy.make_callable(__name__)
