"""Nobody without the secret gets a pickle read, and nobody is believed without it."""

import pickle
import socket
import threading

import pytest

from ziggurat.cluster.channel import ChannelClosed, Listener, connect
from ziggurat.core.errors import ClusterError


@pytest.fixture
def listener():
    served = []

    def serve(channel):
        served.append(channel.receive())
        channel.send(served)

    with Listener("127.0.0.1", b"secret", serve) as listener:
        listener.served = served
        yield listener


def test_messages_of_any_size(listener):
    big = b"x" * (3 << 20)
    with connect(listener.address, b"secret") as channel:
        channel.send({"big": big})
        assert channel.receive() == [{"big": big}]
        with pytest.raises(ChannelClosed):
            channel.receive()


def test_a_wrong_secret_is_refused(listener):
    with pytest.raises(ClusterError, match="does not know the secret"):
        connect(listener.address, b"guess")
    assert listener.served == []


class Bomb:
    def __reduce__(self):
        return explode, ()


exploded = threading.Event()


def explode():
    exploded.set()


@pytest.mark.parametrize("greeting", [b"", b"ziggurat-cluster-1"])
def test_no_pickle_is_read_before_the_proof(listener, greeting):
    content = pickle.dumps(Bomb())
    with socket.create_connection(listener.address, 10) as connection:
        connection.sendall(greeting + len(content).to_bytes(8, "big") + content * 20)
        connection.settimeout(10)
        try:
            while connection.recv(4096):
                pass
        except ConnectionError:
            pass
    assert not exploded.is_set()
    assert listener.served == []


def test_a_listener_must_prove_itself_too():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def pretend():
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"\0" * 64)
                connection.recv(4096)
                connection.recv(4096)

        threading.Thread(target=pretend, daemon=True).start()
        with pytest.raises(ClusterError, match="does not know the secret"):
            connect(server.getsockname(), b"secret")


def test_a_closed_port_and_a_foreign_address():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
    with pytest.raises(ClusterError, match="that no firewall closes the port"):
        connect(address, b"secret")
    with pytest.raises(ClusterError, match=r"listening on 203\.0\.113\.7"):
        Listener("203.0.113.7", b"secret", lambda channel: None)
