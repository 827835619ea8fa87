"""Manager of the key/value cache: gives sequences blocks and takes them back."""

import numpy as np

from ziggurat.serve.llm.block_allocator import BlockAllocator
from ziggurat.serve.llm.prefix_cache import PrefixCache
from ziggurat.serve.llm.sequence import Sequence


class KVCacheManager:
    """Assigns blocks of the key/value cache to sequences.

    Args:
        blocks: number of blocks.
        block_size: tokens in a block.
        width: most blocks of one sequence.
        prefixes: finds blocks that hold a prompt's beginning.
        shares_blocks: whether blocks are all of a sequence's state, so that sequences of equal
            prompts can share them; else each computes its prompt itself.
    """

    def __init__(
        self,
        blocks: int,
        block_size: int,
        width: int,
        prefixes: PrefixCache,
        *,
        shares_blocks: bool = True,
    ):
        assert blocks >= width, "a sequence alone must fit"
        self.allocator = BlockAllocator(blocks, prefixes)
        self.block_size, self._width, self._prefixes = block_size, width, prefixes
        self._shares_blocks = shares_blocks
        self.queries = self.hits = 0
        """Tokens looked up in the prefix cache, and tokens found."""

    def blocks_for(self, tokens: int) -> int:
        """Number of blocks that ``tokens`` tokens need."""
        return -(-tokens // self.block_size)

    def admit(self, seq: Sequence, spare: int) -> bool:
        """Give a sequence blocks for all its tokens, with its beginning from the prefix cache.

        Args:
            seq: one that waits; it may hold its beginning already.
            spare: blocks that must stay free.

        Returns:
            Whether there were enough; if not, nothing has changed.
        """
        held = list(seq.blocks)
        known = seq.tokens, seq.digests, seq.salt, seq.mark
        looks = seq.reads_prefixes and not held
        found = self._prefixes.match(*known) if looks else []
        self.allocator.share(found)
        missing = self.blocks_for(len(seq.tokens)) - len(held) - len(found)
        if self.allocator.free_blocks < missing + spare:
            self.allocator.free(found)
            return False
        if not held:
            self.queries += len(seq.tokens) if looks else 0
            self.hits += len(found) * self.block_size
            seq.computed = len(found) * self.block_size
            seq.registered = len(found)
        seq.blocks = []
        seq.block_table = np.zeros(self._width, np.int32)
        self._extend(seq, held + found + self.allocator.allocate(missing))
        return True

    def grow(self, seq: Sequence, ahead: int = 0) -> bool:
        """Give a sequence a block for its newest token if it needs one; true if it has one.

        Args:
            seq: one that runs.
            ahead: tokens to come for which it is to have room too, at most a block of them.
        """
        if len(seq.blocks) * self.block_size >= len(seq.tokens) + ahead:
            return True
        if self.allocator.free_blocks == 0:
            return False
        self._extend(seq, self.allocator.allocate(1))
        return True

    def share(self, parent: Sequence, seq: Sequence, tokens: int) -> None:
        """Share the full blocks of ``parent`` that lie before token ``tokens - 1``.

        That token is the last of the prompt: the sequence computes it into a block of its own.
        """
        full = (tokens - 1) // self.block_size if self._shares_blocks else 0
        seq.blocks, seq.digests = parent.blocks[:full], parent.digests[:full]
        seq.computed, seq.registered = full * self.block_size, full
        self.allocator.share(seq.blocks)

    def advance(self, seq: Sequence, count: int) -> None:
        """Count ``count`` more computed tokens, and register full blocks with the prefix cache."""
        seq.computed += count
        full = seq.computed // self.block_size
        if full > seq.registered:
            known = seq.tokens, seq.digests, seq.blocks[:full], seq.registered
            self._prefixes.add(*known, seq.salt, seq.mark)
            seq.registered = full

    def release(self, seq: Sequence) -> None:
        """Free a sequence's blocks; its tokens must be computed again."""
        self.allocator.free(seq.blocks)
        seq.blocks, seq.block_table, seq.computed, seq.registered = [], None, 0, 0

    def reset_prefix_cache(self) -> None:
        """Empty the prefix cache, as after a change of weights."""
        self._prefixes.clear()

    def _extend(self, seq: Sequence, blocks: list[int]) -> None:
        assert seq.block_table is not None
        start = len(seq.blocks)
        seq.block_table[start : start + len(blocks)] = blocks
        seq.blocks = seq.blocks + blocks
