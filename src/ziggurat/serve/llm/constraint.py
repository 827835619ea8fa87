"""Constraint on the next token: the contract between the engine and structured output."""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt32


@runtime_checkable
class Constraint(Protocol):
    """Interface of a grammar's state for one completion, advanced token by token on the engine's
    thread.

    An error that it raises ends its request, no other.
    """

    def mask(self) -> UInt32[np.ndarray, "words"] | None:
        """Which ids may come next: bit ``i % 32`` of word ``i // 32`` (``ceil(v / 32)``
        of them) is set if id ``i`` may. ``None``: all may. At least one does."""
        ...

    def accept(self, token: int) -> None:
        """Advance by a token; ids that end the completion are not passed."""
        ...

    @property
    def finished(self) -> bool:
        """Whether only an end id may follow: the engine then ends with ``stop``."""
        ...
