"""Conversations with images as tokens: read, rendered, each image's placeholder expanded, checked
against the limits of a row."""

import base64
import binascii
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import xxhash
from jaxtyping import Int, UInt8

from ziggurat.core import atomic
from ziggurat.core.errors import DataError
from ziggurat.core.protocols import Batch, Tokenizer
from ziggurat.data import conversation, template_input
from ziggurat.data.encode import DocumentEncoder
from ziggurat.data.sources import Document, ReadReport, Source, expand, list_files, reading
from ziggurat.data.sources.records import SHOWN_FAULTS, Damaged


@dataclasses.dataclass(frozen=True)
class RecordImage:
    """An image of a record."""

    path: Path
    """File of the image."""
    size: Any
    """Size in the model, as :meth:`PictureInputs.measured` gives it."""
    span: slice
    """Tokens of the image, those between its lines included, counted in the record."""


@dataclasses.dataclass(frozen=True)
class ImageRecord:
    """A conversation as tokens, with its images."""

    file: str
    """The file, named as the run file names it."""
    record: int
    """Number of the record there, from 1."""
    identity: int
    """Hash of its text and images, by which it is held out or not."""
    ids: Int[np.ndarray, "t"]
    learned: UInt8[np.ndarray, "t"]
    """1 for tokens that are learned."""
    images: tuple[RecordImage, ...]
    needs: tuple[int, ...]
    """Number of tokens, then what the images need, in the order of :attr:`PictureInputs.room`."""


@runtime_checkable
class PictureInputs(Protocol):
    """Interface of what turns images into a tower's inputs, in arrays of fixed shapes."""

    @property
    def digest(self) -> str:
        """Digest of all settings that decide tokens and arrays."""
        ...

    @property
    def placeholder(self) -> str:
        """Text that stands for one image in a rendered conversation."""
        ...

    @property
    def room(self) -> dict[str, int]:
        """Limits of a row by name, beside its tokens."""
        ...

    def measured(self, path: Path) -> Any:
        """Size of an image in the model, from its file's header."""
        ...

    def needs(self, sizes: Sequence[Any]) -> tuple[int, ...]:
        """Amounts that images take of a row, in the order of :attr:`room`."""
        ...

    def text(self, size: Any) -> str:
        """Text that an image's placeholder becomes."""
        ...

    def spans(self, ids: Int[np.ndarray, "t"], sizes: Sequence[Any]) -> list[slice]:
        """The tokens of each image.

        Raises:
            DataError: they are more or fewer than the images have.
        """
        ...

    def arrays(self, rows: Sequence[Sequence[tuple[int, ImageRecord]]]) -> Batch:
        """Arrays of a batch beside its tokens.

        Args:
            rows: of each row, its records with the place of their first token.
        """
        ...


