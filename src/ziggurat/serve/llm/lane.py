"""A sequence as the scheduler sees it: how much of it is in the cache, and in which blocks.

What state it is in follows from the tokens that are there, those in the cache, and whether it runs:
a prompt that is read, a sequence that decodes and one that resumes after it lost its blocks differ
in nothing else.
"""

import dataclasses
from typing import TypeVar

import numpy as np


@dataclasses.dataclass(eq=False)
class Lane:
    """One sequence."""

    order: tuple[int, int]
    """Arrival of the request, and number of the choice; of a client, older lanes come first."""
    tokens: list[int]
    """Prompt and output."""
    cached: int = 0
    """How many of the tokens are in the cache."""
    blocks: list[int] = dataclasses.field(default_factory=list)
    """The blocks it holds, in order of its tokens."""
    client: str = ""
    """Whose it is; clients take turns."""
    salt: bytes = b""
    """Prefixes are shared with sequences of the same salt only."""
    rank: tuple[int, int] | None = None
    """Place in the order in which requests first began to run, and number of the choice; ``None``
    before that. Those of a higher rank give their blocks to those of a lower one."""
    table: np.ndarray | None = None
    """The same as the device wants it, padded with the sink."""
    slot: int | None = None
    """Its number among the running lanes; ``None`` while it waits."""
    stay: object = None
    """Another object each time that it begins to run."""
    digests: list[bytes] = dataclasses.field(default_factory=list)
    """Of its full blocks, as far as the prefix cache has asked for them."""
    registered: int = 0
    """Blocks that the prefix cache has been told of."""

    @property
    def pending(self) -> int:
        """Tokens that are not in the cache yet; a lane that decodes has one."""
        return len(self.tokens) - self.cached


L = TypeVar("L", bound=Lane)
