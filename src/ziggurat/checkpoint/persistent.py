"""Tier 3: copies of finished step directories in a store that outlives the machine.

A copy goes up in the background: files first, ``manifest.json`` last. A step without a manifest is
no checkpoint. A copy that was cut off resumes where it stopped (a marker says of which manifest its
files are); others without a manifest are removed. At most one copy is under way and one is waiting;
a newer one takes the place of the one that waits. A store that does not answer is said once and
tried again with the next step that is due.

>>> import tempfile
>>> with tempfile.TemporaryDirectory() as folder:
...     PersistentStore(PersistentTier(url=folder)).steps()
[]
"""

import contextlib
import dataclasses
import logging
import re
import tempfile
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from ziggurat.checkpoint.config import PersistentTier
from ziggurat.checkpoint.manifest import MANIFEST, DamagedError, Manifest, read_manifest
from ziggurat.checkpoint.retention import reading, steps_to_keep
from ziggurat.checkpoint.steps import step_name, verify_step
from ziggurat.core import atomic
from ziggurat.core.errors import CheckpointError
from ziggurat.core.storage import missing_client

_log = logging.getLogger(__name__)
_STEP = re.compile(r"step_(\d{8,})")
_MARKER = ".copying"
_THREADS = 4


class StoreError(CheckpointError):
    """The persistent store does not answer, or refuses."""


@dataclasses.dataclass
class _Copy:
    step: int
    path: Path
    ready: Callable[[], bool]
    held: contextlib.ExitStack = dataclasses.field(default_factory=contextlib.ExitStack)
    is_held: bool = False

    def hold(self) -> None:
        """Keep retention away from the step directory until :attr:`held` is closed."""
        if not self.is_held:
            self.held.enter_context(reading(self.path))
            self.is_held = True


