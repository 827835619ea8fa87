"""Which blocks of the cache hold which prefix: a prompt that begins alike is not read again.

Two of a kind: :class:`HashedPrefixes`, and :class:`NoPrefixes`, which finds nothing and against
which the other is measured.
"""

import array
import secrets
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import xxhash

Mark = Callable[[int, int], bytes]


def unmarked(start: int, stop: int) -> bytes:
    """Mark of a sequence without images."""
    return b""


@runtime_checkable
class PrefixCache(Protocol):
    """Interface of the engine's prefix cache; also the allocator's ``CachedBlocks``."""

    def match(
        self,
        tokens: Sequence[int],
        digests: list[bytes],
        salt: bytes = b"",
        mark: Mark = unmarked,
    ) -> list[int]:
        """Blocks that hold the beginning of ``tokens``, the last token never among them.

        Args:
            tokens: the sequence.
            digests: those of its blocks as far as known; it may grow.
            salt: blocks are found by sequences of the same salt only.
            mark: what tells its images from others, by range of tokens.
        """
        ...

    def add(
        self,
        tokens: Sequence[int],
        digests: list[bytes],
        blocks: Sequence[int],
        first: int,
        salt: bytes = b"",
        mark: Mark = unmarked,
    ) -> None:
        """Register blocks that hold the beginning of ``tokens`` in full; those from ``first`` on
        are new."""
        ...

    def is_cached(self, block: int) -> bool: ...

    def evict(self, block: int) -> None: ...

    def clear(self) -> None:
        """Forget all blocks."""
        ...


class NoPrefixes:
    """Prefix cache that is off: it finds nothing and keeps nothing."""

    def match(
        self,
        tokens: Sequence[int],
        digests: list[bytes],
        salt: bytes = b"",
        mark: Mark = unmarked,
    ) -> list[int]:
        return []

    def add(
        self,
        tokens: Sequence[int],
        digests: list[bytes],
        blocks: Sequence[int],
        first: int,
        salt: bytes = b"",
        mark: Mark = unmarked,
    ) -> None:
        pass

    def is_cached(self, block: int) -> bool:
        return False

    def evict(self, block: int) -> None:
        pass

    def clear(self) -> None:
        pass


class HashedPrefixes:
    """Prefix cache that finds blocks by a digest of their tokens and of all before them.

    A block's digest is XXH3-128 over the digest of the block before it (the salt, for the first),
    its own tokens, and the digests of images that have tokens in it, with a secret seed, so that
    nobody can look for prompts that collide. Who does not know a salt cannot tell by the time of an
    answer which prompts were sent under it.

    >>> prefixes = HashedPrefixes(block_size=2)
    >>> prefixes.add([5, 6, 7, 8, 9], [], [11, 12], first=0)
    >>> prefixes.match([5, 6, 7, 8], []), prefixes.match([5, 6, 7, 8, 1], [])
    ([11], [11, 12])
    >>> prefixes.match([5, 6, 7, 8, 1], [], b"another client")
    []
    """

    def __init__(self, block_size: int):
        self._size, self._seed = block_size, secrets.randbits(64)
        self._blocks: dict[bytes, int] = {}
        self._digests: dict[int, bytes] = {}

    def match(
        self,
        tokens: Sequence[int],
        digests: list[bytes],
        salt: bytes = b"",
        mark: Mark = unmarked,
    ) -> list[int]:
        found = []
        for index in range((len(tokens) - 1) // self._size):
            block = self._blocks.get(self._digest(tokens, digests, index, salt, mark))
            if block is None:
                break
            found.append(block)
        return found

    def add(
        self,
        tokens: Sequence[int],
        digests: list[bytes],
        blocks: Sequence[int],
        first: int,
        salt: bytes = b"",
        mark: Mark = unmarked,
    ) -> None:
        for index in range(first, len(blocks)):
            digest = self._digest(tokens, digests, index, salt, mark)
            if digest not in self._blocks:  # another block may hold the same already
                self._blocks[digest] = blocks[index]
                self._digests[blocks[index]] = digest

    def is_cached(self, block: int) -> bool:
        return block in self._digests

    def evict(self, block: int) -> None:
        digest = self._digests.pop(block, None)
        if digest is not None:
            del self._blocks[digest]

    def clear(self) -> None:
        self._blocks.clear()
        self._digests.clear()

    def _digest(
        self, tokens: Sequence[int], digests: list[bytes], index: int, salt: bytes, mark: Mark
    ) -> bytes:
        """The digest of block ``index``; ``digests`` grows up to it."""
        while len(digests) <= index:
            at = len(digests) * self._size
            content = array.array("i", tokens[at : at + self._size]).tobytes()
            content += mark(at, at + self._size)
            before = digests[-1] if digests else salt
            digests.append(xxhash.xxh3_128_digest(before + content, seed=self._seed))
        return digests[index]
