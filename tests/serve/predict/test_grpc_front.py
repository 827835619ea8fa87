"""The gRPC port's own process: what goes through its link, its end, and its memory."""

import asyncio
import os
import signal
import time

import grpc
import numpy as np
import pytest
from tests.serve.predict.conftest import serving

from ziggurat.core.errors import ServeError
from ziggurat.serve.memory import Crowded
from ziggurat.serve.predict import Predict, grpc_reading, link
from ziggurat.serve.predict.grpc_protocol import FrontSettings
from ziggurat.serve.predict.grpc_reading import Reader
from ziggurat.serve.predict.link import Link
from ziggurat.serve.predict.memory_file import MemoryFile
from ziggurat.serve.predict.messages import MESSAGES, SERVICE

SIZES = (0, 1, link.INLINE - 1, link.INLINE, link.INLINE + 1, 3 * 2**20)


def infer(rows: int = 1) -> bytes:
    """A request to a model that takes 16 numbers a row."""
    entry = {"name": "x", "datatype": "FP32", "shape": [rows, 16]}
    kind = MESSAGES["ModelInferRequest"]
    raw = np.ones((rows, 16), np.float32).tobytes()
    return kind(model_name="digits", inputs=[entry], raw_input_contents=[raw]).SerializeToString()


def status(address: str, data: bytes, timeout: float = 30) -> str:
    """The code of a call that waits until there is a server."""
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        return call.future(data, timeout=timeout, wait_for_ready=True).code().name


def test_messages_of_all_sizes_arrive_whole_and_in_order():
    """Those of files among those without, with a reader that is slower than the writer."""
    contents = [os.urandom(size) for size in (*SIZES, *reversed(SIZES), *SIZES)]

    async def run():
        found, done = [], asyncio.Event()

        def arrived(message):
            found.append(message)
            if len(found) == len(contents):
                done.set()

        with link.pair() as (here, there):
            sender = Link(here, lambda _: None, lambda: None)
            reader = Link(duplicate(there), arrived, lambda: None)
        await asyncio.gather(*(sender.send(i, 7, [c]) for i, c in enumerate(contents)))
        await asyncio.wait_for(done.wait(), 60)
        sender.close()
        reader.close()
        return found

    found = asyncio.run(run())
    assert {message.code for message in found} == {7}
    for message in found:
        content = message.content
        filed = isinstance(content, MemoryFile)
        assert filed == (len(contents[message.number]) > link.INLINE)
        assert bytes(content.view() if filed else content) == contents[message.number]


def duplicate(end):
    """A second handle of a socket, as a child process gets one."""
    return end.dup()


def test_a_sender_that_is_cancelled_leaves_no_half_message():
    async def run():
        found = []
        with link.pair() as (here, there):
            sender = Link(here, lambda _: None, lambda: None)
            other = duplicate(there)
        # More than the socket holds, so that sending waits for a reader that is not there yet.
        tasks = [asyncio.create_task(sender.send(i, 1, [b"x" * 60_000])) for i in range(40)]
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        reader = Link(other, found.append, lambda: None)
        await sender.send(99, 2, [b"last"])
        end = time.monotonic() + 30
        while not found or found[-1].number != 99:
            assert time.monotonic() < end
            await asyncio.sleep(0.01)
        sender.close()
        reader.close()
        return found

    found = asyncio.run(run())
    assert found[-1].content == b"last"
    assert all(message.content == b"x" * 60_000 for message in found[:-1])


def test_a_file_lives_as_long_as_its_view():
    file = MemoryFile.of([b"ab", np.arange(3, dtype=np.int16)])
    view = file.view()
    file.close()
    file.close()
    assert bytes(view) == b"ab" + bytes([0, 0, 1, 0, 2, 0])


def test_a_front_that_was_killed_comes_back_on_its_port(copied):
    with serving(copied) as server:
        front = server.predict.grpc
        assert front is not None
        assert front._process is not None
        assert status(server.grpc, infer()) == "OK"
        first = front._process
        first.send_signal(signal.SIGKILL)
        first.wait(30)  # until then it may still take connections
        assert status(server.grpc, infer()) == "OK"
        assert front.failure is None
        assert server.grpc.endswith(f":{front.port}")


def test_a_taken_port_is_told_and_leaves_no_process(made, server):
    async def run(predict):
        async with predict.running(server.grpc):
            pass

    with Predict(made) as predict:
        with pytest.raises(ServeError, match=r"gRPC address .* cannot be bound"):
            asyncio.run(run(predict))
        assert predict.grpc is not None
        assert predict.grpc._process is not None
        assert predict.grpc._process.poll() is not None


def test_large_messages_are_decoded_where_they_lie(copied):
    """A batch of a megabyte of raw bytes: refused for its rows after its size was understood."""
    with serving(copied) as server:
        assert status(server.grpc, infer(8)) == "OK"
        assert status(server.grpc, infer(2**15)) == "INVALID_ARGUMENT"
        assert server.predict.memory.held == 0


def test_streams_are_given_up_when_messages_take_too_much_memory(monkeypatch):
    """All that wait for a message; which of them are sending cannot be seen."""

    async def nothing():
        await asyncio.sleep(600)
        yield b""

    async def run():
        asked = FrontSettings(address="", limit=1, calls=1, streams=1, fast=1, slow=1, memory=8)
        reader = Reader(asked)
        reads = [asyncio.create_task(reader.next_of_stream(nothing())) for _ in range(3)]
        sizes = iter([100, 108, 109])
        monkeypatch.setattr(grpc_reading, "_resident", lambda: next(sizes, 0))
        watching = asyncio.create_task(reader.watch())
        found = await asyncio.gather(*reads, return_exceptions=True)
        watching.cancel()
        return found, list(sizes)

    found, left = asyncio.run(run())
    assert [type(error) for error in found] == [Crowded] * 3
    assert left == []
