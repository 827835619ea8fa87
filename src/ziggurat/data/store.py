"""The token store: every document tokenised once, then read from disk as one array.

A store is a directory, named by a digest of what it was made from, that exists wholly or not at
all:

* ``tokens.bin``: all documents' tokens end to end, little-endian uint16 if the vocabulary fits,
  else uint32; each document starts with bos if the tokenizer adds one and ends with eos.
* ``learn.bin``, only where a part of the documents is learned: uint8, 1 for each token that is
  learned as a target.
* ``offsets.npy``: int64 ``[n + 1]``; document i is ``tokens[offsets[i]:offsets[i + 1]]``.
* ``files.npy``, ``records.npy``: uint32 and int64 ``[n]``; each document's file number and record.
* ``identities.npy``: uint64 ``[n]``; a hash of each document's text.
* ``margins.npy``, only where records have one: float32 ``[n]``, NaN for those without.
* ``meta.json``: format, digests, token width, counts, file names, what reading left out.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from jaxtyping import Bool, Float32, Int64, Integer, UInt8, UInt32, UInt64

from ziggurat.core import atomic
from ziggurat.core.errors import DataError
from ziggurat.core.json_types import JsonObject
from ziggurat.core.protocols import Tokenizer
from ziggurat.data import conversation, joining, prepare
from ziggurat.data.encode import DocumentEncoder
from ziggurat.data.order import mix
from ziggurat.data.prepare import Progress
from ziggurat.data.sources import Document, Source, SourceFile, list_files, reading, signature

logger = logging.getLogger(__name__)

FORMAT = 5
PARTS = ".parts"
"""Ending of the directory in which a store's parts are made."""


@dataclasses.dataclass(frozen=True)
class TokenStore:
    """Tokenised documents, memory-mapped."""

    path: Path
    meta: JsonObject
    tokens: Integer[np.ndarray, "n"]
    offsets: Int64[np.ndarray, "documents_plus_1"]
    files: UInt32[np.ndarray, "documents"]
    records: Int64[np.ndarray, "documents"]
    identities: UInt64[np.ndarray, "documents"]
    """Digests of the documents' texts, see :attr:`ziggurat.data.sources.Document.identity`."""
    learn: UInt8[np.ndarray, "n"] | None = None
    """1 where a token is learned as a target; None if all are."""
    margins: Float32[np.ndarray, "documents"] | None = None
    """By how much an answer should score more than the other of its record; NaN where a record
    does not say, None where none does."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __reduce__(self):
        return open_store, (self.path,)

    @property
    def content(self) -> str:
        """Digest of tokens and document borders, which does not depend on where the store was
        made."""
        return self.meta["content"]

    def document(self, number: int) -> Integer[np.ndarray, "t"]:
        """The tokens of one document."""
        return self.tokens[self.offsets[number] : self.offsets[number + 1]]

    def identity(self, number: int) -> tuple[str, int]:
        """The file and record of one document."""
        return self.meta["files"][self.files[number]], int(self.records[number])

    def held_out(self, fraction: float) -> Bool[np.ndarray, "documents"]:
        """Which documents belong to evaluation: those whose identity hashes below ``fraction``.

        It depends on nothing but a document's text, so a document stays on its side whatever else
        the corpus gains or loses, wherever its file lies, and whatever the seed is; copies of it
        are on the same side.
        """
        return drawn(self.identities, fraction, "evaluation")

    def verify(self) -> None:
        """Read everything and compare it with the digest made at writing.

        Raises:
            DataError: the store was changed.
        """
        digest = xxhash.xxh3_128()
        _update(digest, self.tokens)
        _update(digest, self.offsets)
        if self.learn is not None:
            _update(digest, self.learn)
        if self.margins is not None:
            _update(digest, self.margins)
        if digest.hexdigest() != self.content:
            raise DataError(
                f"token store {self.path}",
                found=f"content {digest.hexdigest()}",
                expected=self.content,
                fix="delete the directory, it is made anew",
            )


def _update(digest: Any, values: np.ndarray) -> None:
    """Add an array's bytes to a digest without holding them all in memory."""
    for start in range(0, len(values), 1 << 20):
        digest.update(np.ascontiguousarray(values[start : start + (1 << 20)]).data)


def is_held_out(document: Document, fraction: float) -> bool:
    """Whether one document outside a store is held out, by the rule that the store follows."""
    return bool(drawn(np.array([document.identity], np.uint64), fraction, "evaluation")[0])


def drawn(identities: UInt64[np.ndarray, "n"], share: float, purpose: str) -> Bool[np.ndarray, "n"]:
    """Choose a share of documents by their identities; each purpose gets another choice."""
    salt = hashlib.blake2b(purpose.encode(), digest_size=8).digest()
    hashes = mix(identities ^ np.frombuffer(salt, "<u8").astype(np.uint64))
    return hashes < np.uint64(int(share * 2.0**53) << 11)


