"""Book-keeping of the paged cache: gives lanes their blocks and takes them back."""

import numpy as np

from ziggurat.serve.llm.blocks import BlockAllocator
from ziggurat.serve.llm.lane import Lane
from ziggurat.serve.llm.prefix_cache import PrefixCache


class Pages:
    """The cache's blocks and the lanes that hold them.

    Args:
        blocks: how many there are.
        block_size: tokens in one.
        width: most blocks of a lane.
        prefixes: finds blocks with a prompt's beginning.
    """

    def __init__(self, blocks: int, block_size: int, width: int, prefixes: PrefixCache):
        assert blocks >= width, "a lane alone must fit"
        self.allocator = BlockAllocator(blocks, prefixes)
        self.block_size, self._width, self._prefixes = block_size, width, prefixes
        self.queries = self.hits = 0
        """Tokens looked up in the prefix cache, and those found."""

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-tokens // self.block_size)

    def admit(self, lane: Lane, spare: int) -> bool:
        """Give a lane blocks for all its tokens, with its beginning from the prefix cache.

        Args:
            lane: one that waits; it may hold its beginning already.
            spare: blocks that must stay free.

        Returns:
            Whether there were enough; if not, nothing has changed.
        """
        held = list(lane.blocks)
        found = [] if held else self._prefixes.match(lane.tokens, lane.digests, lane.salt)
        self.allocator.share(found)
        missing = self.blocks_for(len(lane.tokens)) - len(held) - len(found)
        if self.allocator.free < missing + spare:
            self.allocator.give_back(found)
            return False
        if not held:
            self.queries += len(lane.tokens)
            self.hits += len(found) * self.block_size
            lane.cached = len(found) * self.block_size
            lane.registered = len(found)
        lane.blocks = []
        lane.table = np.zeros(self._width, np.int32)
        self._extend(lane, held + found + self.allocator.take(missing))
        return True

    def grow(self, lane: Lane, ahead: int = 0) -> bool:
        """Give a lane a block for its newest token if it needs one; says whether it has one now.

        Args:
            lane: one that runs.
            ahead: tokens to come for which it is to have room too, at most a block of them.
        """
        if len(lane.blocks) * self.block_size >= len(lane.tokens) + ahead:
            return True
        if self.allocator.free == 0:
            return False
        self._extend(lane, self.allocator.take(1))
        return True

    def share(self, parent: Lane, lane: Lane, tokens: int) -> None:
        """Let a lane hold the full blocks of its parent that lie before token ``tokens - 1``, the
        last of the prompt: that one it reads itself, into a block of its own."""
        full = (tokens - 1) // self.block_size
        lane.blocks, lane.digests = parent.blocks[:full], parent.digests[:full]
        lane.cached, lane.registered = full * self.block_size, full
        self.allocator.share(lane.blocks)

    def advance(self, lane: Lane, count: int) -> None:
        """``count`` more tokens of the lane are in the cache; full blocks become known."""
        lane.cached += count
        full = lane.cached // self.block_size
        if full > lane.registered:
            known = lane.tokens, lane.digests, lane.blocks[:full], lane.registered
            self._prefixes.add(*known, lane.salt)
            lane.registered = full

    def release(self, lane: Lane) -> None:
        """Take a lane's blocks back; what it had read is to be read again."""
        self.allocator.give_back(lane.blocks)
        lane.blocks, lane.table, lane.cached, lane.registered = [], None, 0, 0

    def forget_prefixes(self) -> None:
        """Find nothing that has been read so far: the model is another one now."""
        self._prefixes.clear()

    def _extend(self, lane: Lane, blocks: list[int]) -> None:
        assert lane.table is not None
        start = len(lane.blocks)
        lane.table[start : start + len(blocks)] = blocks
        lane.blocks = lane.blocks + blocks
