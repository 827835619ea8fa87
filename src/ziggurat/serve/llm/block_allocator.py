"""Reference-counted allocator of the blocks of the key/value cache."""

import collections
from collections.abc import Sequence
from typing import Protocol, runtime_checkable


@runtime_checkable
class CachedBlocks(Protocol):
    """Interface of the record of free blocks whose content may be reused; see
    :mod:`ziggurat.serve.llm.prefix_cache`."""

    def is_cached(self, block: int) -> bool:
        """Whether a prefix lookup can still find the block's content."""
        ...

    def evict(self, block: int) -> None:
        """Drop the block from prefix lookups: it is about to be overwritten."""
        ...


class BlockAllocator:
    """Allocator with reference counts for blocks ``1`` to ``total``; block 0 receives the writes of
    padding.

    A block without references is free. Free blocks without cached content are allocated first,
    then the one that has been free the longest.

    >>> from ziggurat.serve.llm.prefix_cache import NoPrefixes
    >>> blocks = BlockAllocator(4, NoPrefixes())
    >>> held = blocks.allocate(3)
    >>> blocks.share(held[:1])
    >>> blocks.free(held)
    >>> blocks.free_blocks, blocks.references(held[0])
    (3, 1)
    """

    def __init__(self, total: int, contents: CachedBlocks):
        self.total, self._contents = total, contents
        self._references = [0] * (total + 1)
        self._free = collections.OrderedDict.fromkeys(range(1, total + 1))

    @property
    def free_blocks(self) -> int:
        """Number of blocks that can be allocated."""
        return len(self._free)

    def references(self, block: int) -> int:
        """Number of sequences that hold the block."""
        return self._references[block]

    def allocate(self, count: int) -> list[int]:
        """Free blocks to write to; the caller has checked ``free_blocks``."""
        assert count <= len(self._free)
        taken = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in taken:
            self._contents.evict(block)
            self._references[block] = 1
        return taken

    def share(self, blocks: Sequence[int]) -> None:
        """Add a reference to blocks that other sequences hold, or that are free and cached."""
        for block in blocks:
            if self._references[block] == 0:
                del self._free[block]
            self._references[block] += 1

    def free(self, blocks: Sequence[int]) -> None:
        """Drop one reference to each block.

        A sequence's last blocks are reused first: a prefix is useless without its beginning.
        """
        for block in reversed(blocks):
            assert self._references[block] > 0
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free[block] = None
                if not self._contents.is_cached(block):
                    self._free.move_to_end(block, last=False)
