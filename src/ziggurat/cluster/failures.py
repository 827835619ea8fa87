"""Errors that happened on a host, told on the controller."""

from ziggurat.cluster import messages
from ziggurat.cluster.hosts import Host
from ziggurat.core.errors import ClusterError


class HostError(ClusterError):
    """Error: a function raised an exception on a host.

    >>> error = HostError("host-1", "ValueError", "no such row", "Traceback ...")
    >>> print(error)
    host-1: ValueError: no such row
    >>> error.host, error.kind
    ('host-1', 'ValueError')
    """

    def __init__(self, host: str, kind: str, line: str, traceback: str, users: bool = False):
        super().__init__(f"{host}: {line}" if users else f"{host}: {kind}: {line}")
        self.host, self.kind, self.line = host, kind, line
        self.traceback = traceback
        """As it was printed there."""
        self.users = users
        """Whether it is a ``ZigguratError``, which a user can mend."""
        self.add_note(f"on {host}:\n{traceback}")


class HostLostError(ClusterError):
    """Error: a host died or was killed while a function ran on it."""

    def __init__(self, host: str, how: str, lines: list[str]):
        said = f"; it printed last: {lines[-1][:200]}" if lines else ""
        super().__init__(f"{host} was lost: {how}{said}")
        self.host, self.how, self.lines = host, how, lines


def failure_of(host: Host, raised: messages.Raised) -> HostError:
    """Build the exception to raise for a host's answer that its function raised."""
    return HostError(host.name, raised.kind, raised.line, raised.traceback, raised.users)
