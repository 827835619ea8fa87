"""The files of a source: which there are, in which order, and what tells one version from another.

Paths go through fsspec; ``~`` is the home directory, ``{stdlib}`` the directory of Python's
standard library, and ``owner/name`` a data set of the hub where no such path exists.
"""

import bz2
import dataclasses
import gzip
import hashlib
import io
import json
import lzma
import os
import re
import sys
import sysconfig
import zlib
from collections.abc import Sequence
from typing import Any

from ziggurat.core import config, hub
from ziggurat.core.errors import DataError, did_you_mean
from ziggurat.core.json_types import JsonObject
from ziggurat.core.storage import missing_client
from ziggurat.data.sources.nodes import HuggingFaceDataset, Source

DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError)
"""Errors of reading a damaged file; :mod:`zstandard`'s errors are turned into ``EOFError``."""


@dataclasses.dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a source."""

    name: str
    """As the run file names it; this is what identity and errors use."""
    url: str
    """Where it is on this machine."""
    size: int
    """Bytes."""
    changed: str
    """Modification time or entity tag."""


def expand(path: str) -> str:
    """``path`` on this machine: ``{stdlib}`` and a leading ``~`` replaced."""
    stdlib = sysconfig.get_paths()["stdlib"]
    return os.path.expanduser(path.replace("${stdlib}", stdlib).replace("{stdlib}", stdlib))


def list_files(source: Source) -> list[SourceFile]:
    """The files of one source: sorted by name, or as a Hugging Face data set records them.

    Raises:
        DataError: the path does not exist or cannot be reached, or no file below it matches.
    """
    try:
        if isinstance(source, HuggingFaceDataset):
            return _list_dataset(source)
        return _list_matching(source)
    except ImportError as error:
        raise missing_client(f"source {source.path}", str(source.path), error) from None
    except (OSError, ValueError, *client_errors()) as error:
        found = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"source {source.path}", found=found, expected="a place that can be read"
        ) from None


def client_errors() -> tuple[type[Exception], ...]:
    """Errors of object-store clients other than ``OSError``: no credentials, no answer."""
    names = (("botocore.exceptions", "BotoCoreError"), ("aiohttp", "ClientError"))
    return tuple(getattr(sys.modules[m], name) for m, name in names if m in sys.modules)


def signature(
    sources: Sequence[Source], listed: Sequence[Sequence[SourceFile]] | None = None
) -> str:
    """A digest of the sources' settings and of the names, sizes and times of their files.

    The name of a mixture component is not in it: it changes no document.

    Args:
        sources: the configuration.
        listed: their files, if known already.
    """
    files = [list_files(source) for source in sources] if listed is None else listed
    parts = []
    for source, found in zip(sources, files, strict=True):
        settings = {k: v for k, v in config.to_plain(source).items() if k != "name"}
        parts.append([settings, [dataclasses.astuple(file) for file in found]])
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def _list_matching(source: Any) -> list[SourceFile]:
    from fsspec.utils import glob_translate

    files, root = _system(source.path, (source.glob,))
    if files.isfile(root):
        default = {f.name: f.default for f in dataclasses.fields(source)}["glob"]
        if source.glob != default or source.exclude:
            raise DataError(
                f"source {source.path}", found="a file", expected="a directory for glob and exclude"
            )
        return [_describe(files, root, source.path, files.info(root))]
    if not files.isdir(root):
        raise DataError(
            f"source {source.path}", found="no such file or directory", fix="check data.sources"
        )
    # Translate the patterns ourselves: a root that holds brackets must not become a pattern.
    wanted = re.compile(glob_translate(source.glob))
    unwanted = [re.compile(glob_translate(pattern)) for pattern in source.exclude]
    prefix = root.rstrip("/") + "/"
    depth = None if "**" in source.glob else source.glob.count("/") + 1
    found = files.find(root, maxdepth=depth, detail=True)
    below = {path.removeprefix(prefix): (path, info) for path, info in found.items()}
    names = sorted(
        name
        for name in below
        if wanted.match(name) and not any(pattern.match(name) for pattern in unwanted)
    )
    if not names:
        raise DataError(
            f"source {source.path}",
            found=f"{len(below)} files, none of which matches {source.glob}",
            expected="at least one match",
            fix="check glob and exclude",
        )
    where = source.path.rstrip("/")
    return [_describe(files, below[name][0], f"{where}/{name}", below[name][1]) for name in names]


def _list_dataset(source: HuggingFaceDataset) -> list[SourceFile]:
    """The Arrow files that ``state.json`` lists, in its order."""
    files, root = _system(source.path)
    if not files.isdir(root):
        raise DataError(
            f"source {source.path}", found="no such directory", fix="check data.sources"
        )
    root, name = root.rstrip("/"), source.path.rstrip("/")
    splits = _read_json(files, f"{root}/dataset_dict.json", f"{name}/dataset_dict.json")
    if splits is not None:
        known = splits.get("splits", [])
        if source.split not in known:
            raise DataError(
                f"source {source.path}",
                found=f"splits {', '.join(known)}",
                expected="one of them as split",
                fix=did_you_mean(source.split or "", known) or "set split",
            )
        root, name = f"{root}/{source.split}", f"{name}/{source.split}"
    elif source.split is not None:
        raise DataError(
            f"source {source.path}", found="no dataset_dict.json", expected="splits", fix="no split"
        )
    state = _read_json(files, f"{root}/state.json", f"{name}/state.json")
    if state is None or not isinstance(state.get("_data_files"), list):
        raise DataError(
            f"source {name}", found="no state.json", expected="what datasets' save_to_disk writes"
        )
    if state.get("_indices_data_files"):
        raise DataError(
            f"source {name}",
            found="a table of indices beside the data",
            expected="rows in their order",
            fix="save it with datasets 2 or later, or call flatten_indices before",
        )
    names = [entry["filename"] for entry in state["_data_files"]]
    return [
        _describe(files, f"{root}/{n}", f"{name}/{n}", files.info(f"{root}/{n}")) for n in names
    ]


def _system(path: str, wanted: Sequence[str] | None = None) -> tuple[Any, str]:
    """The file system and root of a path; a data set of the hub is downloaded, or found in its
    cache (``wanted``: patterns of its files)."""
    import fsspec

    given = expand(path)
    place = given if "://" in given else str(hub.local(given, "dataset", wanted))
    files, root = fsspec.core.url_to_fs(place)
    files.invalidate_cache()  # object stores remember listings, and with them old entity tags
    return files, str(root)


def _read_json(files: Any, path: str, name: str) -> JsonObject | None:
    if not files.isfile(path):
        return None
    try:
        content = json.loads(files.cat_file(path))
    except ValueError as error:
        raise DataError(name, found=error, expected="a JSON object") from None
    if not isinstance(content, dict):
        raise DataError(name, found=type(content).__name__, expected="a JSON object")
    return content


def _describe(files: Any, path: str, name: str, info: JsonObject) -> SourceFile:
    keys = ("mtime", "ETag", "etag", "LastModified", "last_modified")
    changed = next((info[k] for k in keys if k in info), "")
    return SourceFile(name, files.unstrip_protocol(path), int(info["size"] or 0), str(changed))


def is_local(file: SourceFile) -> bool:
    """Whether a file is in this machine's file system."""
    return file.url.startswith("file://")


