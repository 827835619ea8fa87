"""The token store: every document tokenised once, then read from disk as one array.

A store is a directory, named by a digest of what it was made from, that exists wholly or not at
all:

* ``tokens.bin``: all documents' tokens end to end, little-endian uint16 if the vocabulary fits,
  else uint32; each document starts with bos if the tokenizer adds one and ends with eos.
* ``offsets.npy``: int64 ``[n + 1]``; document i is ``tokens[offsets[i]:offsets[i + 1]]``.
* ``files.npy``, ``records.npy``: uint32 and int64 ``[n]``; each document's file number and record.
* ``meta.json``: format, digests, token width, counts, file names, what reading left out.
"""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from jaxtyping import Bool, Int64, Integer, UInt32, UInt64

from ziggurat.core import atomic
from ziggurat.core.errors import DataError
from ziggurat.core.protocols import Tokenizer
from ziggurat.data import sources as sources_
from ziggurat.data.order import mix
from ziggurat.data.sources import Document, JsonLines, Parquet, ReadReport, TextFiles

logger = logging.getLogger(__name__)

FORMAT = 1
CHUNK_CHARACTERS = 4_000_000
CHUNK_DOCUMENTS = 4096

Progress = Callable[[int, int], None]
"""Called with the documents and tokens done so far."""


@dataclasses.dataclass(frozen=True)
class TokenStore:
    """Tokenised documents, memory-mapped."""

    path: Path
    meta: dict[str, Any]
    tokens: Integer[np.ndarray, "n"]
    offsets: Int64[np.ndarray, "documents_plus_1"]
    files: UInt32[np.ndarray, "documents"]
    records: Int64[np.ndarray, "documents"]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __reduce__(self):
        return open_store, (self.path,)

    @property
    def content(self) -> str:
        """Digest of tokens and document borders: the same wherever the store was made."""
        return self.meta["content"]

    def document(self, number: int) -> Integer[np.ndarray, "t"]:
        """The tokens of one document."""
        return self.tokens[self.offsets[number] : self.offsets[number + 1]]

    def identity(self, number: int) -> tuple[str, int]:
        """The file and record of one document."""
        return self.meta["files"][self.files[number]], int(self.records[number])

    def held_out(self, fraction: float) -> Bool[np.ndarray, "documents"]:
        """Which documents belong to evaluation: those whose identity hashes below ``fraction``.

        It depends on nothing but a document's file name and record, so a document stays on its side
        whatever else the corpus gains or loses, and whatever the seed is.
        """
        seeds = np.array([_file_hash(name) for name in self.meta["files"]], np.uint64)
        return _held_out(seeds[self.files], self.records, fraction)

    def verify(self) -> None:
        """Read everything and compare with the digest made at writing.

        Raises:
            DataError: the store was changed.
        """
        found = xxhash.xxh3_128(self.tokens.tobytes())
        found.update(self.offsets.tobytes())
        if found.hexdigest() != self.content:
            raise DataError(
                f"token store {self.path}",
                found=f"content {found.hexdigest()}",
                expected=self.content,
                fix="delete the directory, it is made anew",
            )


def is_held_out(document: Document, fraction: float) -> bool:
    """The same for one document that is not in a store."""
    seed, record = np.array([_file_hash(document.file)], np.uint64), np.array([document.record])
    return bool(_held_out(seed, record, fraction)[0])


def _file_hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _held_out(
    seeds: UInt64[np.ndarray, "n"], records: Int64[np.ndarray, "n"], fraction: float
) -> Bool[np.ndarray, "n"]:
    return mix(seeds ^ mix(records.astype(np.uint64))) < np.uint64(int(fraction * 2.0**53) << 11)


