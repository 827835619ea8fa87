"""Connections whose client has gone before the server takes them."""

import asyncio
import socket

import pytest

from ziggurat.serve import patience
from ziggurat.serve.patience import Door
from ziggurat.serve.server import ACCEPTS, _handles


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


async def serve(monkeypatch, clients):
    """What a server makes of connections that were opened before it takes any."""
    made = []
    monkeypatch.setattr(patience, "HeadersInTime", lambda: Echo(made))
    listening = socket.create_server(("127.0.0.1", 0), backlog=100)
    ends = clients(listening.getsockname())
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(Door, sock=end) for end in _handles(listening)]
    answers = []
    for end in ends:
        end.setblocking(False)
        answers.append(await asyncio.wait_for(loop.sock_recv(end, 9), 30))
        end.close()
    for server in servers:
        server.close()
    return len(made), answers


@pytest.mark.skipif(patience._TCP_INFO is None, reason="the system tells no state of connections")
@pytest.mark.parametrize("loop", loops())
def test_a_connection_that_its_client_has_closed_is_dropped_and_others_are_served(
    monkeypatch, loop
):
    def clients(address):
        kept = []
        for number in range(60):
            end = socket.create_connection(address)
            end.sendall(b"%d" % number)
            kept += [end] if number % 20 == 19 else [end.close()]
        return [end for end in kept if end]

    assert run(serve(monkeypatch, clients), loop) == (3, [b"19", b"39", b"59"])


def test_every_handle_is_of_the_one_socket():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ends = _handles(listening)
        assert len(ends) in (1, ACCEPTS)
        assert {end.getsockname() for end in ends} == {listening.getsockname()}
        for end in ends[1:]:
            end.close()