class ImageRecordReader:
    """Reads conversations with images.

    Args:
        tokenizer: with a chat template that has a place for images.
        inputs: of the model.
        root: directory below which images lie; ``None``: that of each source.
        longest: most tokens of a record.
        kept: directory for images that stand in the records themselves.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        inputs: PictureInputs,
        root: Path | None,
        longest: int,
        kept: Path,
    ):
        self._tokenizer, self._inputs, self._root = tokenizer, inputs, root
        self._longest, self._kept = longest, kept
        self._encoder = DocumentEncoder(tokenizer)
        self.report = ReadReport()

    def read(self, sources: Sequence[Source]) -> Iterator[ImageRecord]:
        """Records of all sources, in order.

        Raises:
            DataError: a file is missing, there is no record, or one is damaged or does not fit into
                a row and its source says ``on_error = "raise"``.
        """
        for source in sources:
            root = self._root or _directory(source)
            taken = 0
            for file in list_files(source):
                for _, found in reading.records(source, reading.Piece(file)):
                    made = found
                    if isinstance(found, Document):
                        made = self._made(found, root)
                    if isinstance(made, ImageRecord):
                        self.report.documents += 1
                        taken += 1
                        yield made
                    elif isinstance(made, Damaged):
                        self._leave_out(source, made)
                    elif made is None:
                        self.report.empty += 1
                    if taken == source.max_documents:
                        break
                if taken == source.max_documents:
                    break
        reading.finish(sources, self.report)

    def _leave_out(self, source: Source, damaged: Damaged) -> None:
        if source.on_error == "raise":
            raise damaged.error()
        self.report.skipped += 1
        if len(self.report.faults) < SHOWN_FAULTS:
            self.report.faults.append(str(damaged.error()))

    def _made(self, document: Document, root: Path) -> ImageRecord | Damaged | None:
        """A document as a record; one that cannot be is damaged."""
        try:
            return self._record(document, root)
        except DataError as error:
            found = f"{error.what}: {error.found}"
            return Damaged(document.file, document.record, found, error.expected, "record")

    def _record(self, document: Document, root: Path) -> ImageRecord | None:
        paths = [self._path(image, root) for image in document.images]
        sizes = [self._inputs.measured(path) for path in paths]
        rendered = self._rendered(document)
        if rendered is None:
            return None
        [made] = self._encoder.encoded([self._expanded(rendered, sizes)])
        ids = made.ids.astype(np.int32)
        learned = np.ones(len(ids), np.uint8) if made.learned is None else made.learned
        learned = learned.astype(np.uint8)
        self.report.straddling += made.straddles
        spans = self._inputs.spans(ids, sizes)
        for span in spans:
            learned[span] = 0
        images = tuple(map(RecordImage, paths, sizes, spans))
        needs = (len(ids), *self._inputs.needs(sizes))
        self._check_room(needs)
        key = "\0".join([rendered.key or rendered.text, *(path.name for path in paths)])
        identity = xxhash.xxh3_64_intdigest(key.encode("utf-8", "surrogatepass"))
        return ImageRecord(document.file, document.record, identity, ids, learned, images, needs)

    def _check_room(self, needs: tuple[int, ...]) -> None:
        room = {"tokens": self._longest} | self._inputs.room
        for (name, most), needed in zip(room.items(), needs):
            if needed > most:
                raise DataError(f"its {name}", found=f"{needed:,}", expected=f"at most {most:,}")

    def _rendered(self, document: Document) -> Document | None:
        template = conversation.template_of(self._tokenizer, bool(document.tools))
        messages = template_input.with_parts(document.messages or (), template)
        return self._encoder.render(dataclasses.replace(document, messages=messages))

    def _expanded(self, document: Document, sizes: Sequence[Any]) -> Document:
        """The text with each image written as its tokens, and learned ranges moved along."""
        mark = self._inputs.placeholder
        parts = document.text.split(mark)
        if len(parts) != len(sizes) + 1:
            raise DataError(
                "chat template",
                found=f"{len(parts) - 1} times {mark!r} for {len(sizes)} images",
                expected="once for each image",
                fix="use the model's own template, and no such text in messages",
            )
        text, ends = parts[0], list[tuple[int, int]]()
        before = len(parts[0])
        for size, part in zip(sizes, parts[1:]):
            written = self._inputs.text(size)
            before += len(mark)
            ends.append((before, len(written) - len(mark)))
            text += written + part
            before += len(part)

        def moved(place: int) -> int:
            return place + sum(more for end, more in ends if end <= place)

        spans = tuple((moved(start), moved(end)) for start, end in document.learned or ())
        return dataclasses.replace(document, text=text, learned=spans)

    def _path(self, image: str | bytes, root: Path) -> Path:
        """The file of an image; a content becomes a file in the cache, named by its digest."""
        if isinstance(image, str) and image[:5].lower() == "data:":
            image = _of_data(image)
        if isinstance(image, bytes):
            self._kept.mkdir(parents=True, exist_ok=True)
            path = self._kept / xxhash.xxh3_128_hexdigest(image)
            if not path.exists():
                atomic.write_file(path, image)
            return path
        home = root.resolve()
        path = (home / image).resolve()  # links out of the directory are followed, and refused
        if not path.is_relative_to(home) or not path.is_file():
            raise DataError(f"image {image}", found="no such file", expected=f"one below {home}")
        return path


def _of_data(uri: str) -> bytes:
    head, comma, content = uri.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise DataError("image", found=repr(head[:60]), expected="data:image/...;base64,...")
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError):
        raise DataError("image", found="broken base64", expected="a file in base64") from None


def _directory(source: Source) -> Path:
    path = Path(expand(source.path))
    return path if path.is_dir() else path.parent
