"""One form for every error a user can cause: what failed, what was found, what was expected, what
to do. The command line prints the line and exits 2; ``--debug`` adds the traceback.

>>> print(ConfigError("optimizer.lr", found="-1", expected="a positive number", fix="set lr > 0"))
optimizer.lr: found -1; expected a positive number; set lr > 0
"""

import difflib
from collections.abc import Iterable, Mapping


class ZigguratError(Exception):
    """Base of all errors that bad input or a bad environment can cause.

    Args:
        what: what failed, naming the file, key or tensor.
        found: what was there.
        expected: what should have been there.
        fix: what the user can do about it.
    """

    def __init__(self, what: str, *, found: object = "", expected: object = "", fix: str = ""):
        self.what, self.found, self.expected, self.fix = what, str(found), str(expected), fix
        parts = [
            f"found {self.found}" if self.found else "",
            f"expected {self.expected}" if self.expected else "",
            fix,
        ]
        detail = "; ".join(part for part in parts if part)
        super().__init__(f"{what}: {detail}" if detail else what)

    def __reduce__(self):
        return _rebuild, (type(self), self.args[0], self.__dict__)


def _rebuild(cls: type[ZigguratError], text: str, fields: dict) -> ZigguratError:
    error = cls.__new__(cls, text)
    error.__dict__.update(fields)
    return error


class ConfigError(ZigguratError):
    """Error: a run file, an override or an option is wrong."""


class ShapeError(ZigguratError):
    """Error: an array has another shape or type than the operation needs."""


class ShardingError(ZigguratError):
    """Error: a mesh cannot be built, or a dimension does not divide over it."""


class CheckpointError(ZigguratError):
    """Error: a checkpoint or weight file is missing, damaged or of another shape."""


class DataError(ZigguratError):
    """Error: a corpus, record or tokenizer is missing, empty or damaged."""


class ModelError(ZigguratError):
    """Error: a model directory or architecture is unknown or uses an unsupported switch."""


class TrainError(ZigguratError):
    """Error: training cannot start or cannot continue."""


class PlanError(ZigguratError):
    """Error: a plan cannot be made, or contradicts itself, which is a fault of Ziggurat's own
    count."""


class ServeError(ZigguratError):
    """Error: a server cannot start, or a request asks for what is not there."""


class ClusterError(ZigguratError):
    """Error: hosts cannot be started, reached or used together, or a function failed on one of
    them."""


class StorageError(ZigguratError):
    """Error: the operating system refused to read, write or make a file or directory."""


class EnvironmentError(ZigguratError):
    """Error: this machine lacks a package, a device, disk or memory."""


def did_you_mean(name: str, known: Iterable[str], shown: Mapping[str, str] | None = None) -> str:
    """Suggest the nearest of ``known``, as a phrase for ``fix``; empty when nothing is near.

    Args:
        name: what was given.
        known: what there is.
        shown: how to write each of them, if other than by itself.

    >>> did_you_mean("learning_rte", ["learning_rate", "steps"])
    'did you mean learning_rate?'
    """
    if len(name) > 200:  # the comparison takes time and memory without bounds
        return ""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"did you mean {(shown or {}).get(near[0], near[0])}?" if near else ""
