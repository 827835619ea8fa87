"""The configuration of a source: where its records lie and what of each is the document."""

import codecs
from typing import Annotated, Any, Literal

from pydantic import Discriminator

from ziggurat.core import config

Content = Literal["text", "messages", "prompt_completion"]
"""What a record holds: a text, all of it learned; a conversation, of which the assistant's turns
are learned; or a prompt and its completion, of which the completion is."""

DEFAULT_KEYS = {"text": "text", "messages": "messages", "prompt_completion": "prompt"}
"""The key of a record's document where none is given."""


class _Source:
    """Rules common to all sources."""

    def __post_init__(self) -> None:
        here: Any = self
        config.require(bool(here.path), "path", here.path, "a file or directory")
        config.require(
            not set("*?") & set(here.path), "path", here.path, "no wildcards; put them into glob"
        )
        config.require(
            here.max_documents is None or here.max_documents > 0,
            "max_documents",
            here.max_documents,
            "a positive number",
        )
        if hasattr(here, "encoding"):
            try:
                codecs.lookup(here.encoding)
            except LookupError:
                config.require(False, "encoding", here.encoding, "an encoding Python knows")
        if hasattr(here, "completion"):
            config.require(
                here.completion is None or here.content == "prompt_completion",
                "completion",
                here.completion,
                "nothing, unless content is prompt_completion",
            )


@config.node
class TextFiles(_Source):
    """Each file is one document."""

    kind: Literal["text"] = "text"
    path: str
    """A file, or a directory in which ``glob`` chooses files."""
    name: str = ""
    """Component of the mixture that these documents belong to."""
    glob: str = "**/*"
    """Which files below a directory; ``**`` crosses directories."""
    exclude: tuple[str, ...] = ()
    """Patterns of files below the directory to leave out, such as ``**/test/**``."""
    encoding: str = "utf-8"
    """How the bytes are read; line ends are kept as they are."""
    max_documents: int | None = None
    """Stop after this many documents, in order."""
    on_error: Literal["raise", "skip"] = "raise"
    """What a damaged record does: stop, or be left out and counted."""


@config.node
class JsonLines(_Source):
    """Each line is one record, a JSON object; .gz, .bz2, .xz and .zst are unpacked."""

    kind: Literal["jsonl"] = "jsonl"
    path: str
    """A file, or a directory in which ``glob`` chooses files."""
    name: str = ""
    """Component of the mixture that these documents belong to."""
    glob: str = "**/*.jsonl*"
    """Which files below a directory; ``**`` crosses directories."""
    exclude: tuple[str, ...] = ()
    """Patterns of files below the directory to leave out."""
    content: Content = "text"
    """What a record holds, and with it what is learned."""
    field: str | None = None
    """Key of the text, messages or prompt; ``text``, ``messages`` or ``prompt`` by default."""
    completion: str | None = None
    """Key of the completion, by default ``completion``."""
    max_documents: int | None = None
    """Stop after this many documents, in order."""
    on_error: Literal["raise", "skip"] = "raise"
    """What a damaged record does: stop, or be left out and counted."""


@config.node
class Parquet(_Source):
    """Each row is one record; read in batches, only the columns asked for."""

    kind: Literal["parquet"] = "parquet"
    path: str
    """A file, or a directory in which ``glob`` chooses files."""
    name: str = ""
    """Component of the mixture that these documents belong to."""
    glob: str = "**/*.parquet"
    """Which files below a directory; ``**`` crosses directories."""
    exclude: tuple[str, ...] = ()
    """Patterns of files below the directory to leave out."""
    content: Content = "text"
    """What a record holds, and with it what is learned."""
    column: str | None = None
    """Column of the text, the messages or the prompt; by default ``text``, ``messages``,
    ``prompt``."""
    completion: str | None = None
    """Column of the completion, by default ``completion``."""
    max_documents: int | None = None
    """Stop after this many documents, in order."""
    on_error: Literal["raise", "skip"] = "raise"
    """What a damaged record does: stop, or be left out and counted."""


@config.node
class ArrayRecords(_Source):
    """ArrayRecord files; a record is the document itself, or a JSON object that holds it."""

    kind: Literal["array_record"] = "array_record"
    path: str
    """A file, or a directory in which ``glob`` chooses files."""
    name: str = ""
    """Component of the mixture that these documents belong to."""
    glob: str = "**/*.array_record*"
    """Which files below a directory; ``**`` crosses directories."""
    exclude: tuple[str, ...] = ()
    """Patterns of files below the directory to leave out."""
    content: Content = "text"
    """What a record holds, and with it what is learned."""
    field: str | None = None
    """Key of the document in a JSON record. Without it a record of content ``text`` is UTF-8 text;
    for the other contents the default is ``messages`` or ``prompt``."""
    completion: str | None = None
    """Key of the completion, by default ``completion``."""
    max_documents: int | None = None
    """Stop after this many documents, in order."""
    on_error: Literal["raise", "skip"] = "raise"
    """What a damaged record does: stop, or be left out and counted."""


@config.node
class HuggingFaceDataset(_Source):
    """A directory that Hugging Face ``datasets`` wrote with ``save_to_disk``."""

    kind: Literal["hf_dataset"] = "hf_dataset"
    path: str
    """The directory, with ``state.json``; or with ``dataset_dict.json``, which needs ``split``."""
    name: str = ""
    """Component of the mixture that these documents belong to."""
    split: str | None = None
    """Which split of a dictionary of data sets."""
    content: Content = "text"
    """What a record holds, and with it what is learned."""
    column: str | None = None
    """Column of the text, the messages or the prompt; by default ``text``, ``messages``,
    ``prompt``."""
    completion: str | None = None
    """Column of the completion, by default ``completion``."""
    max_documents: int | None = None
    """Stop after this many documents, in order."""
    on_error: Literal["raise", "skip"] = "raise"
    """What a damaged record does: stop, or be left out and counted."""


@config.node
class WebDataset(_Source):
    """Tar shards; the files that share a base name are one record, keyed by their extensions."""

    kind: Literal["webdataset"] = "webdataset"
    path: str
    """A file, or a directory in which ``glob`` chooses files; .tar, or packed as .gz, .bz2, .xz or
    .zst."""
    name: str = ""
    """Component of the mixture that these documents belong to."""
    glob: str = "**/*.tar*"
    """Which files below a directory; ``**`` crosses directories."""
    exclude: tuple[str, ...] = ()
    """Patterns of files below the directory to leave out."""
    content: Content = "text"
    """What a record holds, and with it what is learned."""
    field: str = "txt"
    """Extension of the file that is the document; or, as ``json.text``, the extension of a JSON
    file and the key in it."""
    completion: str | None = None
    """The same for the completion; needed by content ``prompt_completion``."""
    max_documents: int | None = None
    """Stop after this many documents, in order."""
    on_error: Literal["raise", "skip"] = "raise"
    """What a damaged record does: stop, or be left out and counted."""

    def __post_init__(self) -> None:
        super().__post_init__()
        config.require(
            self.completion is not None or self.content != "prompt_completion",
            "completion",
            self.completion,
            "an extension, such as json.completion",
        )


Source = Annotated[
    TextFiles | JsonLines | Parquet | ArrayRecords | HuggingFaceDataset | WebDataset,
    Discriminator("kind"),
]


def key_of(source: Any) -> str:
    """Name of the field, column or extension that holds a record's document."""
    given = getattr(source, "field", None) or getattr(source, "column", None)
    return given or DEFAULT_KEYS[source.content]


def completion_of(source: Any) -> str:
    """The same for the completion."""
    return source.completion or "completion"
