"""A sequence as the scheduler sees it: its tokens, how many are computed, and its cache blocks.

A sequence has no status field: its state follows from its lengths and its slot. A prompt that is
prefilled, a sequence that decodes and a sequence that resumes after preemption differ only in these
numbers.
"""

import dataclasses
from typing import TypeVar

import numpy as np

from ziggurat.serve.llm.prompt_images import PromptImages


@dataclasses.dataclass(eq=False)
class Sequence:
    """Tokens of one completion, with the key/value-cache blocks that hold them."""

    order: tuple[int, int]
    """Arrival number of the request, and index of the completion in it. A client's sequences are
    served in this order."""
    tokens: list[int]
    """Prompt and output."""
    computed: int = 0
    """Number of tokens whose keys and values are in the cache."""
    blocks: list[int] = dataclasses.field(default_factory=list)
    """Numbers of its cache blocks, in the order of its tokens."""
    client: str = ""
    """Name of the client; clients take turns."""
    salt: bytes = b""
    """Prefix-cache salt: blocks are shared only among sequences of equal salt."""
    rank: tuple[int, int] | None = None
    """Number of the request in the order in which requests first ran, and index of the completion;
    ``None`` before the first run. The highest rank is preempted first."""
    block_table: np.ndarray | None = None
    """``blocks`` as the device reads them, padded with block 0; ``None`` while it waits."""
    slot: int | None = None
    """Slot among the running sequences; ``None`` while it waits."""
    admission: int | None = None
    """Number of its current admission; another one each time it starts to run."""
    digests: list[bytes] = dataclasses.field(default_factory=list)
    """Digests of its full blocks, as far as the prefix cache has computed them."""
    registered: int = 0
    """Number of its blocks that the prefix cache knows."""
    images: PromptImages | None = None
    """Images of its prompt."""
    reads_prefixes: bool = True
    """Whether its beginning may come from the prefix cache."""

    @property
    def pending(self) -> int:
        """Number of tokens that are not computed yet; 1 for a sequence that decodes."""
        return len(self.tokens) - self.computed

    def mark(self, start: int, stop: int) -> bytes:
        """Digests that tell its tokens from ``start`` to ``stop`` from others of the same ids."""
        return b"" if self.images is None else self.images.mark(start, stop)


S = TypeVar("S", bound=Sequence)
