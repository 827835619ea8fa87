"""Records of WebDataset shards: the files of a tar archive, grouped by base name."""

import functools
import tarfile
from collections.abc import Collection, Iterator
from typing import Any

from ziggurat.data.sources import files
from ziggurat.data.sources.contents import document
from ziggurat.data.sources.files import SourceFile
from ziggurat.data.sources.nodes import WebDataset
from ziggurat.data.sources.records import Fault, Records, decoded, json_object, keyed


def shard_records(source: WebDataset, file: SourceFile) -> Records:
    """The records of one shard, read from front to back.

    A base name is a member's path up to the first dot of its last part, its extension what follows;
    neighbours that share a base name are one record. Only members that the source asks for are
    read.
    """
    wanted = [source.field, *([source.completion] if source.completion is not None else [])]
    number = 0
    try:
        with files.open_plain(file) as plain:
            for sample in _samples(files.unpacked(file, plain), wanted):
                number += 1
                yield number, _record(source, file, number, sample)
    except (*files.DAMAGE, tarfile.TarError) as error:
        fault = Fault(str(error) or type(error).__name__, "a whole tar archive")
        yield number + 1, fault.at(file, number + 1, "sample")


def _samples(stream: Any, wanted: list[str]) -> Iterator[dict[str, bytes | None]]:
    """Members by extension; None for those nobody wants."""
    base, sample = None, {}
    with tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member) as archive:
        for member in archive:
            folder, slash, name = member.name.rpartition("/")
            stem, dot, extension = name.partition(".")
            if not member.isfile() or not stem or not dot:
                continue
            if folder + slash + stem != base:
                if sample:
                    yield sample
                base, sample = folder + slash + stem, {}
            sample[extension] = _content(archive, member) if _asked(extension, wanted) else None
    if sample:
        yield sample


def _asked(extension: str, wanted: list[str]) -> bool:
    return any(key == extension or key.startswith(extension + ".") for key in wanted)


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    opened = archive.extractfile(member)
    assert opened is not None, "a regular file"
    content = opened.read()
    if len(content) != member.size:
        raise EOFError("the archive ends within a file")
    return content


class _Member(tarfile.TarInfo):
    """Refuses what the library takes for the end of an archive although no end mark is there."""

    @classmethod
    def fromtarfile(cls, tarfile: Any) -> "_Member":
        try:
            return super().fromtarfile(tarfile)
        except EOFHeader:
            raise
        except Header as error:
            reason = str(error) or "no end mark"
            raise EOFError(f"{reason} at byte {tarfile.offset}") from None


EOFHeader: Any = tarfile.EOFHeaderError  # type: ignore[attr-defined]
Header: Any = tarfile.HeaderError


def _record(source: WebDataset, file: SourceFile, number: int, sample: dict[str, Any]) -> Any:
    try:
        names, prefix = _beside(source, sample)
        get = functools.partial(_value, sample, prefix)
        return document(source, file, number, get, names)
    except Fault as fault:
        return fault.at(file, number, "sample")


def _beside(source: WebDataset, sample: dict[str, Any]) -> tuple[Collection[str], str]:
    """Keys of the JSON object that holds the document, and what stands before them."""
    extension = source.field.rpartition(".")[0]
    content = sample.get(extension) if source.content != "text" else None
    return ({}, "") if content is None else (json_object(content), f"{extension}.")


def _value(sample: dict[str, Any], prefix: str, key: str) -> Any:
    """The text of a member, or a value of a member that is a JSON object."""
    if not any(key == extension or key.startswith(f"{extension}.") for extension in sample):
        key = prefix + key
    if sample.get(key) is not None:
        return decoded(sample[key])
    for extension, content in sample.items():
        if content is not None and key.startswith(extension + "."):
            return keyed(json_object(content))(key.removeprefix(extension + "."))
    return keyed(sample)(key)