class PersistentStore:
    """The copies of one run's checkpoints. One process of the run uses it.

    Args:
        config: where, how often, and what is kept.
        retries: how often a copy that failed is tried again at once.
        retry_wait_s: pause before the first retry, doubled before each further one (seconds).

    Raises:
        EnvironmentError: the package for this kind of URL is not installed.
        CheckpointError: the URL is of no known kind.
    """

    def __init__(self, config: PersistentTier, retries: int = 3, retry_wait_s: float = 1.0):
        self.config = config
        self.error: CheckpointError | None = None
        """Why the last copy failed; None when it did not."""
        self.copied: list[int] = []
        """Steps that this process has copied."""
        self._retries, self._retry_wait_s = retries, retry_wait_s
        self._files, self._root = _open(config.url)
        self._changed = threading.Condition()
        self._current: _Copy | None = None
        self._waiting: _Copy | None = None
        self._running = False
        self._ending = threading.Event()
        self._discard_after: int | None = None

    def due(self, step: int) -> bool:
        """Whether the interval asks for a copy of ``step``."""
        return step > 0 and step % self.config.every == 0

    def send(
        self,
        step: int,
        path: Path,
        ready: Callable[[], bool] = lambda: True,
    ) -> None:
        """Copy a step directory in the background.

        Args:
            step: its step.
            path: where it is, or will be.
            ready: called in the background; waits until it is there. False: it will not be.
        """
        with self._changed:
            replaced = self._waiting
            self._waiting = _Copy(step, path, ready)
            if not self._running:
                self._running = True
                threading.Thread(target=self._work, name="persistent-store", daemon=True).start()
        if replaced is not None:
            _log.warning(
                "step %d is not copied to %s: step %d came before its turn",
                replaced.step,
                self.config.url,
                step,
            )
            replaced.held.close()

    def hold(self) -> None:
        """Keep retention away from what is to be copied; call it when all of that is on disk."""
        with self._changed:
            for copy in (self._current, self._waiting):
                if copy is not None:
                    copy.hold()

    def wait(self) -> None:
        """Wait until nothing is under way; what failed is in :attr:`error`."""
        with self._changed:
            self._changed.wait_for(lambda: not self._running)

    def close(self, wait: bool = True) -> None:
        """End; without ``wait`` a copy under way is left where it is."""
        if not wait:
            self._ending.set()
            return
        self.wait()

    def steps(self) -> list[int]:
        """Steps that have a manifest, oldest first.

        Raises:
            StoreError: the store does not answer.
        """
        return sorted(step for step, found in self._listing().items() if MANIFEST in found)

    def download(self, step: int, target: Path) -> Manifest:
        """Fetch a step into the empty directory ``target`` and compare its digests.

        Raises:
            StoreError: the store does not answer.
            DamagedError: the copy is incomplete or altered; the text names the file.
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

        self._guarded(f"step {step}", lambda: _in_threads(fetch, [*manifest.files, MANIFEST]))
        return verify_step(target)

    def discard_after(self, step: int) -> None:
        """Remove newer steps; if the store does not answer now, then before the next copy."""
        with self._changed:
            if self._waiting is not None and self._waiting.step > step:
                self._waiting.held.close()
                self._waiting = None
        self.wait()
        self._discard_after = step
        try:
            self._guarded("removal of newer steps", self._discard)
        except StoreError as error:
            self._fail(error)

    def _work(self) -> None:
        """Copy what waits until nothing does."""
        while True:
            with self._changed:
                self._current = copy = self._waiting
                self._waiting = None
                if copy is None:
                    self._running = False
                    self._changed.notify_all()
                    return
            try:
                if copy.ready():
                    with self._changed:
                        copy.hold()
                    self._copy_and_retry(copy)
            except Exception as error:
                self._fail(StoreError(f"copy of step {copy.step}", found=repr(error)))
            finally:
                with self._changed:
                    self._current = None
                    copy.held.close()

    def _copy_and_retry(self, copy: _Copy) -> None:
        for attempt in range(self._retries + 1):
            try:
                self._guarded(f"step {copy.step}", lambda: self._copy(copy.step, copy.path))
            except DamagedError as error:
                self._fail(error)
                return
            except StoreError as error:
                if attempt == self._retries or self._ending.wait(self._retry_wait_s * 2**attempt):
                    self._fail(error)
                    return
            else:
                if self.error is not None:
                    _log.info("checkpoints are copied to %s again", self.config.url)
                self.error = None
                self.copied.append(copy.step)
                _log.info("copied step %d to %s", copy.step, self.config.url)
                return

    def _copy(self, step: int, path: Path) -> None:
        self._discard()
        manifest, content = verify_step(path), (path / MANIFEST).read_bytes()
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
            lambda name: self._files.put_file(str(path / name), self._at(step, name)), missing
        )
        self._write(self._at(step, MANIFEST), content)
        self._files.rm_file(self._at(step, _MARKER))
        self._apply_retention(step)

    def _apply_retention(self, newest: int) -> None:
        listing = self._listing()
        whole = [step for step, found in listing.items() if MANIFEST in found]
        keep = steps_to_keep(whole, self.config.keep_last, self.config.keep_every) | {newest}
        for step, found in listing.items():
            if step < newest and step not in keep:
                self._remove(step, found)

    def _discard(self) -> None:
        if self._discard_after is not None:
            for step, found in self._listing().items():
                if step > self._discard_after:
                    self._remove(step, found)
            self._discard_after = None

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
        content = self._guarded(
            f"step {step}", lambda: self._files.cat_file(self._at(step, MANIFEST))
        )
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / MANIFEST).write_bytes(content)
            return read_manifest(Path(folder))

    def _listing(self) -> dict[int, dict[str, int]]:
        """Sizes of files by name, of each step."""

        def look() -> dict[str, Any]:
            try:
                return self._files.find(self._root, detail=True)
            except FileNotFoundError:
                return {}

        steps: dict[int, dict[str, int]] = {}
        root = PurePosixPath(self._files._strip_protocol(self._root))
        for name, info in self._guarded("list of steps", look).items():
            top, *rest = PurePosixPath(name).relative_to(root).parts
            match = _STEP.fullmatch(top)
            if match and rest:
                steps.setdefault(int(match[1]), {})["/".join(rest)] = info["size"]
        return steps

    def _at(self, step: int, name: str) -> str:
        return f"{self._root}/{step_name(step)}/{name}"

    def _guarded(self, what: str, call: Callable[[], Any]) -> Any:
        """Stores raise what they like."""
        try:
            return call()
        except CheckpointError:
            raise
        except Exception as error:
            line = str(error).strip().partition("\n")[0][:200]
            raise StoreError(
                f"checkpoint store {self.config.url}: {what}",
                found=f"{type(error).__name__}: {line}",
                expected="an answer",
                fix="check the URL, the credentials and the network",
            ) from error

    def _fail(self, error: CheckpointError) -> None:
        """Say it once, not with every copy."""
        if self.error is None:
            _log.error("%s; training continues, and the next step that is due is tried", error)
        self.error = error


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
