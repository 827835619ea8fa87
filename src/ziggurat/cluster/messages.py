"""Messages between the controller and its hosts."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Hello:
    """Message of a new host to the controller: it is connected and has imported everything."""

    name: str
    life: str
    """Drawn by the controller when it started this process: one name may live several times."""
    pid: int
    machine: str
    versions: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Caller:
    """Message of a command-line client to the controller, the first and only one."""

    do: str
    arguments: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Enter:
    """Message to a host: leave its world and join this one."""

    number: int
    """Number of the request; its answer carries it."""
    generation: int
    address: str
    count: int
    index: int
    within_s: float


@dataclasses.dataclass(frozen=True)
class Call:
    """Message to a host: call a function."""

    number: int
    payload: bytes
    """See :mod:`ziggurat.cluster.functions`."""
    in_world: bool
    """Whether the first argument is the :class:`ziggurat.cluster.World`."""


@dataclasses.dataclass(frozen=True)
class Returned:
    """Message of a host: its :class:`Call` or :class:`Enter` returned."""

    number: int
    payload: bytes
    left: bool = False
    """Whether the program left because it was asked to."""


@dataclasses.dataclass(frozen=True)
class Raised:
    """Message of a host: its :class:`Call` or :class:`Enter` raised an exception."""

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
    """Message to a host: report the current step, and stop at the next boundary until
    :class:`Go`."""


@dataclasses.dataclass(frozen=True)
class PassedBoundary:
    """Message of a host: the newest boundary that it has passed; -1 before the first."""

    step: int


@dataclasses.dataclass(frozen=True)
class Go:
    """Message to a host: continue, and leave at the boundary of step ``leave_at`` if that is
    given."""

    leave_at: int | None


@dataclasses.dataclass(frozen=True)
class Interrupt:
    """Message to a host: the world is broken, stop waiting for other processes."""

    reason: str


@dataclasses.dataclass(frozen=True)
class Dump:
    """Message to a host: print the stack of every thread."""


@dataclasses.dataclass(frozen=True)
class Ping:
    """Message to a host: the controller is alive."""


@dataclasses.dataclass(frozen=True)
class End:
    """Message to a host: end the process."""


@dataclasses.dataclass(frozen=True)
class Beat:
    """Message of a host: it is alive; with its newest boundary, and whether it is compiling."""

    step: int
    compiling: bool = False


@dataclasses.dataclass(frozen=True)
class ProgressReport:
    """Message of a host: how many steps its program has done, and where its time went."""

    generation: int
    step: int
    ledger_s: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Keep:
    """Message of a host: keep this content under a name for other hosts."""

    name: str
    content: bytes


@dataclasses.dataclass(frozen=True)
class Fetch:
    """Message of a host: send the content kept under a name."""

    name: str


@dataclasses.dataclass(frozen=True)
class Kept:
    """Message to a host: the content asked for by :class:`Fetch`."""

    name: str
    content: bytes | None


@dataclasses.dataclass(frozen=True)
class Notice:
    """Message of a host: it got SIGTERM and will be taken away soon."""


@dataclasses.dataclass(frozen=True)
class Output:
    """Message of a host: a line that it printed."""

    line: str


@dataclasses.dataclass(frozen=True)
class Ended:
    """Event: a host is gone, as its engine or its closed connection tells."""

    how: str
