"""A directory of models, ``MODEL/N/`` a bundle of version ``N``: loading, swapping, unloading.

A load reads, verifies and warms up every chosen version before any of them serves; if one fails,
what served before keeps serving. At start each model is loaded by itself: one that fails is
listed with its reason and the others serve. Loads of different models do not wait for one another.
"""

import collections
import dataclasses
import logging
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import jax

from ziggurat.core import config
from ziggurat.core.errors import ServeError, ZigguratError
from ziggurat.core.json_types import JsonObject
from ziggurat.serve.errors import RequestError, UnknownModel
from ziggurat.serve.predict import manifest as manifests
from ziggurat.serve.predict.batching import BatchScheduler, Queue
from ziggurat.serve.predict.bundle import LoadedBundle
from ziggurat.serve.predict.config import Batching, ModelSettings, PredictConfig
from ziggurat.serve.predict.signature import Tensor
from ziggurat.serve.predict.statistics import Statistics

_log = logging.getLogger(__name__)
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
SETTINGS = "model.toml"
_LINGER_S = 0.1
"""Longest time between finding a version and putting a decoded request into its queue."""
READY, UNAVAILABLE = "READY", "UNAVAILABLE"


def is_repository(path: Path) -> bool:
    """Whether a directory holds ``MODEL/N/manifest.json``, or is empty."""
    if not path.is_dir():
        return False
    entries = list(path.iterdir())
    return not entries or any(versions_in(entry) for entry in entries if entry.is_dir())


def versions_in(model: Path) -> list[int]:
    """The numbers of a model's version directories, ascending."""
    found = [
        int(entry.name)
        for entry in model.iterdir()
        if _VERSION.fullmatch(entry.name) and (entry / manifests.FILE).is_file()
    ]
    return sorted(found)


@dataclasses.dataclass(eq=False)
class Version:
    """A version of a model that is being served."""

    model: str
    number: int
    bundle: LoadedBundle
    settings: ModelSettings
    queue: Queue
    inputs: dict[str, Tensor] = dataclasses.field(init=False)

    def __post_init__(self):
        self.inputs = {tensor.name: tensor for tensor in self.bundle.manifest.signature.inputs}

    @property
    def statistics(self) -> Statistics:
        """Counters of the version."""
        return self.queue.statistics

    @property
    def batching(self) -> Batching:
        """Batching limits of the version."""
        return self.settings.batching


@dataclasses.dataclass(frozen=True)
class IndexEntry:
    """An entry of the repository's index."""

    name: str
    version: str
    state: str
    reason: str


