"""Parts of a token store: what one unit of work gives, on disk and checked, until all are joined.

A part is a directory that exists wholly or not at all: ``tokens.bin``, ``learn.bin`` where a part
of the text is learned, ``index.npz`` with each document's length, file and record and the places of
what was left out, and ``part.json`` with a digest of it all.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from ziggurat.core import atomic
from ziggurat.core.errors import DataError
from ziggurat.core.json_types import JsonObject
from ziggurat.core.storage import naming
from ziggurat.data.encode import DocumentEncoder, chunks
from ziggurat.data.sources import Document, Source
from ziggurat.data.sources.reading import Unit, records
from ziggurat.data.sources.records import SHOWN_FAULTS, Damaged

Tell = Callable[[int, int], None]
"""Called with the documents and tokens of the unit done so far."""


@dataclasses.dataclass(frozen=True)
class StorePart:
    """Output of one unit of work: a directory of tokens."""

    path: Path
    facts: JsonObject
    """Content of ``part.json``."""

    @property
    def documents(self) -> int:
        """Number of its documents."""
        return self.facts["documents"]

    @property
    def tokens(self) -> int:
        """Number of its tokens."""
        return self.facts["tokens"]

    @property
    def places(self) -> int:
        """Places of the last piece, blank ones included: lines of a range of lines."""
        return self.facts["places"]

    def failure(self, shift: int) -> DataError | None:
        """The error that ended reading; ``shift`` is the number of records before a range."""
        found = self.facts["failure"]
        if found is None:
            return None
        if "what" in found:
            return DataError(found["what"], **{k: v for k, v in found.items() if k != "what"})
        return Damaged(**found).error(shift)

    def faults(self, shift: int) -> list[tuple[int, str]]:
        """The first damaged records: documents before each, and its line."""
        return [(n, str(Damaged(**entry).error(shift))) for n, entry in self.facts["faults"]]

    def index(self) -> dict[str, np.ndarray]:
        """Arrays ``lengths``, ``files``, ``records``, ``identities``, ``straddles`` and
        ``margins`` (NaN: none) of the documents, and for empty and skipped records how many
        documents stand before each."""
        with np.load(self.path / "index.npz") as arrays:
            return dict(arrays)


@dataclasses.dataclass
class _Notes:
    """Damaged and empty records met while a unit was read."""

    documents: int = 0
    places: int = 0
    empty: array = dataclasses.field(default_factory=lambda: array("q"))
    skipped: array = dataclasses.field(default_factory=lambda: array("q"))
    faults: list[tuple[int, dict]] = dataclasses.field(default_factory=list)
    failure: JsonObject | None = None


def name_of(number: int) -> str:
    """Directory name of a unit's part."""
    return f"part-{number:06}"


