"""Blocks of the key/value cache: who holds which, and which may be written again."""

import collections
from collections.abc import Sequence
from typing import Protocol, runtime_checkable


@runtime_checkable
class Keeper(Protocol):
    """Knows what blocks hold that nobody uses just now; see ``prefix_cache``."""

    def keeps(self, block: int) -> bool:
        """Whether the block's content may be wanted again."""
        ...

    def forget(self, block: int) -> None:
        """The block is about to be written anew."""
        ...


class BlockAllocator:
    """Counts references to blocks ``1`` to ``total``; block 0 takes what is padding.

    A block with no reference is free. Free blocks without anything worth keeping are taken first,
    then the one that has been free the longest.

    >>> from ziggurat.serve.llm.prefix_cache import NoPrefixes
    >>> blocks = BlockAllocator(4, NoPrefixes())
    >>> held = blocks.take(3)
    >>> blocks.share(held[:1])
    >>> blocks.give_back(held)
    >>> blocks.free, blocks.references(held[0])
    (3, 1)
    """

    def __init__(self, total: int, keeper: Keeper):
        self.total, self._keeper = total, keeper
        self._references = [0] * (total + 1)
        self._free = collections.OrderedDict.fromkeys(range(1, total + 1))

    @property
    def free(self) -> int:
        """Blocks that can be taken."""
        return len(self._free)

    def references(self, block: int) -> int:
        """How many hold the block."""
        return self._references[block]

    def take(self, count: int) -> list[int]:
        """Free blocks to write to; the caller has seen that there are as many."""
        assert count <= len(self._free)
        taken = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in taken:
            self._keeper.forget(block)
            self._references[block] = 1
        return taken

    def share(self, blocks: Sequence[int]) -> None:
        """Hold blocks that others hold too, or that are free and still have their content."""
        for block in blocks:
            if self._references[block] == 0:
                del self._free[block]
            self._references[block] += 1

    def give_back(self, blocks: Sequence[int]) -> None:
        """Hold blocks no more. Of a sequence's blocks the last are reused first, since a prefix is
        of no use without its beginning."""
        for block in reversed(blocks):
            assert self._references[block] > 0
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free[block] = None
                if not self._keeper.keeps(block):
                    self._free.move_to_end(block, last=False)
