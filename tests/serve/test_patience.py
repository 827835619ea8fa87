"""Requests of clients that have closed the connection before the server reads them."""

import asyncio
import socket

import pytest
import uvicorn
from uvicorn.server import ServerState

from ziggurat.serve import accepting
from ziggurat.serve.accepting import Acceptor
from ziggurat.serve.patience import HeadersInTime

REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


async def calls_of(leaves):
    """How often the application is called by a client that asks while the loop is busy."""
    called = []

    async def app(scope, receive, send):
        called.append(scope["path"])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    config = uvicorn.Config(app, lifespan="off", log_config=None)
    config.load()
    state, made = ServerState(), []

    def protocol():
        made.append(HeadersInTime(config, state, {}))
        return made[-1]

    listening = socket.create_server(("127.0.0.1", 0))
    acceptor = Acceptor(listening, protocol)
    acceptor.start(10)
    with socket.create_connection(listening.getsockname()) as client:
        while not made:
            await asyncio.sleep(0.01)
        client.sendall(REQUEST)  # the loop does not run meanwhile
        if leaves:
            client.close()
        else:
            client.setblocking(False)
            assert b"204" in await asyncio.get_running_loop().sock_recv(client, 999)
        while state.connections:
            await asyncio.sleep(0.01)
    acceptor.close()
    return called


@pytest.mark.skipif(accepting._TCP_INFO is None, reason="the system tells no state of connections")
@pytest.mark.parametrize("leaves", [True, False])
def test_a_request_is_run_unless_its_client_has_left(leaves):
    assert asyncio.run(asyncio.wait_for(calls_of(leaves), 30)) == ([] if leaves else ["/"])
