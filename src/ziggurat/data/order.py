"""A keyed order of n things, computed where it is asked for and never stored.

An unbalanced Feistel network permutes ``[0, 2**bits)``, the smallest power of two that holds n;
whatever falls outside ``[0, n)`` is permuted again until it falls inside (cycle walking), which
leaves an exact bijection of ``[0, n)``. Black and Rogaway, "Ciphers with Arbitrary Finite Domains",
2002. It is a shuffle, not encryption.
"""

import hashlib

import numpy as np
from jaxtyping import Int64, UInt64

ROUNDS = 8
CHUNK = 1 << 14
"""Places permuted at a time, so that all rounds work within the processor's cache."""

_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))
_FACTORS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


class Permutation:
    """Keyed bijection of ``[0, count)``, by seed, epoch and purpose.

    The same on every machine and for every slice asked for; neither memory nor the time to set it
    up grows with ``count``.

    Args:
        count: number of things, below 2**62.
        seed: the run's seed.
        epoch: the pass over the data; every pass has its own order.
        purpose: what is ordered, so that documents and rows have independent orders.

    >>> order = Permutation(5, seed=0, epoch=0)
    >>> order(np.arange(5)).tolist()
    [3, 4, 2, 1, 0]
    >>> order(np.array([3])).tolist()
    [1]
    >>> int(Permutation(10**12, seed=0)(np.array([7]))[0])
    645854981732
    """

    def __init__(self, count: int, seed: int, epoch: int = 0, purpose: str = "documents"):
        if not 0 < count < 1 << 62:
            raise ValueError(f"count: found {count}, expected 1 to 2**62 - 1")
        self.count = count
        bits = max(2, (count - 1).bit_length())
        self._right_bits = np.uint64(bits - bits // 2)
        self._left_mask = np.uint64((1 << (bits // 2)) - 1)
        self._right_mask = np.uint64((1 << (bits - bits // 2)) - 1)
        digest = hashlib.blake2b(f"{purpose}\0{seed}\0{epoch}".encode(), digest_size=8 * ROUNDS)
        self._keys = np.frombuffer(digest.digest(), dtype="<u8").astype(np.uint64)

    def __call__(self, places: Int64[np.ndarray, "n"]) -> Int64[np.ndarray, "n"]:
        """Which thing stands at each of ``places``, all within ``[0, count)``."""
        assert places.size == 0 or (places.min() >= 0 and places.max() < self.count)
        if len(places) <= CHUNK:
            return self._walk(places)
        starts = range(0, len(places), CHUNK)
        return np.concatenate([self._walk(places[first : first + CHUNK]) for first in starts])

    def _walk(self, places: Int64[np.ndarray, "n"]) -> Int64[np.ndarray, "n"]:
        values = self._network(places.astype(np.uint64))
        outside = np.flatnonzero(values >= self.count)
        while outside.size:
            values[outside] = self._network(values[outside])
            outside = outside[values[outside] >= self.count]
        return values.astype(np.int64)

    def _network(self, values: UInt64[np.ndarray, "n"]) -> UInt64[np.ndarray, "n"]:
        left, right = values >> self._right_bits, values & self._right_mask
        mixed, shifted = np.empty_like(values), np.empty_like(values)
        for number, key in enumerate(self._keys):
            into, from_, mask = (
                (left, right, self._left_mask)
                if number % 2 == 0
                else (right, left, self._right_mask)
            )
            np.bitwise_xor(from_, key, out=mixed)
            _mix_in_place(mixed, shifted)
            np.bitwise_and(mixed, mask, out=mixed)
            np.bitwise_xor(into, mixed, out=into)
        return (left << self._right_bits) | right


def mix(values: UInt64[np.ndarray, "n"]) -> UInt64[np.ndarray, "n"]:
    """The 64-bit finaliser of SplitMix64: a bijection after which every bit depends on every bit.

    Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
    """
    mixed = values.copy()
    _mix_in_place(mixed, np.empty_like(mixed))
    return mixed


def _mix_in_place(values: UInt64[np.ndarray, "n"], scratch: UInt64[np.ndarray, "n"]) -> None:
    for shift, factor in zip(_SHIFTS, (*_FACTORS, None), strict=True):
        np.right_shift(values, shift, out=scratch)
        np.bitwise_xor(values, scratch, out=values)
        if factor is not None:
            np.multiply(values, factor, out=values)
