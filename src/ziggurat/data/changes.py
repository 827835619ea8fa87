"""Changes in the data of a run that is resumed, named by source and file.

A checkpoint holds of each component a digest of the documents that are used, and the name of the
token store they came from. Where the digest is another, that store, if the cache still has it, is
compared with the present one file by file.
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import xxhash

from ziggurat.core.errors import DataError
from ziggurat.data.store import TokenStore, open_store

STORE, KEY_DIGITS = "tokens-", 6
"""How a store's directory begins, and how much of its key a checkpoint keeps."""
SHOWN = 3
"""Files that an error names."""


class UsedDocuments(NamedTuple):
    """Identity of the documents that a component uses."""

    name: str
    """Name of the component; empty where there is only one."""
    store: TokenStore
    content: str
    """A digest of their tokens, borders and choice; nothing of where they lie."""
    documents: int

    @property
    def mark(self) -> str:
        """Short form for checkpoints: the digest, and the beginning of the store's key."""
        return f"{self.content}.{self.store.path.name.removeprefix(STORE)[:KEY_DIGITS]}"


def check_used(before: Mapping[str, str] | None, now: Sequence[UsedDocuments]) -> None:
    """Refuse components whose documents changed; components may be added.

    Args:
        before: :attr:`UsedDocuments.mark` of each component, by name, from a checkpoint.
        now: the components that there are.

    Raises:
        DataError: one is gone or changed; its files are named where the cache still tells.
    """
    if before is None:
        raise DataError(
            "data of the checkpoint",
            found="a state of an earlier version",
            expected="one that says which documents it used",
            fix="begin a new run from its weights",
        )
    present = {used.name: used for used in now}
    for name, mark in before.items():
        if name not in present:
            raise DataError(
                f"data of the checkpoint: source {name}",
                found="no source of that name" if name else "a mixture",
                expected="it" if name else "none",
                fix="put it back; a later stage of data.mixture may give it weight 0",
            )
        content, _, key = mark.partition(".")
        if present[name].content != content:
            raise _changed(present[name], content, key)


def _changed(used: UsedDocuments, content: str, key: str) -> DataError:
    what = "data of the checkpoint" + (f": source {used.name}" if used.name else "")
    files: list[str] = []
    for path in used.store.path.parent.glob(f"{STORE}{key}*"):
        with contextlib.suppress(DataError):  # one that is not whole tells nothing
            files = files or differing_files(open_store(path), used.store)
    more = f" and {len(files) - SHOWN} more files" if len(files) > SHOWN else ""
    found = "; ".join(files[:SHOWN]) + more
    if not found:
        found = f"{used.documents} documents of content {used.content}"
    return DataError(
        what,
        found=found,
        expected=f"those of content {content}, which it was trained on",
        fix="bring them back as they were; give new documents a source of their own, with a weight "
        "in a later stage of data.mixture; or begin another run from this one's weights",
    )


def differing_files(old: TokenStore, new: TokenStore) -> list[str]:
    """Phrases that name each changed file; files that only moved are left out."""
    then, now = _files(old), _files(new)
    moved = {digest for _, digest in then.values()} & {digest for _, digest in now.values()}
    phrases = []
    for name in {**now, **then}:
        before, after = then.get(name), now.get(name)
        if all(entry is None or entry[1] in moved for entry in (before, after)):
            continue
        if after is None:
            phrases.append(f"{name} is gone")
        elif before is None:
            phrases.append(f"{name} is new, with {after[0]} documents")
        elif before[0] != after[0]:
            phrases.append(f"{name} has {after[0]} documents, {before[0]} before")
        else:
            phrases.append(f"{name} has other documents than before")
    return phrases


def _files(store: TokenStore) -> dict[str, tuple[int, str]]:
    """Documents of each file, and a digest of what they say."""
    order = np.argsort(store.files, kind="stable")
    counts = np.bincount(store.files, minlength=len(store.meta["files"]))
    parts = np.split(store.identities[order], np.cumsum(counts)[:-1])
    return {
        name: (len(part), xxhash.xxh3_128_hexdigest(np.ascontiguousarray(part).tobytes()))
        for name, part in zip(store.meta["files"], parts, strict=True)
    }
