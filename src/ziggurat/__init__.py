"""Ziggurat: the whole JAX AI stack as one product.

One install, one typed run file, one model definition and one checkpoint from raw text to a
served model. Each function does what the command of its name does::

    import ziggurat

    outcome = ziggurat.train("tiny-python", overrides=["train.steps=50"])
    ziggurat.quantize("runs/tiny-python", "models/tiny-int8", recipe="int8")
    print(ziggurat.generate("models/tiny-int8", "def add(a, b):"))

``load``, ``export``, ``plan``, ``transcribe`` and ``serve`` are the others. Importing this package
imports nothing heavy. Its packages are useful alone: ``from ziggurat import checkpoint``.
"""

from typing import TYPE_CHECKING

from ziggurat.core import lazy

if TYPE_CHECKING:
    from ziggurat.api import export, generate, load, plan, quantize, serve, train, transcribe

__version__ = "0.1.0"
_HOMES = {
    **dict.fromkeys(("export", "generate", "load", "transcribe"), "api"),
    **{name: name for name in ("plan", "quantize", "serve", "train")},
}
"""Functions by their module; the packages of the last four names are callable."""

__all__ = ["export", "generate", "load", "plan", "quantize", "serve", "train", "transcribe"]

__getattr__, __dir__ = lazy.names(__name__, _HOMES)
