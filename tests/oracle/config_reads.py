"""Which keys of a config transformers' model reads.

A key that was never read while a model was built and run cannot change what it computes. Most keys
of a config are such: settings of generation, of training, of older versions.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock


@contextmanager
def recorded_reads() -> Iterator[set[str]]:
    """Names of attributes that are read of any config of transformers inside the block.

    A copy of a config and its dump as a table (from which transformers makes the settings of
    ``generate``) take every attribute at once and are not counted.
    """
    from transformers import PreTrainedConfig

    found: set[str] = set()
    plain = PreTrainedConfig.__getattribute__

    def read(config: Any, name: str) -> Any:
        found.add(name)
        if not name.startswith("__"):
            found.add(type(config).attribute_map.get(name, name))
        return plain(config, name)

    with mock.patch.object(PreTrainedConfig, "__getattribute__", read):
        yield found


def changed(config: Any, base: Any) -> set[str]:
    """Names of attributes in which two configs differ, in value or in type."""
    ours, theirs = vars(config), vars(base)
    missing = object()
    return {
        name
        for name in ours.keys() | theirs.keys()
        if repr(ours.get(name, missing)) != repr(theirs.get(name, missing))
    }