def tokenise(
    sources: Sequence[TextFiles | JsonLines | Parquet],
    tokenizer: Tokenizer,
    cache: Path,
    progress: Progress | None = None,
) -> TokenStore:
    """The store of these sources under this tokenizer: from the cache if it is there, else made.

    It is there if the tokenizer, the sources' settings and all files' names, sizes and times are
    the same. Several processes may call this at once on one directory.

    Args:
        sources: where documents come from.
        tokenizer: must have eos, and a ``digest`` of what decides its ids.
        cache: directory of stores.
        progress: called now and then.

    Raises:
        DataError: as :func:`ziggurat.data.sources.read`, or the tokenizer has no eos or no digest.
    """
    key = _key(sources, tokenizer)
    path = cache / f"tokens-{key}"
    if path.exists():
        try:
            return open_store(path)
        except DataError as error:
            logger.warning("%s; made anew", error)
            atomic.remove_directory(path)
    logger.info("tokenising into %s", path)
    try:
        with atomic.new_directory(path) as directory:
            _write(directory, sources, tokenizer, key, progress)
    except OSError:
        if not path.exists():
            raise
        logger.info("another process made %s", path)
    return open_store(path)


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
        sizes = (len(tokens), len(offsets) - 1, len(files), len(records))
        if sizes != (meta["tokens"], *[meta["documents"]] * 3) or offsets[-1] != len(tokens):
            raise ValueError(f"sizes {sizes}")
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"token store {path}", found=error, expected="a whole store", fix="delete the directory"
        ) from None
    # Plain views: indexing an np.memmap itself costs more than the copy.
    arrays = [np.asarray(array) for array in (tokens, offsets, files, records)]
    return TokenStore(path, meta, *arrays)


def _key(sources: Sequence[TextFiles | JsonLines | Parquet], tokenizer: Tokenizer) -> str:
    digest = getattr(tokenizer, "digest", None)
    if not isinstance(digest, str):
        raise DataError(
            f"tokenizer {type(tokenizer).__name__}",
            found="no digest",
            expected="a property digest, by which cached tokens are found again",
        )
    if not tokenizer.eos_ids:
        raise DataError(
            "tokenizer",
            found="no eos token",
            expected="one, to end documents",
            fix="set eos_token in tokenizer_config.json",
        )
    parts = [FORMAT, digest, _prefix(tokenizer), tokenizer.eos_ids[0], sources_.signature(sources)]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=12).hexdigest()


def _prefix(tokenizer: Tokenizer) -> list[int]:
    """``[bos]`` if the tokenizer itself puts it before a text."""
    added = tokenizer.encode("", add_special_tokens=True)
    return added[:1] if added and added[0] == tokenizer.bos_id else []


def _write(
    directory: Path,
    sources: Sequence[TextFiles | JsonLines | Parquet],
    tokenizer: Tokenizer,
    key: str,
    progress: Progress | None,
) -> None:
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    prefix, eos = _prefix(tokenizer), tokenizer.eos_ids[0]
    report, digest = ReadReport(), xxhash.xxh3_128()
    lengths, files, records = [], [], []
    names: dict[str, int] = {}
    total = 0
    with open(directory / "tokens.bin", "wb") as out:
        for chunk in _chunks(sources_.read(sources, report)):
            for document, ids in zip(chunk, _encode(tokenizer, chunk), strict=True):
                array = np.array([*prefix, *ids, eos], dtype=dtype)
                out.write(array.tobytes())
                digest.update(array.tobytes())
                lengths.append(len(array))
                files.append(names.setdefault(document.file, len(names)))
                records.append(document.record)
                total += len(array)
            if progress is not None:
                progress(len(lengths), total)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.array(lengths, np.int64))])
    digest.update(offsets.tobytes())
    np.save(directory / "offsets.npy", offsets)
    np.save(directory / "files.npy", np.array(files, np.uint32))
    np.save(directory / "records.npy", np.array(records, np.int64))
    meta = {
        "format": FORMAT,
        "key": key,
        "content": digest.hexdigest(),
        "dtype": dtype.str,
        "documents": len(lengths),
        "tokens": total,
        "vocab_size": tokenizer.vocab_size,
        "files": list(names),
        "report": dataclasses.asdict(report),
    }
    (directory / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")


def _encode(tokenizer: Tokenizer, chunk: list[Document]) -> list[list[int]]:
    texts = [document.text for document in chunk]
    batch = getattr(tokenizer, "encode_batch", None)
    return batch(texts) if batch is not None else [tokenizer.encode(text) for text in texts]


def _chunks(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Lists small enough for memory and large enough for all cores."""
    chunk: list[Document] = []
    characters = 0
    for document in documents:
        chunk.append(document)
        characters += len(document.text)
        if characters >= CHUNK_CHARACTERS or len(chunk) >= CHUNK_DOCUMENTS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk
