"""Putting a damaged checkpoint right with intact copies of its files.

A file is taken from another copy of the step only if its size and digest are those of the manifest;
the manifest itself only from a copy whose manifest proves itself. The step gets its name back when
every file has been read and compared.
"""

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ziggurat.checkpoint import quarantine
from ziggurat.checkpoint.digests import digest_file
from ziggurat.checkpoint.manifest import (
    MANIFEST,
    DamagedError,
    FileRecord,
    Manifest,
    damage,
    read_manifest,
)
from ziggurat.checkpoint.step_reader import StepReader
from ziggurat.checkpoint.steps import step_name, verify_step
from ziggurat.checkpoint.writer_lock import WriterLock
from ziggurat.core import atomic
from ziggurat.core.errors import CheckpointError


@dataclasses.dataclass(frozen=True)
class Repair:
    """Repair of one step, and its outcome."""

    step: int
    path: Path
    """Where it is now."""
    repaired: bool
    """Whether it is intact and under its own name again."""
    copied: tuple[str, ...]
    """Files taken from another copy."""
    missing: dict[str, str]
    """Files that stay damaged, and what is wrong with them."""
    note: str = ""
    """Reason that an intact step did not get its name back."""


def repair(
    directory: Path, sources: Sequence[Path] = (), swept: Callable[[str], None] | None = None
) -> list[Repair]:
    """Repair every damaged step of a checkpoint directory, as far as intact copies go.

    Temporaries of killed writers are removed. Steps that stay damaged are set aside.

    Args:
        directory: where the ``step_*`` directories live.
        sources: other copies: directories with ``step_*`` directories (a run, its ``checkpoints``,
            a persistent tier) or single step directories.
        swept: called with the name of each temporary that was removed.

    Returns:
        One entry for each step that was damaged, oldest first.

    Raises:
        CheckpointError: a process is saving here, or a source does not exist.
    """
    for source in sources:
        if not source.is_dir():
            raise CheckpointError(f"copy {source}", found="no such directory", fix="check --from")
    left = [entry.name for entry in directory.iterdir() if atomic.TEMPORARY in entry.name]
    lock = WriterLock(directory.absolute())
    lock.acquire()  # sweeps
    try:
        for name in left if swept else ():
            if swept and not (directory / name).exists():
                swept(name)
        for info in StepReader(directory).steps():
            try:
                verify_step(info.path)
            except DamagedError as error:
                quarantine.set_aside(info.path, error)
        return [_repair(entry, sources) for entry in quarantine.quarantined(directory)]
    finally:
        lock.release()


def copies_of(step: int, sources: Iterable[Path]) -> list[Path]:
    """Directories among and below ``sources`` that hold a copy of a step."""
    found = []
    for source in sources:
        own = source.name == step_name(step) or source.name.startswith(f"{step_name(step)}.damaged")
        candidates = [source] if own else []
        for parent in (source, source / "checkpoints"):
            candidates.append(parent / step_name(step))
            candidates += [
                entry.path for entry in quarantine.quarantined(parent) if entry.step == step
            ]
        found += [path for path in candidates if path.is_dir()]
    return list(dict.fromkeys(found))


def _repair(entry: quarantine.Quarantined, sources: Sequence[Path]) -> Repair:
    copies = [path for path in copies_of(entry.step, sources) if path != entry.path]
    copied: list[str] = []
    manifest = _manifest(entry.path, copies, copied)
    if manifest is None:
        return Repair(entry.step, entry.path, False, (), {MANIFEST: "altered, and no intact copy"})
    for name in damage(entry.path, manifest, manifest.files):
        if name not in manifest.files:
            (entry.path / name).unlink(missing_ok=True)
        elif _take(name, manifest.files[name], entry.path, copies):
            copied.append(name)
    missing = damage(entry.path, manifest, manifest.files)
    if missing:
        return Repair(entry.step, entry.path, False, tuple(copied), missing)
    if entry.home.exists():
        note = f"{entry.home.name} is there already"
        return Repair(entry.step, entry.path, False, tuple(copied), {}, note)
    atomic.commit_directory(entry.path, entry.home)
    return Repair(entry.step, entry.home, True, tuple(copied), {})


def _manifest(path: Path, copies: Sequence[Path], copied: list[str]) -> Manifest | None:
    """The step's own manifest, or that of the copy that shares most files with it."""
    try:
        return read_manifest(path)
    except CheckpointError:
        pass
    proven = []
    for copy in copies:
        try:
            manifest = read_manifest(copy)
        except CheckpointError:
            continue
        proven.append((len(damage(path, manifest, manifest.files)), copy, manifest))
    if not proven:
        return None
    _, copy, manifest = min(proven, key=lambda entry: entry[0])
    atomic.write_file(path / MANIFEST, (copy / MANIFEST).read_bytes())
    copied.append(MANIFEST)
    return manifest


def _take(name: str, record: FileRecord, path: Path, copies: Sequence[Path]) -> bool:
    """Copy one file from the first copy that has it intact; a kill leaves the old one."""
    for copy in copies:
        temporary = atomic.temporary_beside(path / name)
        try:
            if (copy / name).stat().st_size != record.bytes:
                continue
            temporary.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(copy / name, temporary)
            if digest_file(temporary) == record.xxh3_128:
                atomic.sync_path(temporary)
                os.replace(temporary, path / name)
                return True
        except OSError:
            continue
        finally:
            temporary.unlink(missing_ok=True)
    return False
