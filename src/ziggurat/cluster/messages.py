"""Messages between the controller and its hosts."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Hello:
    """Host to controller, first: I am here, with everything imported."""

    name: str
    life: str
    """Drawn by the controller when it started this process: one name may live several times."""
    pid: int
    machine: str
    versions: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Caller:
    """A person's command to the controller, first and only."""

    do: str
    arguments: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Enter:
    """Leave the world you are in, and enter this one."""

    number: int
    """Of the request; its answer carries it."""
    generation: int
    address: str
    count: int
    index: int
    within_s: float


@dataclasses.dataclass(frozen=True)
class Call:
    """Call a function."""

    number: int
    payload: bytes
    """See :mod:`ziggurat.cluster.functions`."""
    in_world: bool
    """Whether the first argument is the :class:`ziggurat.cluster.World`."""


@dataclasses.dataclass(frozen=True)
class Returned:
    """Answer to a :class:`Call` or :class:`Enter`."""

    number: int
    payload: bytes
    left: bool = False
    """Whether the program left because it was asked to."""


@dataclasses.dataclass(frozen=True)
class Raised:
    """The other answer: an exception."""

    number: int
    kind: str
    """Name of its type."""
    line: str
    """Error text on one line."""
    traceback: str
    users: bool
    """Whether it is a ``ZigguratError``: something a user can mend."""
    peers: bool = False
    """Whether it tells of a peer that is gone, see :mod:`ziggurat.cluster.blame`."""


@dataclasses.dataclass(frozen=True)
class Hold:
    """Say at which step you are, and do not go beyond the next boundary before :class:`Go`."""


@dataclasses.dataclass(frozen=True)
class PassedBoundary:
    """The newest boundary that was passed; -1 before the first."""

    step: int


@dataclasses.dataclass(frozen=True)
class Go:
    """Continue; leave at the boundary of step ``leave_at``, if there is one."""

    leave_at: int | None


@dataclasses.dataclass(frozen=True)
class Interrupt:
    """The world is broken: stop waiting for the others."""

    reason: str


@dataclasses.dataclass(frozen=True)
class Dump:
    """Print where every thread is."""


@dataclasses.dataclass(frozen=True)
class Ping:
    """The controller lives."""


@dataclasses.dataclass(frozen=True)
class End:
    """End the process."""


@dataclasses.dataclass(frozen=True)
class Beat:
    """The host lives; its newest boundary, and whether it compiles just now."""

    step: int
    compiling: bool = False


@dataclasses.dataclass(frozen=True)
class ProgressReport:
    """How far a program is, and where its time went."""

    generation: int
    step: int
    ledger_s: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Keep:
    """Host to controller: keep this for those who ask for it by name."""

    name: str
    content: bytes


@dataclasses.dataclass(frozen=True)
class Fetch:
    """Host to controller: send what is kept under a name."""

    name: str


@dataclasses.dataclass(frozen=True)
class Kept:
    """The answer to a :class:`Fetch`."""

    name: str
    content: bytes | None


@dataclasses.dataclass(frozen=True)
class Notice:
    """Notice that the sending host will be taken away soon: it got SIGTERM."""


@dataclasses.dataclass(frozen=True)
class Output:
    """A line that the host printed."""

    line: str


@dataclasses.dataclass(frozen=True)
class Ended:
    """The host is gone; told by its engine, or by its closed connection."""

    how: str
