"""The functions of ``import ziggurat``: one for each thing that the command line does.

Each is a function of the same name as a command, and calls what the command calls::

    import ziggurat

    outcome = ziggurat.train("tiny-python", overrides=["train.steps=50"])
    print(ziggurat.generate(outcome.directory.path, "def add(a, b):"))
"""

from typing import TYPE_CHECKING

from ziggurat.core import lazy

if TYPE_CHECKING:
    from ziggurat.api.models import export, generate, load, transcribe
    from ziggurat.api.planning import plan
    from ziggurat.api.quantizing import quantize
    from ziggurat.api.serving import serve
    from ziggurat.api.training import train

HOMES = {
    "export": "models",
    "generate": "models",
    "load": "models",
    "plan": "planning",
    "quantize": "quantizing",
    "serve": "serving",
    "train": "training",
    "transcribe": "models",
}

__all__ = ["export", "generate", "load", "plan", "quantize", "serve", "train", "transcribe"]

__getattr__, __dir__ = lazy.names(__name__, HOMES)
