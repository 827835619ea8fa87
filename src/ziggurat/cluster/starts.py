"""Which hosts are started, and which are given up."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence

from ziggurat.cluster import messages
from ziggurat.cluster.budget import FailureBudget
from ziggurat.cluster.hosts import Host, Hosts

_log = logging.getLogger(__name__)
STARTS = 3
"""Starts in a row that fail before a host is ready, until it is given up."""


class Starts:
    """Starts missing hosts, and gives up after too many failed starts.

    Args:
        hosts: all hosts.
        restart: whether hosts that were lost are started anew.
        budget: makes the budget of losses of one host.
    """

    def __init__(self, hosts: Hosts, *, restart: bool, budget: Callable[[], FailureBudget]):
        self._hosts, self._restart, self._budget = hosts, restart, budget
        self._failed: Counter[str] = Counter()
        self._losses: dict[str, FailureBudget] = {}
        self._given_up: set[str] = set()

    def start_missing(self, members: Sequence[Host], wanted: int, *, first: bool) -> None:
        """Start hosts up to the wanted number, and end surplus ones.

        Args:
            members: of the world that there is; they stay.
            wanted: hosts and spares.
            first: whether there was no world yet.
        """
        idle = [host for host in self._hosts.alive.values() if host not in members]
        for host in [host for host in idle if host.state == "leaving"]:
            self._hosts.end(host)
        surplus = len(self._hosts.alive) - wanted
        if members:
            for host in sorted(idle, key=lambda host: host.name, reverse=True)[: max(surplus, 0)]:
                self._hosts.end(host)
        number = 0
        while (first or self._restart) and len(self._hosts.alive) < wanted and number < 2 * wanted:
            name = f"host-{number}"
            number += 1
            if name not in self._hosts.alive and self._may_start(name):
                self._hosts.start(name)

    def note(self, host: Host, message: object, reached: int) -> None:
        """Record that a host became ready, or was lost.

        Args:
            host: which.
            message: what it or its engine said.
            reached: the newest step that the program has ever done.
        """
        if isinstance(message, messages.Hello):
            self._failed[host.name] = 0
        elif isinstance(message, messages.Ended):
            if not host.pid:
                self._failed[host.name] += 1
            losses = self._losses.setdefault(host.name, self._budget())
            if losses.spend(reached) and host.name not in self._given_up:
                self._given_up.add(host.name)
                _log.warning("%s is given up: %s", host.name, losses.describe())

    def _may_start(self, name: str) -> bool:
        return name not in self._given_up and self._failed[name] < STARTS
