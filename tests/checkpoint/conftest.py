"""Keepers of snapshots that end with the test that started them."""

import os
import socket
import tempfile

import pytest

from ziggurat.checkpoint.memory import peer, rendezvous


@pytest.fixture
def private(tmp_path, monkeypatch):
    """Keepers in a place of this test's own; none of them, and no memory, is left behind."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    shared = sorted(os.listdir("/dev/shm"))
    directory = rendezvous.private_directory()
    yield directory
    rendezvous.sweep(directory)  # after keepers that were killed
    for path in directory.glob("*.sock"):
        connection = socket.socket(socket.AF_UNIX)
        with rendezvous.short_address(directory, path.stem) as address:
            connection.connect(address)
        peer.KeeperLink(connection).finish()
    assert sorted(os.listdir("/dev/shm")) == shared
    assert list(directory.iterdir()) == []
