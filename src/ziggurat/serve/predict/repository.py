"""A directory of models, ``MODEL/N/`` a bundle of version ``N``: loading, swapping, unloading.

A load reads, verifies and warms up every chosen version before any of them serves; if one fails,
what served before goes on serving.
"""

import dataclasses
import logging
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from ziggurat.core import config
from ziggurat.core.errors import ServeError, ZigguratError
from ziggurat.serve.errors import RequestError, UnknownModel
from ziggurat.serve.predict import manifest as manifests
from ziggurat.serve.predict.batching import Queue, Scheduler
from ziggurat.serve.predict.bundle import LoadedBundle
from ziggurat.serve.predict.config import Batching, ModelConfig, PredictConfig
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
    """A version that serves."""

    model: str
    number: int
    bundle: LoadedBundle
    settings: ModelConfig
    queue: Queue
    inputs: dict[str, Tensor] = dataclasses.field(init=False)

    def __post_init__(self):
        self.inputs = {tensor.name: tensor for tensor in self.bundle.manifest.signature.inputs}

    @property
    def statistics(self) -> Statistics:
        """Its counters."""
        return self.queue.statistics

    @property
    def batching(self) -> Batching:
        """Its limits."""
        return self.settings.batching


@dataclasses.dataclass(frozen=True)
class IndexEntry:
    """One line of the repository's index."""

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

    def __init__(self, path: Path, scheduler: Scheduler, settings: PredictConfig | None = None):
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
        self._reasons: dict[tuple[str, int], str] = {}
        self._lock = threading.Lock()

    def load_all(self) -> None:
        """Load the models that the settings name.

        Raises:
            ServeError: one cannot be loaded.
        """
        names: list[str] = []
        for asked in self.settings.load:
            names += list(self.models()) if asked == "*" else [asked]
        for name in dict.fromkeys(names):
            self.load(name)

    def models(self) -> Iterator[str]:
        """Names of the model directories."""
        for entry in sorted(self.path.iterdir()):
            if entry.is_dir() and _MODEL.fullmatch(entry.name):
                yield entry.name

    def load(self, name: str) -> None:
        """Load or reload a model: its settings and the versions that its policy chooses.

        A version that serves already from the same bytes under the same settings stays as it is.
        Blocks for as long as compiling takes.

        Raises:
            UnknownModel: no such directory.
            ServeError: a version cannot be loaded; what served before still does.
        """
        directory = self._directory(name)
        with self._lock:
            settings = self._settings(directory)
            present = versions_in(directory)
            chosen = settings.versions.choose(present)
            if not chosen:
                raise ServeError(
                    f"model {name}",
                    found="no versions",
                    expected="directories 1, 2, ... with a bundle each",
                )
            old = self._serving.get(name, {})
            new = {number: self._version(name, number, settings, old) for number in chosen}
            self._serving = {**self._serving, name: new}
        _log.info("%s: serving version %s", name, ", ".join(map(str, new)))
        self._retire([v for v in old.values() if new.get(v.number) is not v])

    def unload(self, name: str) -> None:
        """Stop serving a model; requests it has are answered first.

        Raises:
            UnknownModel: it is not served.
        """
        with self._lock:
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
        """Every version in the directory or serving, with its state."""
        found: set[tuple[str, int]] = set()
        for name in self.models():
            found |= {(name, number) for number in versions_in(self.path / name)}
        live = {(v.model, v.number) for v in self.serving()}
        entries = [
            IndexEntry(name, str(number), READY, "")
            if (name, number) in live
            else IndexEntry(name, str(number), UNAVAILABLE, self._reasons.get((name, number), ""))
            for name, number in sorted(found | live)
        ]
        return [entry for entry in entries if entry.state == READY or not ready]

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

    def _settings(self, directory: Path) -> ModelConfig:
        path = directory / SETTINGS
        return config.load(ModelConfig, path).value if path.exists() else ModelConfig()

    def _version(
        self, name: str, number: int, settings: ModelConfig, old: dict[int, Version]
    ) -> Version:
        path = self.path / name / str(number)
        try:
            before = old.get(number)
            if before is not None and before.settings == settings:
                _, digest = manifests.verify(path)
                if digest == before.bundle.digest:
                    return before
            limits = settings.batching
            bundle = LoadedBundle.load(path, self._devices, limits.buckets)
        except ZigguratError as error:
            self._reasons[name, number] = str(error)
            raise
        _log.info("%s %d: %s", name, number, bundle.told)
        self._reasons.pop((name, number), None)
        queue = Queue(self._scheduler, bundle.manifest, bundle.programs, limits, Statistics())
        return Version(name, number, bundle, settings, queue)

    def _retire(self, versions: list[Version], linger_s: float = _LINGER_S) -> None:
        for version in versions:
            self._scheduler.retire(version.queue, linger_s)


def refuse_load_parameters(parameters: dict[str, Any]) -> None:
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