def local_path(file: SourceFile) -> str:
    """Path of a local file."""
    return file.url.removeprefix("file://")


def is_packed(file: SourceFile) -> bool:
    """Whether a file is compressed as a whole, so that it can only be read from its start."""
    return file.name.rpartition(".")[2].lower() in _UNPACK


def open_plain(file: SourceFile) -> Any:
    """The file's bytes, as a context manager."""
    if is_local(file):
        return open(local_path(file), "rb", buffering=1 << 18)
    import fsspec

    return fsspec.open(file.url, "rb")


def unpacked(file: SourceFile, stream: Any) -> Any:
    """The bytes within ``stream``, unpacked as the name of ``file`` says; cut streams raise."""
    open_ = _UNPACK.get(file.name.rpartition(".")[2].lower())
    return stream if open_ is None else open_(stream)


class _Zstandard(io.RawIOBase):
    """Reads all frames of a stream; a frame that does not end is an error, as with gzip."""

    def __init__(self, stream: Any):
        self._stream, self._ready = stream, memoryview(b"")
        self._frame: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            if not self._more():
                return 0
        taken = min(len(buffer), len(self._ready))
        buffer[:taken] = self._ready[:taken]
        self._ready = self._ready[taken:]
        return taken

    def _more(self) -> bool:
        """Unpack another piece; False at the end."""
        import zstandard

        packed = self._frame.unused_data if self._frame is not None and self._frame.eof else b""
        packed = packed or self._stream.read(1 << 17)
        if not packed:
            if self._frame is not None and not self._frame.eof:
                raise EOFError("the file ends within a zstandard frame")
            return False
        if self._frame is None or self._frame.eof:
            self._frame = zstandard.ZstdDecompressor().decompressobj()
        try:
            self._ready = memoryview(self._frame.decompress(packed))
        except zstandard.ZstdError as error:
            raise EOFError(f"zstandard: {error}") from None
        return True


def _zstandard(stream: Any) -> Any:
    return io.BufferedReader(_Zstandard(stream), 1 << 18)


_UNPACK: dict[str, Any] = {
    "gz": lambda stream: gzip.GzipFile(fileobj=stream),
    "tgz": lambda stream: gzip.GzipFile(fileobj=stream),
    "bz2": bz2.BZ2File,
    "xz": lzma.LZMAFile,
    "lzma": lzma.LZMAFile,
    "zst": _zstandard,
    "tzst": _zstandard,
}
