"""Constraint on the next token: the contract between the engine and structured output."""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt32


@runtime_checkable
class Constraint(Protocol):
    """One generation's grammar, moved on token by token; the engine calls it on its own thread.

    An error that it raises ends its request, no other.
    """

    def mask(self) -> UInt32[np.ndarray, "words"] | None:
        """Which ids may come next: bit ``i % 32`` of word ``i // 32`` (``ceil(v / 32)``
        of them) is set if id ``i`` may. ``None``: all may. At least one does."""
        ...

    def accept(self, token: int) -> None:
        """Move on by a token; ids that end the generation are not told."""
        ...

    @property
    def finished(self) -> bool:
        """Only an end id may follow: the engine ends the generation with ``stop``."""
        ...
