"""The configuration of a source: where its records lie and what of each is the document."""

import codecs
import dataclasses
from typing import Annotated, Any, Literal

from pydantic import Discriminator

from ziggurat.core import config

Content = Literal[
    "text",
    "messages",
    "image_messages",
    "prompt_completion",
    "preference",
    "chosen",
    "rejected",
    "labelled",
    "desirable",
    "undesirable",
]
"""Content of a record, which decides what is learned.

``text``: all of it. A conversation: the assistant's turns; ``image_messages`` may hold images, and
``[data] kind = "image_text"`` takes it. A prompt and its completion: the completion.
``preference`` is a prompt with a chosen and a rejected answer, and ``labelled`` a prompt with an
answer that a label calls good or bad; objectives that compare answers take them. One answer of each
alone is a document like any other: ``chosen``, ``rejected``, ``desirable``, ``undesirable``.
"""

VIEWS = {"preference": ("chosen", "rejected"), "labelled": ("desirable", "undesirable")}
"""The two kinds of documents in records that hold several answers."""
ANSWERS = frozenset(view for pair in VIEWS.values() for view in pair)
"""Contents whose document is one answer of such a record."""

DEFAULT_KEYS = {
    "text": "text",
    "messages": "messages",
    "image_messages": "messages",
    "prompt_completion": "prompt",
}
"""The key of a record's document where none is given."""
LABEL = "label"
"""The key of a labelled answer's label."""
CONVERSATIONS = frozenset({"messages", "image_messages"})
"""Contents that are a list of messages."""
PROMPTS: tuple[str, ...] = ("prompt", "messages")
"""The keys under which a record with answers may have its prompt."""


@config.node
class _Source:
    """Settings that all sources share."""

    path: str
    """Where it lies: a file, or a directory with several."""
    name: str = ""
    """Component of the mixture that these documents belong to."""
    max_documents: int | None = None
    """Stop after this many documents, in order."""
    on_error: Literal["raise", "skip"] = "raise"
    """Action on a damaged record: stop, or leave it out and count it."""

    def __post_init__(self) -> None:
        config.require(bool(self.path), "path", self.path, "a file or directory")
        config.require(
            not set("*?") & set(self.path), "path", self.path, "no wildcards; put them into glob"
        )
        config.require(
            self.max_documents is None or self.max_documents > 0,
            "max_documents",
            self.max_documents,
            "a positive number",
        )


@config.node
class _Files(_Source):
    """A source whose files are found by their names."""

    exclude: tuple[str, ...] = ()
    """Patterns of files below the directory to leave out, such as ``**/test/**``."""


@config.node
class _Records(_Source):
    """A source whose records have several fields."""

    content: Content = "text"
    """Content of a record, which decides what is learned."""
    completion: str | None = None
    """Field of the completion, by default ``completion``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        completed = ("prompt_completion", "labelled", *VIEWS["labelled"])
        config.require(
            self.completion is None or self.content in completed,
            "completion",
            self.completion,
            "nothing, unless content is prompt_completion or labelled",
        )


@config.node
class TextFiles(_Files):
    """Data source: text files, each one document."""

    kind: Literal["text"] = "text"
    glob: str = "**/*"
    """Which files below a directory; ``**`` crosses directories."""
    encoding: str = "utf-8"
    """How the bytes are read; line ends are kept as they are."""

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            config.require(False, "encoding", self.encoding, "an encoding Python knows")


@config.node
class JsonLines(_Files, _Records):
    """Data source: JSON lines, each one record; .gz, .bz2, .xz and .zst are unpacked."""

    kind: Literal["jsonl"] = "jsonl"
    glob: str = "**/*.jsonl*"
    """Which files below a directory; ``**`` crosses directories."""
    field: str | None = None
    """Key of the text, messages or prompt; ``text``, ``messages`` or ``prompt`` by default."""


@config.node
class Parquet(_Files, _Records):
    """Data source: Parquet, each row one record; read in batches, only the columns asked for."""

    kind: Literal["parquet"] = "parquet"
    glob: str = "**/*.parquet"
    """Which files below a directory; ``**`` crosses directories."""
    column: str | None = None
    """Column of the text, the messages or the prompt; by default ``text``, ``messages``,
    ``prompt``."""


@config.node
class ArrayRecords(_Files, _Records):
    """Data source: ArrayRecord files; a record is the document itself, or a JSON object that holds
    it."""

    kind: Literal["array_record"] = "array_record"
    glob: str = "**/*.array_record*"
    """Which files below a directory; ``**`` crosses directories."""
    field: str | None = None
    """Key of the document in a JSON record. Without it a record of content ``text`` is UTF-8 text;
    for the other contents the default is ``messages`` or ``prompt``."""


@config.node
class HuggingFaceDataset(_Records):
    """Data source: a directory that Hugging Face ``datasets`` wrote with ``save_to_disk``, one with
    ``state.json``, or one with ``dataset_dict.json``, which needs ``split``."""

    kind: Literal["hf_dataset"] = "hf_dataset"
    split: str | None = None
    """Which split of a dictionary of data sets."""
    column: str | None = None
    """Column of the text, the messages or the prompt; by default ``text``, ``messages``,
    ``prompt``."""


@config.node
class WebDataset(_Files, _Records):
    """Data source: tar shards, .tar or packed (.gz, .bz2, .xz, .zst). Files that share a base name
    are one record, keyed by their extensions. ``completion`` is an extension, and has no
    default."""

    kind: Literal["webdataset"] = "webdataset"
    glob: str = "**/*.tar*"
    """Which files below a directory; ``**`` crosses directories."""
    field: str = "txt"
    """Extension of the file that is the document; or, as ``json.text``, the extension of a JSON
    file and the key in it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        config.require(
            self.completion is not None or self.content != "prompt_completion",
            "completion",
            self.completion,
            "an extension, such as json.completion",
        )
        several = self.content in ANSWERS or self.content in VIEWS
        expected = "text, messages or prompt_completion in WebDataset shards"
        config.require(not several, "content", self.content, expected)


Source = Annotated[
    TextFiles | JsonLines | Parquet | ArrayRecords | HuggingFaceDataset | WebDataset,
    Discriminator("kind"),
]


def given_key(source: Any) -> str | None:
    """Name of the field, column or extension in the configuration."""
    return getattr(source, "field", None) or getattr(source, "column", None)


def key_of(source: Any) -> str:
    """Name of the field, column or extension that holds a record's document."""
    return given_key(source) or DEFAULT_KEYS[source.content]


def completion_of(source: Any) -> str:
    """Name of the field with the completion."""
    return source.completion or "completion"


def keys_of(source: Any) -> tuple[list[str], list[str]]:
    """Names of the fields that a source's records must have, and of those that they may have."""
    if source.content not in ANSWERS:
        more = [completion_of(source)] if source.content == "prompt_completion" else []
        return [key_of(source), *more], []
    given = given_key(source)
    prompts = [] if given else list(PROMPTS)
    needed = [given] if given else []
    if source.content in VIEWS["labelled"]:
        return [*needed, completion_of(source), LABEL], prompts
    return [*needed, *VIEWS["preference"]], prompts


def views(source: Any) -> tuple[Any, ...]:
    """Split a source of several answers a record into one source for each kind of answer; others
    stay as they are.

    >>> [view.content for view in views(JsonLines(path="pairs.jsonl", content="preference"))]
    ['chosen', 'rejected']
    """
    kinds = VIEWS.get(getattr(source, "content", "text"), ())
    return tuple(dataclasses.replace(source, content=kind) for kind in kinds) or (source,)
