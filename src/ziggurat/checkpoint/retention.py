"""Which checkpoints are kept, and how one is removed without taking it from under a reader."""

import contextlib
import fcntl
import logging
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from ziggurat.checkpoint.config import CheckpointConfig
from ziggurat.core import atomic

_log = logging.getLogger(__name__)


def steps_to_keep(
    intact: Collection[int],
    keep_last: int,
    keep_every: int | None = None,
    *,
    values: Mapping[int, float] | None = None,
    keep_best: int = 0,
    best: str = "lowest",
) -> set[int]:
    """Intact steps that retention keeps; the newest is always among them.

    Args:
        values: the metric of each step that has one.
        keep_best: how many steps with the best values are kept; of equals the older.

    >>> sorted(steps_to_keep({10, 20, 30, 40, 50}, keep_last=2, keep_every=20))
    [20, 40, 50]
    >>> sorted(steps_to_keep({10, 20, 30}, 1, values={10: 2.0, 20: 3.0, 30: 4.0}, keep_best=1))
    [10, 30]
    """
    kept = set(sorted(intact)[-max(keep_last, 1) :])
    kept |= {step for step in intact if keep_every and step % keep_every == 0}
    sign = 1.0 if best == "lowest" else -1.0
    ranked = sorted((sign * value, step) for step, value in (values or {}).items())
    return kept | {step for _, step in [pair for pair in ranked if pair[1] in intact][:keep_best]}


def kept_by(config: CheckpointConfig, intact: Mapping[int, Mapping[str, float]]) -> set[int]:
    """Intact steps, given with their metrics, that a configuration keeps."""
    values = {
        s: metrics[config.metric] for s, metrics in intact.items() if config.metric in metrics
    }
    return steps_to_keep(
        intact,
        config.keep_last,
        config.keep_every,
        values=values,
        keep_best=config.keep_best,
        best=config.best,
    )


@contextlib.contextmanager
def reading(directory: Path) -> Iterator[None]:
    """Protect a step directory from retention, in this process and others, while it is read.

    A shared ``flock`` on the directory, which ends with its holder; nothing on a file system
    without locks.
    """
    descriptor = _open(directory)
    try:
        if descriptor is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


@contextlib.contextmanager
def unread(directory: Path) -> Iterator[bool]:
    """Whether nobody reads a step directory; nobody can begin to before the block ends."""
    descriptor, free = _open(directory), True
    try:
        if descriptor is not None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                free = False
            except OSError as error:
                _log.debug("%s is on a file system without locks: %s", directory, error)
        yield free
    finally:
        if descriptor is not None:
            os.close(descriptor)


def remove_unread(directory: Path) -> bool:
    """Remove a step directory unless somebody reads it; returns whether it is gone."""
    with unread(directory) as free:
        if free:
            atomic.remove_directory(directory)
        return free


def _open(directory: Path) -> int | None:
    try:
        return os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
