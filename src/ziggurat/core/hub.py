"""Repositories of the Hugging Face hub wherever a path of a model or data set is taken.

``acme/tiny`` stands for the repository when no such path exists, ``acme/tiny@v1`` for a revision,
``acme/tiny/model-q4.gguf`` for one file. ``huggingface_hub`` finds or fetches it and reads its own
environment variables (``HF_HOME``, ``HF_HUB_CACHE``, ``HF_HUB_OFFLINE``, ``HF_ENDPOINT``,
``HF_TOKEN``): with a network it looks the revision up and downloads what is missing, without one
the copy in the cache serves.

>>> HubId.parse("acme/tiny@v1")
HubId(repository='acme/tiny', revision='v1', file=None)
>>> HubId.parse("acme/tiny-GGUF/tiny-q4.gguf").file
'tiny-q4.gguf'
>>> HubId.parse("/models/tiny") is None, HubId.parse("runs/tiny.toml") is None
(True, True)
"""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from ziggurat.core.errors import DataError, EnvironmentError, ModelError, ZigguratError

_log = logging.getLogger(__name__)
Kind = Literal["model", "dataset"]
_TOKENIZERS = ("tokenizer.model", "tiktoken.model", "*.tiktoken")
MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", *_TOKENIZERS)
"""Files of a model: config, weights and tokenizer; no pickles, and no second copies of weights."""
TOKENIZER_FILES = ("*.json", "*.jinja", "*.txt", *_TOKENIZERS)
"""Files of a model whose weights are not wanted."""
SECOND_COPIES = ("original/*", "consolidated*", "*.fp16.*", "*.non_ema.*", "onnx/*", "openvino/*")
_PART = r"[A-Za-z0-9][\w.-]*"
_ID = re.compile(rf"(?P<repository>{_PART}/{_PART})(?:/(?P<file>[^@]+))?(?:@(?P<revision>.+))?")
_FILES = (".toml", ".gguf", ".json", ".jsonl", ".txt", ".pt", ".safetensors", ".parquet", ".zst")
"""Endings with which ``a/b`` is a file of this machine."""


class HubId(NamedTuple):
    """A repository of the hub, or a file in it."""

    repository: str
    revision: str | None = None
    file: str | None = None

    @classmethod
    def parse(cls, text: str) -> "HubId | None":
        """The hub repository that a text names; None if it can only be a path."""
        match = _ID.fullmatch(text)
        if match is None or match["repository"].endswith(_FILES) or "/.." in text:
            return None
        return cls(match["repository"], match["revision"], match["file"])


def local(path: Path | str, kind: Kind = "model", files: Sequence[str] | None = None) -> Path:
    """Where a model or data set lies on this machine, downloaded from the hub if need be.

    Args:
        path: a path, which wins if it exists, or ``owner/name``, ``owner/name@revision`` or
            ``owner/name/file``. ``~`` is the home directory.
        kind: of the repository.
        files: patterns of the files wanted; default: of a model what is read of it, of a data set
            all.

    Returns:
        The path as it is if it exists, or can be nothing but a path; else the snapshot's directory,
        or the file.

    Raises:
        ModelError, DataError: no such path, and the hub and its cache do not have it.
    """
    given = Path(path).expanduser()
    if given.exists():
        return _snapshot_of(given)
    wanted = HubId.parse(str(path))
    if wanted is None or Path(wanted.repository.partition("/")[0]).exists():
        return given  # a path that is missing: who reads it says so
    return _fetched(wanted, kind, files)


def name_of(path: Path) -> str:
    """Name of the model at ``path``: the directory's or file's, or its repository's id.

    >>> name_of(Path("hub/models--acme--tiny/snapshots/0123abc")), name_of(Path("models/tiny"))
    ('acme/tiny', 'tiny')
    """
    if path.parent.name == "snapshots" and path.parent.parent.name.startswith("models--"):
        return path.parent.parent.name.removeprefix("models--").replace("--", "/")
    return path.name


def _snapshot_of(path: Path) -> Path:
    """A repository's own directory in the cache means its main revision."""
    reference = path / "refs" / "main"
    if not reference.is_file() or (path / "config.json").exists():
        return path
    snapshot = path / "snapshots" / reference.read_text(encoding="utf-8").strip()
    return snapshot if snapshot.is_dir() else path


def _fetched(wanted: HubId, kind: Kind, files: Sequence[str] | None) -> Path:
    try:
        import huggingface_hub
    except ImportError as error:
        raise EnvironmentError(
            f"{kind} {wanted.repository}",
            found=f"no such path, and no package huggingface_hub ({error})",
            expected="it installed",
            fix="pip install huggingface_hub, or give a path",
        ) from None
    model = kind == "model"
    try:
        if wanted.file is not None:
            found = huggingface_hub.hf_hub_download(
                wanted.repository, wanted.file, revision=wanted.revision, repo_type=kind
            )
        else:
            found = huggingface_hub.snapshot_download(
                wanted.repository,
                revision=wanted.revision,
                repo_type=kind,
                allow_patterns=list(files or (MODEL_FILES if model else ())) or None,
                ignore_patterns=list(SECOND_COPIES) if model and files is None else None,
            )
    except Exception as error:  # the hub's own, its HTTP client's, or the disk's
        raise _refusal(wanted, kind, error) from error
    _log.info("%s %s is %s", kind, wanted.repository, found)
    return Path(found)


def _refusal(wanted: HubId, kind: Kind, error: Exception) -> ZigguratError:
    """One line: what was looked for, why it is not there, what to run."""
    from huggingface_hub import constants, errors

    shown = wanted.repository + (f"@{wanted.revision}" if wanted.revision else "")
    shown += f"/{wanted.file}" if wanted.file else ""
    option = f" --revision {wanted.revision}" if wanted.revision else ""
    option += " --repo-type dataset" if kind == "dataset" else ""
    fetch = f"hf download {wanted.repository}{option}"
    expected = "a path, or a repository of the hub"
    causes: list[tuple[type[Exception] | tuple[type[Exception], ...], str, str]] = [
        (
            errors.GatedRepoError,
            "a repository whose terms must be accepted",
            f"accept them at {constants.ENDPOINT}/{wanted.repository}, then: hf auth login",
        ),
        (
            errors.RepositoryNotFoundError,
            "no such path, and no such repository on the hub (or a private one)",
            "check the name; for a private repository: hf auth login",
        ),
        (errors.RevisionNotFoundError, f"no revision {wanted.revision}", "check the revision"),
        (errors.RemoteEntryNotFoundError, f"no file {wanted.file} in it", "check the file's name"),
        (
            (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, ConnectionError),
            f"no such path, no whole copy in {constants.HF_HUB_CACHE}, and "
            + ("HF_HUB_OFFLINE is set" if constants.is_offline_mode() else "no answer of the hub"),
            f"where there is a network: {fetch}, or {fetch} --local-dir DIR and give DIR",
        ),
    ]
    kinds = {"model": ModelError, "dataset": DataError}
    for classes, found, fix in causes:
        if isinstance(error, classes):
            return kinds[kind](f"{kind} {shown}", found=found, expected=expected, fix=fix)
    line = " ".join(str(error).split())[:300] or type(error).__name__
    return kinds[kind](f"{kind} {shown} from the hub", found=line, fix=fetch)
