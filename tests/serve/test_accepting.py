"""Connections whose client has gone before the server takes them, or reads them."""

import asyncio
import errno
import socket
import ssl

import pytest

from ziggurat.serve import accepting
from ziggurat.serve.accepting import ROUND, Acceptor, closed_by_client

TELLS = pytest.mark.skipif(
    accepting._TCP_INFO is None, reason="the system tells no state of connections"
)


class Echo(asyncio.Protocol):
    """Counts connections and answers what it reads."""

    def __init__(self, made):
        made.append(self)

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)


def loops():
    yield asyncio.new_event_loop
    try:
        import uvloop
    except ModuleNotFoundError:
        return
    yield uvloop.new_event_loop


def run(main, loop):
    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(main)


async def serve(clients, accept=None):
    """How many connections got a protocol, of those opened before the server takes any, and what
    the clients that stay were answered."""
    made = []
    listening = socket.create_server(("127.0.0.1", 0), backlog=200)
    ends = clients(listening.getsockname())
    acceptor = Acceptor(listening, lambda: Echo(made))
    if accept is not None:
        acceptor._accept = accept
    acceptor.start(200)
    loop, answers = asyncio.get_running_loop(), []
    for end in ends:
        end.setblocking(False)
        answers.append(await asyncio.wait_for(loop.sock_recv(end, 9), 30))
        end.close()
    acceptor.close()
    await acceptor.wait_closed()
    return len(made), answers


def some_leave(address):
    """Sixty clients that send their number; every twentieth stays."""
    kept = []
    for number in range(60):
        end = socket.create_connection(address)
        end.sendall(b"%d" % number)
        kept += [end] if number % 20 == 19 else [end.close()]
    return [end for end in kept if end]


@TELLS
@pytest.mark.parametrize("accept", [None, accepting._accept], ids=["native", "portable"])
@pytest.mark.parametrize("loop", loops())
def test_a_connection_that_its_client_has_closed_is_dropped_and_others_are_served(loop, accept):
    assert run(serve(some_leave, accept), loop) == (3, [b"19", b"39", b"59"])


@TELLS
@pytest.mark.parametrize("native", [True, False])
def test_a_client_that_leaves_between_the_two_looks_is_dropped(native):
    clients = []

    def open_one(address):
        clients.append(socket.create_connection(address))
        return []

    async def main():
        made, listening = [], socket.create_server(("127.0.0.1", 0))
        acceptor = Acceptor(listening, lambda: Echo(made))
        open_one(listening.getsockname())
        accept, drop = acceptor._accept, acceptor._drop
        if not native:
            accept, drop = accepting._accept, socket.socket.close

        def accept_and_leave(listening):
            end = accept(listening)
            clients.pop().close()  # the next call finds no connection
            return end

        dropped = []
        acceptor._accept = accept_and_leave
        acceptor._drop = lambda end: dropped.append(drop(end))
        acceptor.start(10)
        while not dropped:
            await asyncio.sleep(0.01)
        acceptor._loop.remove_reader(listening.fileno())
        acceptor.close()
        return len(made), len(dropped)

    assert asyncio.run(asyncio.wait_for(main(), 30)) == (0, 1)


def test_more_connections_than_a_round_are_all_served():
    def many(address):
        ends = [socket.create_connection(address) for _ in range(2 * ROUND + 3)]
        for end in ends:
            end.sendall(b"x")
        return ends

    count = 2 * ROUND + 3
    assert run(serve(many), asyncio.new_event_loop) == (count, [b"x"] * count)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE])
def test_without_file_descriptors_it_pauses_and_goes_on(monkeypatch, code):
    monkeypatch.setattr(accepting, "_PAUSE_SECONDS", 0.01)
    failures = [code, code, errno.ECONNABORTED]

    def accept(listening):
        if failures:
            raise OSError(failures.pop(), "no")
        return accepting._accept(listening)

    assert run(serve(some_leave, accept), asyncio.new_event_loop)[1] == [b"19", b"39", b"59"]
    assert not failures


def test_the_native_call_raises_what_the_system_says():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        calls = accepting._native(listening)
        if calls is None:
            pytest.skip("the system has no such call")
        native, _ = calls
        listening.setblocking(False)
        with pytest.raises(BlockingIOError):
            native(listening)
        listening.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            native(listening)


@pytest.mark.parametrize("loop", loops())
def test_a_handshake_that_never_ends_does_not_hold_up_the_end(loop):
    async def main():
        listening = socket.create_server(("127.0.0.1", 0))
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        acceptor = Acceptor(listening, asyncio.Protocol, tls)
        acceptor.start(10)
        with socket.create_connection(listening.getsockname()):
            while not acceptor._adopting:
                await asyncio.sleep(0.01)
            acceptor.close()
            await asyncio.wait_for(acceptor.wait_closed(), 10)
        return len(acceptor._adopting)

    assert run(main(), loop) == 0


@TELLS
def test_a_client_that_has_closed_is_seen():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = socket.create_connection(listening.getsockname())
        end, _ = listening.accept()
        assert not closed_by_client(end)
        client.close()
        assert end.recv(1) == b""  # what was sent has come
        assert closed_by_client(end)
        end.close()
        assert closed_by_client(end)
        assert not closed_by_client(None)
