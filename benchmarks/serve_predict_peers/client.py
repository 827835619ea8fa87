"""Load for ``serve_predict.py``, in a process of its own: standard library, and grpc if asked.

Reads one JSON object on standard input: ``url`` (HOST:PORT), ``path``, ``headers``, ``body`` (a
file), ``clients``, ``seconds``, ``kind`` (http or grpc). Each client sends its next request when it
has the answer to the last one. Prints requests, seconds and percentiles of the latency.
"""

import asyncio
import json
import sys
import time


class Http(asyncio.Protocol):
    """One connection: sends the same request over and over."""

    def __init__(self, request: bytes, until: float, latencies: list[float]):
        self._request, self._until, self._latencies = request, until, latencies
        self.done = asyncio.get_running_loop().create_future()
        self._buffer, self._needed = bytearray(), -1

    def connection_made(self, transport):
        self._transport = transport
        self._send()

    def connection_lost(self, error):
        if not self.done.done():
            self.done.set_exception(error or ConnectionError("closed"))

    def data_received(self, data):
        self._buffer += data
        if self._needed < 0:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self._buffer[:end]).lower()
            if b" 200 " not in head.partition(b"\r\n")[0] + b" ":
                self.done.set_exception(RuntimeError(bytes(self._buffer[:300])))
                return
            length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
            self._needed = end + 4 + int(length)
        if len(self._buffer) >= self._needed:
            self._latencies.append(time.perf_counter() - self._sent)
            del self._buffer[:]
            if time.perf_counter() < self._until:
                self._send()
            else:
                self.done.set_result(None)
                self._transport.close()

    def _send(self):
        self._needed = -1
        self._sent = time.perf_counter()
        self._transport.write(self._request)


async def over_http(asked: dict, body: bytes, until: float, latencies: list[float]) -> None:
    host, _, port = asked["url"].partition(":")
    lines = [f"POST {asked['path']} HTTP/1.1", f"host: {asked['url']}"]
    lines += [f"{name}: {value}" for name, value in asked["headers"].items()]
    lines += [f"content-length: {len(body)}", "", ""]
    request = "\r\n".join(lines).encode() + body
    loop = asyncio.get_running_loop()
    made = [
        await loop.create_connection(lambda: Http(request, until, latencies), host, int(port))
        for _ in range(asked["clients"])
    ]
    await asyncio.gather(*(protocol.done for _, protocol in made))


async def over_grpc(asked: dict, body: bytes, until: float, latencies: list[float]) -> None:
    import grpc

    async with grpc.aio.insecure_channel(asked["url"]) as channel:
        call = channel.unary_unary(asked["path"])

        async def one():
            sent = 0.0
            while not sent or time.perf_counter() < until:  # one at least
                sent = time.perf_counter()
                await call(body)
                latencies.append(time.perf_counter() - sent)

        await asyncio.gather(*(one() for _ in range(asked["clients"])))


async def run(asked: dict) -> dict:
    with open(asked["body"], "rb") as file:
        body = file.read()
    latencies: list[float] = []
    start = time.perf_counter()
    send = {"http": over_http, "grpc": over_grpc}[asked["kind"]]
    await send(asked, body, start + asked["seconds"], latencies)
    took = time.perf_counter() - start
    latencies.sort()
    return {
        "requests": len(latencies),
        "seconds": took,
        "p50_s": latencies[len(latencies) // 2],
        "p99_s": latencies[int(len(latencies) * 0.99)],
    }


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    try:
        import uvloop

        runner = uvloop.run
    except ImportError:
        runner = asyncio.run
    print(json.dumps(runner(run(asked))))
