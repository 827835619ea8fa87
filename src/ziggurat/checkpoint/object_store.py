"""Step directories in an object store, or in another directory, through fsspec.

Files go up first, ``manifest.json`` last: a step without a manifest is no checkpoint. A copy that
was cut off resumes where it stopped; a marker says of which manifest its files are.

>>> import tempfile
>>> with tempfile.TemporaryDirectory() as folder:
...     ObjectStore(PersistentTier(url=folder)).steps()
{}
"""

import re
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from ziggurat.checkpoint.config import PersistentTier
from ziggurat.checkpoint.manifest import MANIFEST, DamagedError, Manifest, read_manifest
from ziggurat.checkpoint.step_store import StepStore
from ziggurat.checkpoint.steps import step_name
from ziggurat.core import atomic
from ziggurat.core.errors import CheckpointError
from ziggurat.core.storage import missing_client

_STEP = re.compile(r"step_(\d{8,})")
_MARKER = ".copying"
_THREADS = 4


class ObjectStore(StepStore):
    """The copies of one run's checkpoints below a URL.

    Args:
        config: names any fsspec URL, or a directory.

    Raises:
        EnvironmentError: the package for this kind of URL is not installed.
        CheckpointError: the URL is of no known kind.
    """

    node = PersistentTier

    def __init__(self, config: PersistentTier):
        self.place = config.url
        self._files, self._root = _open(config.url)

    def steps(self) -> dict[int, bool]:
        return {step: MANIFEST in found for step, found in self._listing().items()}

    def upload(self, step: int, directory: Path) -> None:
        manifest, content = read_manifest(directory), (directory / MANIFEST).read_bytes()
        mark = content[-64:]  # the manifest's own digest
        there = self._listing().get(step, {})
        if MANIFEST in there and self._files.cat_file(self._at(step, MANIFEST)) == content:
            return
        if there and (
            MANIFEST in there
            or _MARKER not in there
            or self._files.cat_file(self._at(step, _MARKER)) != mark
        ):
            self._remove(step, there)
            there = {}
        self._write(self._at(step, _MARKER), mark)
        missing = [name for name, file in manifest.files.items() if there.get(name) != file.bytes]
        _in_threads(
            lambda name: self._files.put_file(str(directory / name), self._at(step, name)), missing
        )
        self._write(self._at(step, MANIFEST), content)
        self._files.rm_file(self._at(step, _MARKER))

    def download(self, step: int, target: Path) -> None:
        """Fetch a step.

        Raises:
            DamagedError: the copy has no file, or an impossible one, of its manifest.
        """
        manifest = self._manifest(step)
        for name in manifest.files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts:
                raise DamagedError(f"copy of step {step}", found=f"a file named {name}")
            (target / name).parent.mkdir(parents=True, exist_ok=True)

        def fetch(name: str) -> None:
            try:
                self._files.get_file(self._at(step, name), str(target / name))
            except FileNotFoundError as error:
                raise DamagedError(f"copy of step {step}: {name}", found="no such file") from error

        _in_threads(fetch, [*manifest.files, MANIFEST])

    def remove(self, step: int) -> None:
        self._remove(step, self._listing().get(step, {}))

    def _remove(self, step: int, found: Iterable[str]) -> None:
        """The manifest first: what is left then is no checkpoint."""
        names = sorted(found, key=lambda name: name != MANIFEST)
        for name in names[:1]:
            self._files.rm_file(self._at(step, name))
        _in_threads(lambda name: self._files.rm_file(self._at(step, name)), names[1:])
        if _is_local(self._files):
            self._files.rm(f"{self._root}/{step_name(step)}", recursive=True)

    def _write(self, path: str, content: bytes) -> None:
        """Wholly or not at all, as object stores do by themselves."""
        if _is_local(self._files):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            atomic.write_file(Path(path), content)
        else:
            self._files.pipe_file(path, content)

    def _manifest(self, step: int) -> Manifest:
        content = self._files.cat_file(self._at(step, MANIFEST))
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / MANIFEST).write_bytes(content)
            return read_manifest(Path(folder))

    def _listing(self) -> dict[int, dict[str, int]]:
        """Sizes of files by name, of each step."""
        try:
            entries = self._files.find(self._root, detail=True)
        except FileNotFoundError:
            return {}
        steps: dict[int, dict[str, int]] = {}
        root = PurePosixPath(self._files._strip_protocol(self._root))
        for name, info in entries.items():
            top, *rest = PurePosixPath(name).relative_to(root).parts
            match = _STEP.fullmatch(top)
            if match and rest:
                steps.setdefault(int(match[1]), {})["/".join(rest)] = info["size"]
        return steps

    def _at(self, step: int, name: str) -> str:
        return f"{self._root}/{step_name(step)}/{name}"


def _open(url: str) -> tuple[Any, str]:
    import fsspec
    from fsspec.utils import get_protocol

    options = {"auto_mkdir": True} if get_protocol(url) in ("file", "local") else {}
    try:
        files, root = fsspec.core.url_to_fs(url, use_listings_cache=False, **options)
    except ImportError as error:
        raise missing_client("checkpoint.persistent.url", url, error) from error
    except ValueError as error:
        raise CheckpointError(
            "checkpoint.persistent.url", found=url, expected=f"a URL of a known kind ({error})"
        ) from error
    return files, root.rstrip("/")


def _is_local(files: Any) -> bool:
    from fsspec.implementations.local import LocalFileSystem

    return isinstance(files, LocalFileSystem)


def _in_threads(call: Callable[[str], Any], names: Iterable[str]) -> None:
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(call, names))
