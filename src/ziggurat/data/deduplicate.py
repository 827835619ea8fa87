"""Duplicates among tokenised documents: exact ones by digest, near ones by MinHash and LSH.

What is compared are tokens, so it works on token stores alone. Of the sets A and B of two
documents' n-grams, a MinHash of k permutations estimates the Jaccard similarity
``|A & B| / |A | B|`` as the share of permutations whose least values agree, with standard error
``sqrt(J (1 - J) / k)``. Documents that agree in a whole band of permutations are compared; bands
are chosen for the threshold, such that few near ones share none. Broder, "On the resemblance and
containment of documents", 1997; Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets",
chapter 3.
"""

import collections
import dataclasses
import hashlib
import itertools
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from jaxtyping import Bool, Int64, UInt32, UInt64

from ziggurat.core import atomic, config
from ziggurat.core.json_types import Json, JsonObject
from ziggurat.data.order import mix
from ziggurat.data.store import Progress, TokenStore

logger = logging.getLogger(__name__)

FORMAT = 1
CHUNK_TOKENS = 1 << 18
SHOWN_PAIRS = 20


@config.node
class Deduplicate:
    """Settings of leaving out duplicate documents."""

    exact: bool = True
    """Leave out documents whose tokens all equal an earlier document's."""
    near: bool = False
    """Leave out documents that share most of their n-grams with an earlier one."""
    threshold: float = 0.8
    """Estimated Jaccard similarity of the sets of n-grams from which documents are near."""
    ngram: int = 5
    """Tokens in an n-gram."""
    permutations: int = 128
    """Hash functions of a MinHash; the estimate's error is about one over their root."""

    def __post_init__(self) -> None:
        config.require(
            self.exact or self.near, "exact", self.exact, "exact or near; else leave the table out"
        )
        config.require(
            0.0 < self.threshold <= 1.0, "threshold", self.threshold, "above 0 and at most 1"
        )
        config.require(self.ngram >= 1, "ngram", self.ngram, "at least 1")
        config.require(
            16 <= self.permutations <= 1024, "permutations", self.permutations, "16 to 1024"
        )


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """Documents that stay, with the duplicates found."""

    keep: list[Bool[np.ndarray, "_documents"]]
    """For each store, its documents that stay."""
    report: JsonObject
    """``documents``, ``exact`` and ``near`` duplicates among them, and ``pairs``: some duplicates,
    each with its original as (file, record) and the estimated similarity."""


def keep(
    stores: Sequence[TokenStore],
    node: Deduplicate,
    cache: Path,
    progress: Progress | None = None,
) -> list[Bool[np.ndarray, "_documents"]]:
    """Masks of the documents that stay in each store; see :func:`duplicates`."""
    return duplicates(stores, node, cache, progress).keep


def duplicates(
    stores: Sequence[TokenStore],
    node: Deduplicate,
    cache: Path,
    progress: Progress | None = None,
) -> Duplicates:
    """Find duplicates over all stores; of equal or near documents the first one stays.

    A document is near if its estimated similarity to one that stays reaches the threshold; which
    of its tokens are learned plays no part. The result is a function of the stores' tokens and the
    node, and kept in the cache. It takes 16 bytes of memory per document, about 30 while they are
    sorted; near ones take 4 bytes per permutation and document on disk meanwhile.

    Args:
        stores: of one tokenizer, in the order in which the first one counts.
        node: what counts as a duplicate.
        cache: directory for the result.
        progress: called with the documents and tokens looked at so far, of each pass anew.

    >>> import tempfile
    >>> from ziggurat.data.sources import TextFiles
    >>> from ziggurat.data.store import tokenise
    >>> from ziggurat.data.tokenizers import byte_level
    >>> with tempfile.TemporaryDirectory() as cache:
    ...     source = TextFiles(path="{stdlib}/json", glob="*.py")
    ...     store = tokenise([source, source], byte_level(), Path(cache))
    ...     found = duplicates([store], Deduplicate(), Path(cache))
    >>> found.keep[0].tolist(), found.report["exact"]
    ([True, True, True, True, True, False, False, False, False, False], 5)
    """
    parts = [FORMAT, [store.content for store in stores], config.to_plain(node)]
    key = hashlib.blake2b(json.dumps(parts).encode(), digest_size=12).hexdigest()
    path = cache / f"duplicates-{key}"
    total = sum(len(store) for store in stores)
    if path.exists() and _read(path, total) is None:
        logger.warning("%s is damaged; made anew", path)
        atomic.remove_directory(path)
    if not path.exists():
        try:
            with atomic.new_directory(path) as directory:
                _find(stores, node, directory, progress)
        except OSError:
            if not path.exists():
                raise
    found = _read(path, total)
    assert found is not None, "just made"
    flags, rows = found
    ends = np.cumsum([len(store) for store in stores])
    report = {**rows, "pairs": [_shown(stores, ends, pair) for pair in rows["pairs"]]}
    return Duplicates(np.split(flags, ends[:-1]), report)


def _read(path: Path, total: int) -> tuple[np.ndarray, JsonObject] | None:
    """The flags of all documents and the report as stored; None if they are not whole."""
    try:
        flags = np.load(path / "keep.npy")
        report = json.loads((path / "report.json").read_text(encoding="utf-8"))
        return (flags, report) if flags.shape == (total,) and flags.dtype == bool else None
    except (OSError, EOFError, ValueError):
        return None


def _find(
    stores: Sequence[TokenStore], node: Deduplicate, directory: Path, progress: Progress | None
) -> None:
    total = sum(len(store) for store in stores)
    first = _exact(stores, progress) if node.exact else np.arange(total)
    flags = first == np.arange(total)
    copies = np.flatnonzero(~flags)
    pairs = [(int(first[i]), int(i), 1.0) for i in copies[: SHOWN_PAIRS // 2]]
    near: list[tuple[int, int, float]] = []
    if node.near:
        near = _near(stores, np.flatnonzero(flags), node, directory, progress)
        flags[[number for _, number, _ in near]] = False
        pairs += near[: SHOWN_PAIRS - len(pairs)]
    report = {"documents": total, "exact": len(copies), "near": len(near), "pairs": pairs}
    np.save(directory / "keep.npy", flags)
    (directory / "report.json").write_text(json.dumps(report), encoding="utf-8")
    logger.info("of %d documents %d are exact and %d near duplicates", *list(report.values())[:3])


def _shown(stores: Sequence[TokenStore], ends: np.ndarray, pair: Sequence[Json]) -> JsonObject:
    places = []
    for number in pair[:2]:
        which = int(np.searchsorted(ends, number, "right"))
        places.append(stores[which].identity(int(number - ends[which] + len(stores[which]))))
    return {"original": places[0], "duplicate": places[1], "similarity": round(pair[2], 3)}


def _wide(stores: Sequence[TokenStore]) -> np.dtype:
    """One token width for all, lest equal documents of two stores differ in bytes."""
    return np.result_type(*(store.tokens.dtype for store in stores))


def _exact(stores: Sequence[TokenStore], progress: Progress | None) -> Int64[np.ndarray, "n"]:
    """For each document the first that equals it."""
    dtype, digests, tokens = _wide(stores), [], 0
    for store in stores:
        found = np.empty((len(store), 2), np.uint64)
        for begin, end in _chunks(store.offsets):
            borders = store.offsets[begin : end + 1]
            block = np.ascontiguousarray(store.tokens[borders[0] : borders[-1]], dtype)
            view: Any = memoryview(block.view(np.uint8))  # type: ignore[arg-type]
            places = (borders - borders[0]) * dtype.itemsize
            starts = places.tolist()
            joined = b"".join(
                xxhash.xxh3_128_digest(view[start:stop])
                for start, stop in itertools.pairwise(starts)
            )
            found[begin:end] = np.frombuffer(joined, np.uint64).reshape(-1, 2)
            tokens += len(block)
            if progress is not None:
                progress(sum(map(len, digests)) + end, tokens)
        digests.append(found)
    high, low = np.concatenate(digests).T
    order = np.lexsort((low, high))  # stable: the first of equals comes first
    same = (high[order[1:]] == high[order[:-1]]) & (low[order[1:]] == low[order[:-1]])
    leads = np.concatenate([[0], np.where(same, 0, np.arange(1, len(order)))])
    first = np.empty(len(order), np.int64)
    first[order] = order[np.maximum.accumulate(leads)]
    return first


def _near(
    stores: Sequence[TokenStore],
    numbers: np.ndarray,
    node: Deduplicate,
    directory: Path,
    progress: Progress | None,
) -> list[tuple[int, int, float]]:
    """(original, duplicate, estimated similarity) among the documents ``numbers``."""
    from datasketch import MinHash

    a, b = np.asarray(MinHash(node.permutations, seed=1).permutations)
    shape = (len(numbers), node.permutations)
    file = directory / "signatures.bin"
    signatures = np.memmap(file, np.uint32, "w+", shape=shape)
    row = tokens = base = 0
    for store in stores:
        end = base + len(store)
        mine = numbers[np.searchsorted(numbers, base) : np.searchsorted(numbers, end)] - base
        lengths = store.offsets[mine + 1] - store.offsets[mine]
        for begin, stop in _chunks(np.concatenate([[0], np.cumsum(lengths)])):
            block = [store.document(number) for number in mine[begin:stop].tolist()]
            grams, starts = shingles(block, node.ngram)
            signatures[row : row + len(block)] = minhashes(grams, starts, a, b)
            row, tokens = row + len(block), tokens + int(lengths[begin:stop].sum())
            if progress is not None:
                progress(row, tokens)
        base = end
    rows = band_rows(node.threshold, node.permutations)
    found = _matches(signatures, node.permutations // rows, rows, node.threshold)
    del signatures
    file.unlink()
    return [(int(numbers[i]), int(numbers[j]), share) for i, j, share in found]


def shingles(
    documents: Sequence[np.ndarray], ngram: int
) -> tuple[UInt32[np.ndarray, "grams"], Int64[np.ndarray, "documents"]]:
    """Hashes of all n-grams of tokens, and where each document's begin.

    A document shorter than n tokens has one, the whole of it.
    """
    lengths = np.array([len(document) for document in documents], np.int64)
    ends = np.cumsum(lengths)
    starts = ends - lengths
    tokens = np.concatenate(documents).astype(np.uint64) + np.uint64(1)
    padded = np.concatenate([tokens, np.zeros(ngram, np.uint64)])
    with np.errstate(over="ignore"):
        hashes = _polynomial([padded[j : j + len(tokens)] for j in range(ngram)])
        short = np.flatnonzero(lengths < ngram)
        places = starts[short, None] + np.arange(ngram)
        inside = np.where(places < ends[short, None], padded[places], np.uint64(0))
        hashes[starts[short]] = _polynomial(list(inside.T))
    whole = np.arange(len(tokens)) <= np.repeat(ends - ngram, lengths)
    whole[starts[short]] = True
    counts = np.maximum(lengths - ngram + 1, 1)
    grams = (mix(hashes[whole]) >> np.uint64(32)).astype(np.uint32)
    return grams, np.cumsum(counts) - counts


def minhashes(
    grams: UInt32[np.ndarray, "grams"],
    starts: Int64[np.ndarray, "documents"],
    a: UInt32[np.ndarray, "permutations"],
    b: UInt32[np.ndarray, "permutations"],
) -> UInt32[np.ndarray, "documents permutations"]:
    """The least value of each document's hashes under each permutation ``a h + b mod 2^32``.

    The same as ``datasketch.MinHash`` of scheme affine32, for many documents at once.
    """
    least = np.empty((len(starts), len(a)), np.uint32)
    with np.errstate(over="ignore"):
        mixed = grams ^ (grams >> np.uint32(16))
        mixed *= np.uint32(0x85EBCA6B)
        mixed ^= mixed >> np.uint32(13)
        mixed *= np.uint32(0xC2B2AE35)
        mixed ^= mixed >> np.uint32(16)
        values = np.empty_like(mixed)
        for number in range(len(a)):
            np.multiply(mixed, a[number], out=values)
            values += b[number]
            least[:, number] = np.minimum.reduceat(values, starts)
    return least


def band_rows(threshold: float, permutations: int, recall: float = 0.9) -> int:
    """Permutations in a band: the most with which documents just at the threshold share one of the
    ``b = k // r`` bands with probability ``1 - (1 - J^r)^b`` of at least ``recall``.

    What shares a band is compared, so sharing too often only takes time.

    >>> band_rows(0.8, 128), band_rows(0.5, 128)
    (8, 3)
    """
    rows = range(permutations, 1, -1)
    enough = (r for r in rows if (1 - threshold**r) ** (permutations // r) <= 1 - recall)
    return next(enough, 1)


def _matches(
    signatures: np.ndarray, bands: int, rows: int, threshold: float
) -> list[tuple[int, int, float]]:
    """(original, duplicate, share of equal values), in the duplicates' order.

    A document is compared with those before it that stay and share a band with it.
    """
    members, buckets = _buckets(signatures, bands, rows)
    order = np.argsort(members, kind="stable")
    members, buckets = members[order], buckets[order]
    borders = np.flatnonzero(np.diff(members, prepend=-1)).tolist()
    standing: dict[int, list[int]] = collections.defaultdict(list)
    found = []
    for begin, end in itertools.pairwise([*borders, len(members)]):
        number, mine = int(members[begin]), buckets[begin:end].tolist()
        candidates = sorted({other for bucket in mine for other in standing[bucket]})
        if candidates:
            shares = (signatures[candidates] == signatures[number]).mean(axis=1)
            best = int(np.argmax(shares >= threshold))
            if shares[best] >= threshold:
                found.append((candidates[best], number, float(shares[best])))
                continue
        for bucket in mine:
            standing[bucket].append(number)
    return found


def _buckets(
    signatures: np.ndarray, bands: int, rows: int
) -> tuple[Int64[np.ndarray, "m"], Int64[np.ndarray, "m"]]:
    """Documents that share a whole band with another, and a number for what they share."""
    members, buckets, base = [np.empty(0, np.int64)], [np.empty(0, np.int64)], 0
    for band in range(bands):
        columns = signatures[:, band * rows : (band + 1) * rows].T.astype(np.uint64)
        with np.errstate(over="ignore"):
            keys = mix(_polynomial(list(columns)))
        order = np.argsort(keys, kind="stable")
        fresh = np.diff(keys[order], prepend=~keys[order[:1]]) != 0
        groups = np.cumsum(fresh) - 1
        shared = np.bincount(groups, minlength=1)[groups] > 1
        members.append(order[shared])
        buckets.append(groups[shared] + base)
        base += len(order)
    return np.concatenate(members), np.concatenate(buckets)


def _polynomial(columns: Sequence[np.ndarray]) -> UInt64[np.ndarray, "n"]:
    """A 64-bit hash of several columns of numbers."""
    hashes = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        hashes = (hashes ^ column) * np.uint64(0x9E3779B97F4A7C15)
        hashes ^= hashes >> np.uint64(29)
    return hashes


def _chunks(offsets: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of documents with about ``CHUNK_TOKENS`` tokens, at least one document each."""
    begin, last = 0, len(offsets) - 1
    while begin < last:
        end = int(np.searchsorted(offsets, offsets[begin] + CHUNK_TOKENS, "right")) - 1
        end = min(max(end, begin + 1), last)
        yield begin, end
        begin = end
