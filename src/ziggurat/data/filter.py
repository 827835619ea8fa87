"""Which documents of a token store are used: split, filter and duplicates, as one mask.

The order is fixed: first the split, by a hash of the document's text; then the filter; then
duplicates, that were found among all documents of the data. So no setting of the filter moves a
document from training to evaluation, and no document of one split is a duplicate of the other's.
"""

import dataclasses
import logging
from pathlib import Path
from typing import Literal

import numpy as np
import xxhash
from jaxtyping import Bool, Int64

from ziggurat.core import atomic, config
from ziggurat.core.errors import DataError
from ziggurat.data.store import TokenStore, drawn

logger = logging.getLogger(__name__)

Split = Literal["train", "eval"]


@config.node
class Filter:
    """Settings of leaving out documents; token counts include the begin and end tokens."""

    min_tokens: int = 1
    """Leave out documents with fewer tokens."""
    max_tokens: int | None = None
    """Leave out documents with more tokens."""
    min_learned: int = 0
    """Leave out documents with fewer tokens that are learned as targets."""
    share: float = 1.0
    """Share of the documents that stays, chosen by a hash of their text."""

    def __post_init__(self) -> None:
        config.require(self.min_tokens >= 1, "min_tokens", self.min_tokens, "at least 1")
        most = self.max_tokens
        good = most is None or most >= self.min_tokens
        config.require(good, "max_tokens", most, f"at least min_tokens = {self.min_tokens}")
        config.require(self.min_learned >= 0, "min_learned", self.min_learned, "0 or more")
        config.require(0.0 < self.share <= 1.0, "share", self.share, "above 0 and at most 1")

    def takes_length(self, tokens: int) -> bool:
        """Whether the filter keeps a document of this many tokens."""
        return self.min_tokens <= tokens and (self.max_tokens is None or tokens <= self.max_tokens)


def left_out(store: TokenStore, node: Filter) -> dict[str, Bool[np.ndarray, "documents"]]:
    """Documents that each active rule of the filter leaves out."""
    against: dict[str, np.ndarray] = {}
    lengths = np.diff(store.offsets)
    if node.min_tokens > 1:
        against["min_tokens"] = lengths < node.min_tokens
    if node.max_tokens is not None:
        against["max_tokens"] = lengths > node.max_tokens
    if node.min_learned:
        against["min_learned"] = _learned(store) < node.min_learned
    if node.share < 1.0:
        against["share"] = ~_sampled(store, node.share)
    return against


def _learned(store: TokenStore) -> Int64[np.ndarray, "documents"]:
    """Tokens of each document that are learned: the first is nobody's target."""
    if store.learn is None:
        return np.diff(store.offsets) - 1
    firsts = store.offsets[:-1]
    counted = np.add.reduceat(store.learn, firsts, dtype=np.int64)
    return counted - store.learn[firsts]


def _sampled(store: TokenStore, share: float) -> Bool[np.ndarray, "documents"]:
    return drawn(store.identities, share, "share")


@dataclasses.dataclass(frozen=True)
class Selection:
    """The documents of a store that one split uses."""

    documents: int
    filtered: dict[str, int]
    """Documents of the split that each rule of the filter is against."""
    duplicates: int
    """Documents of the split that pass the filter and were there before."""
    digest: str
    """Digest of the documents' numbers; ``all`` if it is every document."""
    path: Path | None
    """Where the numbers are kept; None if it is every document."""
    numbers: Int64[np.ndarray, "documents"] | None

    def __reduce__(self):
        facts = (self.documents, self.filtered, self.duplicates, self.digest, self.path)
        return _reopen, facts


def _reopen(
    documents: int, filtered: dict[str, int], duplicates: int, digest: str, path: Path | None
) -> Selection:
    numbers = None if path is None else _open(path)
    return Selection(documents, filtered, duplicates, digest, path, numbers)


def _open(path: Path) -> Int64[np.ndarray, "documents"]:
    return np.asarray(np.load(path / "numbers.npy", mmap_mode="r"))


def choose(
    store: TokenStore,
    node: Filter,
    fraction: float,
    split: Split,
    unique: Bool[np.ndarray, "documents"] | None,
    cache: Path,
    name: str = "",
) -> Selection | None:
    """Documents that ``split`` uses; ``None`` if evaluation has none.

    Args:
        store: the documents.
        node: the filter.
        fraction: share held out for evaluation.
        split: which side of it.
        unique: which documents are no duplicates; None for all.
        cache: where the numbers are kept, so that all processes map one file.
        name: of the component, for the error.

    Raises:
        DataError: no document is left for training.
    """
    inside = store.held_out(fraction) == (split == "eval")
    against = left_out(store, node)
    passed = inside & ~np.any(list(against.values()), axis=0) if against else inside
    chosen = passed if unique is None else passed & unique
    counted = {rule: int((inside & mask).sum()) for rule, mask in against.items()}
    documents = int(chosen.sum())
    duplicates = int(passed.sum()) - documents
    if documents == 0:
        if split == "eval":
            return None
        raise nothing(split, len(store), fraction, counted | {"duplicates": duplicates}, name)
    if documents == len(store):
        return Selection(documents, counted, duplicates, "all", None, None)
    numbers = np.flatnonzero(chosen).astype(np.int64)
    digest = xxhash.xxh3_128_hexdigest(numbers.tobytes())
    path = cache / f"selection-{digest}"
    _keep(path, numbers)
    return Selection(documents, counted, duplicates, digest, path, _open(path))


def nothing(
    split: Split, documents: int, fraction: float, left_out: dict[str, int], name: str = ""
) -> DataError:
    """Error for a split without documents, with the number that each rule left out."""
    of = f" of {name}" if name else ""
    found = f"none of {documents} documents at eval_fraction {fraction:g}"
    for rule, count in left_out.items():
        found += f", {rule} leaves out {count}" if count else ""
    if any(left_out.values()):
        fix = "loosen data.filter or data.dedup, or add documents"
    else:
        fix = f"{'raise' if split == 'eval' else 'lower'} eval_fraction or add documents"
    return DataError(f"{split} split{of}", found=found, expected="at least one document", fix=fix)


def _keep(path: Path, numbers: Int64[np.ndarray, "documents"]) -> None:
    if path.exists():
        try:
            if len(_open(path)) == len(numbers):
                return
        except (OSError, ValueError) as error:
            logger.warning("selection %s: %s; made anew", path, error)
        atomic.remove_directory(path)
    try:
        with atomic.new_directory(path) as directory:
            np.save(directory / "numbers.npy", numbers)
    except OSError:
        if not path.exists():  # else another process made it
            raise