def tokenise(
    sources: Sequence[Source],
    tokenizer: Tokenizer,
    cache: Path,
    progress: Progress | None = None,
    workers: int = 0,
) -> TokenStore:
    """Open the token store of these sources and this tokenizer, and make it if it is not in the
    cache.

    It is there if the tokenizer, the sources' settings and all files' names, sizes and times are
    the same. Several processes may call this at once on one directory: one works, the others wait.
    A process that is killed leaves finished parts behind, and the next one resumes from them. The
    store's bytes depend neither on kills nor on ``workers``.

    Args:
        sources: where documents come from.
        tokenizer: must have eos, and a ``digest`` of what decides its ids.
        cache: directory of stores.
        progress: called now and then.
        workers: processes that read and tokenise; 0 does it in this one.

    Raises:
        DataError: as :func:`ziggurat.data.sources.read`; the tokenizer has no eos, no digest, or no
            chat template where sources hold conversations; or worker processes died repeatedly.
    """
    listed = [list_files(source) for source in sources]
    key = _key(sources, listed, tokenizer)
    path = cache / f"tokens-{key}"
    staging = path.with_name(path.name + PARTS)
    found = _existing(path)
    if found is not None and not staging.exists():
        reading.warn_of_straddling(found.meta["report"]["straddling"], len(found))
        return found
    with prepare.lock(staging):
        found = _existing(path)  # made while this process waited, or before one died cleaning up
        if found is None:
            _make(path, staging, sources, listed, tokenizer, key, progress, workers)
        prepare.discard(staging)
    return open_store(path)


def _existing(path: Path) -> TokenStore | None:
    """The store if it is there; a damaged one is removed."""
    if not path.exists():
        return None
    try:
        return open_store(path)
    except DataError as error:
        logger.warning("%s; made anew", error)
        with contextlib.suppress(FileNotFoundError):
            atomic.remove_directory(path)
        return None


def _make(
    path: Path,
    staging: Path,
    sources: Sequence[Source],
    listed: Sequence[Sequence[SourceFile]],
    tokenizer: Tokenizer,
    key: str,
    progress: Progress | None,
    workers: int,
) -> None:
    logger.info("tokenising into %s", path)
    for left in path.parent.glob(f"{path.name}{atomic.TEMPORARY}*"):
        shutil.rmtree(left, ignore_errors=True)  # what a process killed while joining left
    learn = any(_learns_parts(source) for source in sources)
    units = reading.units(sources, listed)
    parts = prepare.make_parts(sources, units, tokenizer, staging, learn, progress, workers)
    try:
        chosen = joining.choose(sources, units, parts)
        with atomic.new_directory(path) as directory:
            meta = joining.join(sources, chosen, directory, DocumentEncoder(tokenizer).dtype, learn)
            whole = {"format": FORMAT, "key": key, "vocab_size": tokenizer.vocab_size, **meta}
            (directory / "meta.json").write_text(json.dumps(whole, indent=1), encoding="utf-8")
    except DataError:
        # Another file or setting is needed, and with it another store: these parts serve nobody.
        prepare.discard(staging)
        raise


def open_store(path: Path) -> TokenStore:
    """Map an existing store.

    Raises:
        DataError: a file is missing or has another size than it should.
    """
    try:
        meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
        if meta["format"] != FORMAT:
            raise ValueError(f"format {meta['format']}")
        tokens = np.memmap(path / "tokens.bin", dtype=meta["dtype"], mode="r")
        offsets = np.load(path / "offsets.npy", mmap_mode="r")
        files = np.load(path / "files.npy", mmap_mode="r")
        records = np.load(path / "records.npy", mmap_mode="r")
        learn = None
        if meta["learn"]:
            learn = np.memmap(path / "learn.bin", dtype=np.uint8, mode="r")
            if len(learn) != len(tokens):
                raise ValueError(f"{len(learn)} marks of {len(tokens)} tokens")
        margins = np.load(path / "margins.npy") if meta["margins"] else None
        identities = np.load(path / "identities.npy", mmap_mode="r")
        sizes = (len(tokens), len(offsets) - 1, len(files), len(records), len(identities))
        if sizes != (meta["tokens"], *[meta["documents"]] * 4) or offsets[-1] != len(tokens):
            raise ValueError(f"sizes {sizes}")
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"token store {path}", found=error, expected="a whole store", fix="delete the directory"
        ) from None
    # Plain views: indexing an np.memmap itself costs more than the copy.
    return TokenStore(
        path,
        meta,
        np.asarray(tokens),
        np.asarray(offsets),
        np.asarray(files),
        np.asarray(records),
        np.asarray(identities),
        None if learn is None else np.asarray(learn),
        margins,
    )


def _key(
    sources: Sequence[Source], listed: Sequence[Sequence[SourceFile]], tokenizer: Tokenizer
) -> str:
    digest = getattr(tokenizer, "digest", None)
    if not isinstance(digest, str):
        raise DataError(
            f"tokenizer {type(tokenizer).__name__}",
            found="no digest",
            expected="a property digest, by which cached tokens are found again",
        )
    encoder = DocumentEncoder(tokenizer)
    parts: list[Any] = [FORMAT, digest, encoder.prefix, encoder.eos, signature(sources, listed)]
    if any(_content(source) == "messages" for source in sources):
        conversation.template_of(tokenizer)  # refuses a tokenizer without one before reading
    parts += conversation.decided_by(sources, tokenizer)
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=12).hexdigest()


def _content(source: Source) -> str:
    return getattr(source, "content", "text")


def _learns_parts(source: Source) -> bool:
    return _content(source) != "text"