def unit_digest(source: Source, unit: Unit) -> str:
    """Digest that tells one unit of work from another."""
    text = json.dumps([source.kind, dataclasses.astuple(unit)])
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def write_part(
    source: Source,
    unit: Unit,
    path: Path,
    encoder: DocumentEncoder,
    learn: bool,
    tell: Tell = lambda documents, tokens: None,
) -> StorePart:
    """Read and encode one unit into ``path``.

    A record that ends reading is no error here but stands in the part, for it may lie behind the
    last document that is wanted.
    """
    temporary = atomic.temporary_beside(path)
    temporary.mkdir()
    try:
        with naming(path):
            facts = _fill(temporary, source, unit, encoder, learn, tell)
            _appear(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return StorePart(path, facts)


def _fill(
    directory: Path, source: Source, unit: Unit, encoder: DocumentEncoder, learn: bool, tell: Tell
) -> JsonObject:
    """Write the files of a part; returns its facts."""
    notes, names = _Notes(), dict[str, int]()
    columns = {"lengths": array("q"), "files": array("L"), "records": array("q")}
    identities = array("Q")
    columns |= {"straddles": array("b")}
    margins = array("d")
    tokens = 0
    with open(directory / "tokens.bin", "wb") as out, _learn_file(directory, learn) as learned:
        for chunk in chunks(_documents(source, unit, encoder, notes)):
            made = encoder.encoded(chunk)
            for document, (ids, flags, across) in zip(chunk, made, strict=True):
                out.write(ids.data)
                if learned is not None:
                    learned.write(bytes([1]) * len(ids) if flags is None else flags.data)
                columns["lengths"].append(len(ids))
                columns["files"].append(names.setdefault(document.file, len(names)))
                columns["records"].append(document.record)
                identities.append(document.identity)
                columns["straddles"].append(across)
                margins.append(float("nan") if document.margin is None else document.margin)
                tokens += len(ids)
            tell(len(columns["lengths"]), tokens)
    arrays: dict[str, np.ndarray] = {n: np.array(c, np.int64) for n, c in columns.items()}
    arrays |= {n: np.array(getattr(notes, n), np.int64) for n in ("empty", "skipped")}
    arrays["identities"] = np.array(identities, np.uint64)
    arrays["margins"] = np.array(margins, np.float64)
    np.savez(directory / "index.npz", allow_pickle=False, **arrays)
    facts = {
        "unit": unit_digest(source, unit),
        "documents": len(columns["lengths"]),
        "tokens": tokens,
        "places": notes.places,
        "names": list(names),
        "faults": notes.faults,
        "failure": notes.failure,
    }
    facts["digest"] = _digest(directory, facts)
    (directory / "part.json").write_text(json.dumps(facts), encoding="utf-8")
    return facts


def open_part(path: Path, source: Source, unit: Unit) -> StorePart | None:
    """Open a finished part; ``None`` if it is another unit's or damaged, and then it is removed."""
    try:
        facts = json.loads((path / "part.json").read_text(encoding="utf-8"))
        if facts["unit"] == unit_digest(source, unit) and facts["digest"] == _digest(path, facts):
            return StorePart(path, facts)
    except FileNotFoundError:
        if not path.exists():
            return None
    except (OSError, ValueError, KeyError):
        pass
    shutil.rmtree(path)
    return None


def _documents(
    source: Source, unit: Unit, encoder: DocumentEncoder, notes: _Notes
) -> Iterator[Document]:
    """The documents of a unit, conversations rendered; the rest is noted."""
    try:
        for piece in unit.pieces:
            for notes.places, record in records(source, piece):
                made = encoder.rendered(record) if isinstance(record, Document) else record
                if isinstance(made, Document):
                    notes.documents += 1
                    yield made
                    if notes.documents == source.max_documents:
                        return
                elif isinstance(made, Damaged):
                    if source.on_error == "raise":
                        notes.failure = dataclasses.asdict(made)
                        return
                    notes.skipped.append(notes.documents)
                    if len(notes.faults) < SHOWN_FAULTS:
                        notes.faults.append((notes.documents, dataclasses.asdict(made)))
                elif made is None:
                    notes.empty.append(notes.documents)
    except DataError as error:
        parts = ("what", "found", "expected", "fix")
        notes.failure = {name: getattr(error, name) for name in parts}


def _learn_file(directory: Path, learn: bool) -> Any:
    return open(directory / "learn.bin", "wb") if learn else contextlib.nullcontext()


def _digest(path: Path, facts: JsonObject) -> str:
    digest = xxhash.xxh3_128()
    for name in ("tokens.bin", "learn.bin", "index.npz"):
        if name == "learn.bin" and not (path / name).exists():
            continue
        with open(path / name, "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    rest = {name: entry for name, entry in facts.items() if name != "digest"}
    digest.update(json.dumps(rest, sort_keys=True).encode())
    return digest.hexdigest()


def _appear(temporary: Path, path: Path) -> None:
    """Give a whole part its name; a process that outlived its parent may have been faster."""
    try:
        os.rename(temporary, path)
    except OSError:
        if not (path / "part.json").exists():
            raise
        shutil.rmtree(temporary)