class Repository:
    """Models under one directory and the versions of them that serve.

    Args:
        path: the directory.
        scheduler: runs the requests.
        settings: the server's.

    Raises:
        ServeError: no such directory, or more devices asked for than there are.
    """

    def __init__(
        self, path: Path, scheduler: BatchScheduler, settings: PredictConfig | None = None
    ):
        self.path = Path(path)
        self.settings = settings or PredictConfig()
        if not self.path.is_dir():
            raise ServeError(
                f"repository {path}",
                found="no such directory",
                expected="a directory of MODEL/N/ bundles",
            )
        self._devices = jax.local_devices()[: self.settings.devices]
        if len(self._devices) < self.settings.devices:
            raise ServeError("devices", found=len(self._devices), expected=self.settings.devices)
        self._scheduler = scheduler
        self._serving: dict[str, dict[int, Version]] = {}
        self._reasons: dict[tuple[str, int | None], str] = {}
        """Reason that a version, or a model as a whole, does not serve."""
        self._lock = threading.Lock()
        """Guards what serves; held for moments, never while a model is loaded."""
        self._loading: collections.defaultdict[str, threading.Lock] = collections.defaultdict(
            threading.Lock
        )
        """One load or unload of a model at a time."""

    def load_all(self) -> dict[str, str]:
        """Load the models that the settings name, each by itself.

        Returns:
            For each that cannot be loaded the reason; the others serve.

        Raises:
            ServeError: a model that the settings name, other than by ``*``, is not there.
        """
        names: dict[str, bool] = {}
        for asked in self.settings.load:
            names |= dict.fromkeys(self.models(), False) if asked == "*" else {asked: True}
        failed = {}
        for name, named in names.items():
            try:
                self.load(name)
            except UnknownModel:
                if named:
                    raise
            except Exception as error:  # one model's trouble, whatever it is, is not the others'
                failed[name] = _reason(error)
                _log.error("%s: not served: %s", name, failed[name])
        return failed

    def models(self) -> Iterator[str]:
        """Names of the model directories: those with a version, or with settings."""
        for entry in sorted(self.path.iterdir()):
            if not (_MODEL.fullmatch(entry.name) and entry.is_dir()):
                continue
            try:
                found = (entry / SETTINGS).exists() or any(map(_numbered, entry.iterdir()))
            except OSError as error:
                self._reasons[entry.name, None] = str(error)
                found = True
            if found:
                yield entry.name

    def load(self, name: str, isolated: bool = False) -> None:
        """Load or reload a model: its settings and the versions that its policy chooses.

        A version that serves already from the same bytes under the same settings stays as it is.
        Blocks for as long as compiling takes.

        Args:
            name: the model's.
            isolated: try every new version in a child process first, whatever the settings say.

        Raises:
            UnknownModel: no such directory.
            ServeError: a version cannot be loaded; what served before still does.
        """
        directory = self._directory(name)
        with self._loading[name]:
            try:
                new, old = self._loaded(directory, isolated)
            except Exception as error:
                self._reasons[name, None] = _reason(error)
                raise
            self._reasons.pop((name, None), None)
            with self._lock:
                self._serving = {**self._serving, name: new}
        _log.info("%s: serving version %s", name, ", ".join(map(str, new)))
        self._retire([v for v in old.values() if new.get(v.number) is not v])

    def _loaded(
        self, directory: Path, isolated: bool
    ) -> tuple[dict[int, "Version"], dict[int, "Version"]]:
        """The versions that shall serve, and those that did."""
        name = directory.name
        settings = self._settings(directory)
        chosen = settings.versions.choose(versions_in(directory))
        if not chosen:
            raise ServeError(
                f"model {name}",
                found="no versions",
                expected="directories 1, 2, ... with a bundle each",
            )
        old = self._serving.get(name, {})
        return {n: self._version(name, n, settings, old, isolated) for n in chosen}, old

    def unload(self, name: str) -> None:
        """Stop serving a model; requests it has are answered first.

        Raises:
            UnknownModel: it is not served.
        """
        if name not in self._serving:
            raise UnknownModel("model", found=repr(name[:80]), expected="a model that is served")
        with self._loading[name], self._lock:
            if name not in self._serving:
                raise UnknownModel(
                    "model", found=repr(name[:80]), expected="a model that is served"
                )
            old = self._serving[name]
            self._serving = {key: value for key, value in self._serving.items() if key != name}
            for number in old:
                self._reasons[name, number] = "unloaded"
        self._retire(list(old.values()))

    def get(self, name: str, number: str = "") -> Version:
        """The version that answers a request; without a number the highest that serves.

        Raises:
            UnknownModel: it is not served.
        """
        versions = self._serving.get(name)
        if versions:
            if not number:
                return versions[max(versions)]
            if number.isdecimal() and len(number) < 19 and int(number) in versions:
                return versions[int(number)]
            served = ", ".join(map(str, sorted(versions)))
            raise UnknownModel(
                f"version of {name}", found=repr(number[:40]), expected=f"one of {served}"
            )
        known = ", ".join(sorted(self._serving)) or "a model, but none is loaded"
        raise UnknownModel("model", found=repr(name[:80]), expected=f"one of {known}")

    def serving(self, name: str = "", number: str = "") -> list[Version]:
        """All versions that serve, of one model or of all.

        Raises:
            UnknownModel: a name or number is given and not served.
        """
        if number:
            return [self.get(name, number)]
        if name:
            self.get(name)
        chosen = [self._serving[name]] if name else self._serving.values()
        return [versions[number] for versions in chosen for number in sorted(versions)]

    def index(self, ready: bool = False) -> list[IndexEntry]:
        """Every version in the directory or serving, with its state; a model that failed as a whole
        has a line without a version."""
        found: set[tuple[str, int]] = set()
        failed: list[IndexEntry] = []
        for name in self.models():
            numbers = versions_in(self.path / name) if self._readable(name) else []
            found |= {(name, number) for number in numbers}
            reason = self._reasons.get((name, None), "")
            if not numbers:
                failed.append(IndexEntry(name, "", UNAVAILABLE, reason))
        live = {(v.model, v.number) for v in self.serving()}
        entries = [
            IndexEntry(name, str(number), READY, "")
            if (name, number) in live
            else IndexEntry(name, str(number), UNAVAILABLE, self._why_not(name, number))
            for name, number in sorted(found | live)
        ]
        return [entry for entry in entries + failed if entry.state == READY or not ready]

    def _why_not(self, name: str, number: int) -> str:
        return self._reasons.get((name, number)) or self._reasons.get((name, None), "")

    def _readable(self, name: str) -> bool:
        return os.access(self.path / name, os.R_OK | os.X_OK)

    def close(self) -> None:
        """Stop serving everything."""
        with self._lock:
            old = self.serving()
            self._serving = {}
        self._retire(old, 0.0)

    def _directory(self, name: str) -> Path:
        """The directory of a model, by a name that cannot lead out of the repository."""
        directory = self.path / name if _MODEL.fullmatch(name) else None
        if directory is None or not directory.is_dir():
            raise UnknownModel(
                "model", found=repr(name[:80]), expected="the name of a directory in the repository"
            )
        return directory

    def _settings(self, directory: Path) -> ModelSettings:
        path = directory / SETTINGS
        return config.load(ModelSettings, path).value if path.exists() else ModelSettings()

    def _version(
        self,
        name: str,
        number: int,
        settings: ModelSettings,
        old: dict[int, Version],
        isolated: bool,
    ) -> Version:
        path = self.path / name / str(number)
        try:
            before = old.get(number)
            if before is not None and before.settings == settings:
                _, digest = manifests.verify(path)
                if digest == before.bundle.digest:
                    return before
            limits = settings.batching
            bundle = LoadedBundle.load(
                path,
                self._devices,
                limits.buckets,
                custom_calls=self.settings.custom_calls,
                isolated=isolated or self.settings.untrusted or None,
            )
        except Exception as error:
            self._reasons[name, number] = _reason(error)
            raise
        _log.info("%s %d: %s", name, number, bundle.told)
        self._reasons.pop((name, number), None)
        queue = Queue(self._scheduler, bundle.manifest, bundle.programs, limits, Statistics())
        return Version(name, number, bundle, settings, queue)

    def _retire(self, versions: list[Version], linger_s: float = _LINGER_S) -> None:
        for version in versions:
            self._scheduler.retire(version.queue, linger_s)


def _numbered(entry: Path) -> bool:
    return bool(_VERSION.fullmatch(entry.name)) and entry.is_dir()


def _reason(error: Exception) -> str:
    """An error as one line; of one that is not ours also the kind."""
    text = " ".join(str(error).split())[:500]
    return text if isinstance(error, ZigguratError) else f"{type(error).__name__}: {text}"


def refuse_load_parameters(parameters: JsonObject) -> None:
    """Refuse Triton's load parameters: settings and files come from the repository alone.

    Raises:
        RequestError: there is one.
    """
    for name in parameters:
        raise RequestError(
            f"load: parameter {name[:80]}",
            found="given",
            expected="none: put files and model.toml into the repository",
            param=name[:80],
        )
