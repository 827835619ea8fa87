"""Opening a run file or run directory for the commands of ``ziggurat data``, without JAX."""

import dataclasses
import json
import logging
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, ProgressColumn

from ziggurat.checkpoint.manifest import RECORDS
from ziggurat.core import config, hub
from ziggurat.core.errors import ConfigError, DataError
from ziggurat.core.json_types import JsonObject
from ziggurat.data import (
    DataConfig,
    HuggingFaceTokenizer,
    PackedDataset,
    TokenizerConfig,
    build,
    tokenizer_files,
    tokenizer_for,
)
from ziggurat.data.opening import Dataset
from ziggurat.train import recipes

_log = logging.getLogger(__name__)

READ = ("name", "output", "seed", "model", "tokenizer", "data")
"""Keys of a run file that decide its data."""


@config.node
class DataRun:
    """The tables of a run file that decide the data; others are left to ``train``."""

    name: str
    output: Path = Path("runs")
    seed: int = 0
    model: JsonObject = dataclasses.field(default_factory=dict)
    """Only a pretrained model's path, if the run brings no tokenizer of its own."""
    tokenizer: TokenizerConfig | None = None
    data: DataConfig
    objective: JsonObject = dataclasses.field(default_factory=dict)
    adapter: JsonObject = dataclasses.field(default_factory=dict)
    quantize: JsonObject = dataclasses.field(default_factory=dict)
    optimizer: JsonObject = dataclasses.field(default_factory=dict)
    train: JsonObject = dataclasses.field(default_factory=dict)
    evaluation: JsonObject = dataclasses.field(default_factory=dict)
    checkpoint: JsonObject = dataclasses.field(default_factory=dict)
    mesh: JsonObject = dataclasses.field(default_factory=dict)
    profile: JsonObject = dataclasses.field(default_factory=dict)
    report: JsonObject = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class RunSource:
    """A run file, and the run's directory if that was what the user named."""

    run: DataRun
    directory: Path | None

    @property
    def cache(self) -> Path:
        """Where tokenizers and token stores of this run are kept: beside its directory."""
        runs = self.run.output if self.directory is None else self.directory.parent
        return runs / "cache"

    @property
    def steps(self) -> int | None:
        """Steps that the run trains for, if its file says so."""
        steps = self.run.train.get("steps")
        return steps if isinstance(steps, int) else None


def load(path: Path, overrides: Sequence[str] = ()) -> RunSource:
    """Read a run file, or the ``run.toml`` of a run directory.

    Raises:
        ConfigError: as :func:`ziggurat.core.config.load`; or an override of what is not read here.
    """
    for override in overrides:
        key = override.partition("=")[0].split(".")[0].strip()
        if key not in READ:
            raise ConfigError(
                f"override {override}",
                found=f"the table {key}, which does not decide the data",
                expected="a key of " + ", ".join(READ),
            )
    directory = path if path.is_dir() else None
    if directory is not None and not (path / "run.toml").is_file():
        raise ConfigError(
            f"run {path}", found="no run.toml in it", expected="a run file or a run's directory"
        )
    file = recipes.run_file(path) if directory is None else path / "run.toml"
    _refuse_other_kinds(file)
    return RunSource(config.load(DataRun, file, overrides).value, directory)


def _refuse_other_kinds(file: Path) -> None:
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8")).get("data")
    except (OSError, ValueError):
        return  # said better when it is loaded
    kind = table.get("kind", "text") if isinstance(table, dict) else "text"
    if kind != "text":
        raise ConfigError(
            f"{file}: data.kind",
            found=repr(kind),
            expected="'text', whose documents this command reads",
            fix="images and problems are looked at by training on them",
        )


def tokenizer_of(source: RunSource) -> HuggingFaceTokenizer:
    """The run's tokenizer: loaded, trained if it is asked for and not there yet, or its model's.

    Raises:
        ConfigError: the run names none.
        DataError, ModelError: as reading them says.
    """
    run = source.run
    if run.tokenizer is not None:
        return tokenizer_for(run.tokenizer, run.data, source.cache)
    path = run.model.get("path")
    if run.model.get("kind") != "pretrained" or not isinstance(path, str):
        raise ConfigError(
            "tokenizer",
            found="nothing",
            expected="a [tokenizer] table, since the model is new",
            fix='e.g. kind = "train_bpe"',
        )
    here = hub.local(path, files=hub.TOKENIZER_FILES)
    if tokenizer_files.present(here) is not None:
        return HuggingFaceTokenizer.load(here)
    from ziggurat.models.loading import pretrained  # a checkpoint or GGUF file: this needs JAX

    return pretrained.load(path).tokenizer


def open_data(source: RunSource, tokenizer: HuggingFaceTokenizer) -> Dataset:
    """The training split of a run, from the cache or made now.

    Raises:
        DataError: as :func:`ziggurat.data.build`.
    """
    return build(source.run.data, tokenizer, source.run.seed, source.cache)


def open_stores(source: RunSource, command: str) -> PackedDataset:
    """The training split of a run whose tokens are kept.

    Raises:
        ConfigError: as :func:`require_stores`.
        DataError: as :func:`ziggurat.data.build`.
    """
    require_stores(source, command)
    dataset = open_data(source, tokenizer_of(source))
    assert isinstance(dataset, PackedDataset)
    return dataset


def require_stores(source: RunSource, command: str) -> None:
    """Refuse data that is tokenised while training reads it.

    Raises:
        ConfigError: there is no store to make or to look into.
    """
    if source.run.data.tokenize == "stream":
        raise ConfigError(
            f"data {command}",
            found='data.tokenize = "stream", which keeps no tokens',
            expected='"ahead"',
            fix="leave data.tokenize out",
        )


def progress_bar(*columns: ProgressColumn) -> Progress:
    """A bar on standard error that leaves nothing behind; silent where that is no terminal."""
    silent = not sys.stderr.isatty()
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=silent)


def check_unchanged(source: RunSource, dataset: Dataset) -> DataError | None:
    """Compare the data with what the newest checkpoint of a run directory was trained on.

    Returns:
        What has changed; None if nothing has, or if there is nothing to compare with.
    """
    state = _saved_state(source.directory) if source.directory is not None else None
    if state is None:
        return None
    try:
        dataset.check_state(state)
    except DataError as error:
        return error
    return None


def warn_if_changed(source: RunSource, dataset: Dataset) -> None:
    """Log that the data is not the run's any more, if so."""
    changed = check_unchanged(source, dataset)
    if changed:
        _log.warning(
            "not the data that run %s was trained on: found %s; expected %s",
            *(source.run.name, changed.found, changed.expected),
        )


def _saved_state(directory: Path) -> JsonObject | None:
    """The data state of the newest checkpoint that has one."""
    for records in sorted(directory.glob(f"checkpoints/step_*/{RECORDS}"), reverse=True):
        try:
            state = json.loads(records.read_text(encoding="utf-8")).get("data")
        except (OSError, ValueError, AttributeError):
            continue
        if isinstance(state, dict):
            return state
    return None
