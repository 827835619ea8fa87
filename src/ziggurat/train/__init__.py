"""Training: the pure step, the loop around it, evaluation, metrics and the run report.

The package is callable: ``ziggurat.train(run, ...)`` is :func:`ziggurat.api.training.train`.
"""

from ziggurat.core import lazy

lazy.make_callable(__name__)
