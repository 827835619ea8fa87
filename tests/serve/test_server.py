"""The server through OpenAI's own client, and through raw and broken requests."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.serve.conftest import CONTEXT

from ziggurat.core.errors import ServeError
from ziggurat.serve.server import bind

openai = pytest.importorskip("openai")
HI = [{"role": "user", "content": "hi"}]


def call(server, path, body=None, method=None):
    """Status and parsed body of a raw request."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, data=data, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def idle(engine):
    """Nothing runs or waits, and every block of the cache has come back."""
    now = engine.statistics()
    return (now.running, now.waiting) == (0, 0) and now.blocks_free == now.blocks_total


def test_models(client, server):
    assert [m.id for m in client.models.list().data] == ["tiny"]
    assert client.models.retrieve("tiny").model_dump()["max_model_len"] == CONTEXT
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("other")
    assert caught.value.code == "model_not_found"


def test_chat_whole_and_streamed_are_the_same(client):
    asked = {"model": "tiny", "messages": HI, "seed": 4, "max_tokens": 12, "n": 2}
    whole = client.chat.completions.create(**asked)
    assert [c.index for c in whole.choices] == [0, 1]
    assert {c.message.role for c in whole.choices} == {"assistant"}
    prompt = len("<user>hi<assistant>")
    assert whole.usage.prompt_tokens == prompt
    assert whole.usage.total_tokens == prompt + whole.usage.completion_tokens
    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options=options))
    *chunks, last = chunks
    assert last.choices == []
    assert last.usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks)
    for choice in whole.choices:
        mine = [c.choices[0] for c in chunks if c.choices[0].index == choice.index]
        assert mine[0].delta.role == "assistant"
        assert mine[0].delta.content == ""
        assert "".join(c.delta.content or "" for c in mine) == choice.message.content
        assert [c.finish_reason for c in mine if c.finish_reason] == [choice.finish_reason]
        assert mine[-1].finish_reason == choice.finish_reason
    assert len({chunk.id for chunk in [*chunks, last]}) == 1


def test_completions_whole_and_streamed_are_the_same(client, tokenizer):
    asked = {
        "model": "tiny",
        "prompt": ["ab", "cd"],
        "seed": 1,
        "max_tokens": 6,
        "n": 2,
        "echo": True,
    }
    whole = client.completions.create(**asked)
    assert [c.index for c in whole.choices] == [0, 1, 2, 3]
    assert [c.text[:2] for c in whole.choices] == ["ab", "ab", "cd", "cd"]
    ids = client.completions.create(**(asked | {"prompt": [[97, 98], [99, 100]]}))
    assert [c.text for c in ids.choices] == [c.text for c in whole.choices]
    texts = ["", "", "", ""]
    for chunk in client.completions.create(**asked, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
        assert chunk.usage is None
    assert texts == [c.text for c in whole.choices]


def test_stop_and_finish_reasons(client):
    asked = {"model": "tiny", "prompt": "ab", "seed": 2, "max_tokens": 30}
    free = client.completions.create(**asked).choices[0].text
    stop = next(free[i : i + 2] for i in range(5, 25) if "\ufffd" not in free[i : i + 2])
    cut = client.completions.create(**asked, stop=stop)
    assert cut.choices[0].text == free[: free.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    assert cut.usage.completion_tokens < 30
    short = client.completions.create(
        **(asked | {"max_tokens": 3}), extra_body={"ignore_eos": True}
    )
    assert short.choices[0].finish_reason == "length"
    assert short.usage.completion_tokens == 3


def test_extra_sampling_fields_are_applied(client):
    asked = {"model": "tiny", "prompt": "ab", "max_tokens": 10}
    greedy = client.completions.create(**asked, temperature=0).choices[0].text
    for extra in ({"top_k": 1}, {"min_p": 1.0}):
        drawn = client.completions.create(**asked, temperature=5, seed=1, extra_body=extra)
        assert drawn.choices[0].text == greedy


def test_chat_logprobs(client):
    asked = {
        "model": "tiny",
        "messages": HI,
        "seed": 4,
        "max_tokens": 8,
        "logprobs": True,
        "top_logprobs": 3,
    }
    choice = client.chat.completions.create(**asked).choices[0]
    entries = choice.logprobs.content
    joined = b"".join(bytes(entry.bytes) for entry in entries)
    assert joined.decode("utf-8", "replace") == choice.message.content
    assert all(len(entry.top_logprobs) == 3 for entry in entries)
    streamed = [
        entry
        for chunk in client.chat.completions.create(**asked, stream=True)
        if chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content
    ]
    assert streamed == entries
    plain = client.chat.completions.create(model="tiny", messages=HI, max_tokens=2)
    assert plain.choices[0].logprobs is None


def test_completion_logprobs(client):
    found = client.completions.create(model="tiny", prompt="ab", max_tokens=20, logprobs=2, seed=1)
    shown = found.choices[0].logprobs
    assert len(shown.tokens) == len(shown.token_logprobs) == len(shown.text_offset)
    assert shown.text_offset[0] == 0
    assert all(len(top) == 2 for top in shown.top_logprobs)
    assert any(token.startswith("bytes:\\x") for token in shown.tokens), "random bytes are no text"
    best = max(shown.top_logprobs[0].values())
    assert shown.token_logprobs[0] <= best + 1e-6


def test_async_clients_at_once(server):
    async def main():
        async with openai.AsyncOpenAI(
            base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=120
        ) as client:

            async def one(seed):
                asked = {"model": "tiny", "messages": HI, "seed": seed, "max_tokens": 8}
                if seed % 2:
                    return (
                        (await client.chat.completions.create(**asked)).choices[0].message.content
                    )
                stream = await client.chat.completions.create(**asked, stream=True)
                return "".join([c.choices[0].delta.content or "" async for c in stream])

            return await asyncio.gather(*(one(seed) for seed in [0, 1, 2, 3] * 4))

    texts = asyncio.run(main())
    assert texts == texts[:4] * 4
    assert len(set(texts)) == 4


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "said"),
    [
        ("chat/completions", {"model": "x", "messages": HI}, 404, "model", "found 'x'"),
        ("chat/completions", b"{", 400, None, "valid JSON"),
        ("chat/completions", {"messages": HI}, 400, "model", "model: found nothing"),
        ("completions", {"model": "tiny", "prompt": "a", "suffix": "b"}, 400, "suffix", "apply"),
        ("completions", {"model": "tiny", "prompt": "a", "no": 1}, 400, "no", "unknown field"),
        ("completions", {"model": "tiny", "prompt": ""}, 400, "prompt", "no tokens"),
        ("completions", {"model": "tiny", "prompt": [9999]}, 400, "prompt", "ids from 0 to 256"),
        ("completions", {"model": "tiny", "prompt": "a" * 200}, 400, "prompt",
         "200 prompt tokens and max_tokens 16; expected at most 96"),
        ("completions", {"model": "tiny", "prompt": "a", "n": 500}, 400, "n", "from 1 to 128"),
        ("completions", {"model": "tiny", "prompt": ["a"] * 2049}, 400, "prompt", "at most 2048"),
        ("completions", {"model": "tiny", "prompt": ["a"] * 100, "n": 128}, 400, "n",
         "12800 completions in one request; expected at most 4096"),
        ("completions", {"model": "tiny", "prompt": "a" * 10000}, 400, "prompt", "10000 bytes, at"),
        ("completions", b" " * (8 * 2**20 + 1), 413, None, "over 8388608 bytes"),
    ],
)  # fmt: skip
def test_errors_have_openais_form(server, path, body, status, param, said):
    found, text = call(server, f"/v1/{path}", body)
    error = json.loads(text)["error"]
    assert (found, error["param"]) == (status, param)
    assert said in error["message"]
    assert set(error) == {"message", "type", "param", "code"}


def test_unknown_paths_and_methods(server):
    for path, method, status in (("/v1/nothing", "GET", 404), ("/v1/completions", "GET", 405)):
        found, text = call(server, path, method=method)
        assert found == status
        assert json.loads(text)["error"]["type"] == "invalid_request_error"


def test_health_ready_version_and_metrics(server, client, engine):
    from ziggurat import __version__

    until(lambda: idle(engine))  # what clients of other tests left counts too
    assert call(server, "/health") == (200, b'{"status":"ok"}')
    assert call(server, "/ready") == (200, b'{"ready":true}')
    assert json.loads(call(server, "/version")[1]) == {"version": __version__}

    def read(name):
        lines = call(server, "/metrics")[1].decode().splitlines()
        found = [float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name)]
        return sum(found)

    names = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total",
             "vllm:time_to_first_token_seconds_count", "vllm:request_success_total",
             "vllm:inter_token_latency_seconds_count")  # fmt: skip
    before = [read(name + "{") for name in names]
    extra = {"ignore_eos": True}
    client.completions.create(model="tiny", prompt="abc", max_tokens=7, extra_body=extra)
    until(lambda: read(names[3] + "{") > before[3] and idle(engine))
    assert [read(name + "{") - b for name, b in zip(names, before)] == [3, 7, 1, 1, 6]
    assert read("vllm:num_requests_running{") in (0, 1)
    assert 0 <= read("vllm:kv_cache_usage_perc{") <= 1
    for name in (
        *("prefix_cache_queries_total", "prefix_cache_hits_total", "num_preemptions_total"),
        *("num_requests_waiting", "cache_config_info", "iteration_tokens_total_count"),
        *("request_queue_time_seconds_count", "request_time_per_output_token_seconds_count"),
    ):
        text = call(server, "/metrics")[1].decode()
        line = next(x for x in text.splitlines() if x.startswith(f"vllm:{name}{{"))
        assert 'model_name="tiny"' in line
        assert 'engine="0"' in line


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_the_engine(server, engine, stream):
    until(lambda: idle(engine))
    body = {"model": "tiny", "prompt": "a", "max_tokens": 90, "n": 100, "ignore_eos": True}
    data = json.dumps(body | {"stream": stream}).encode()
    host, port = server.url.removeprefix("http://").split(":")
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(head.encode() + data)
        until(lambda: engine.running == 1)
        if stream:
            assert b"200 OK" in connection.recv(4096)
        generation = engine._active[0]
    until(lambda: idle(engine))
    assert generation.cancelled
    assert generation.timeline.generated_tokens < 9000


def test_the_server_still_answers_after_all_that(client):
    asked = {"model": "tiny", "prompt": "ab", "max_tokens": 4}
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda _: client.completions.create(**asked), range(16))
    assert len(list(answers)) == 16


def test_a_port_in_use_and_a_host_elsewhere_are_refused():
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServeError, match=f"address 127.0.0.1:{port}: found Address already"):
            bind("127.0.0.1", port)
    with pytest.raises(ServeError, match=r"address no\.such\.host\.invalid:0"):
        bind("no.such.host.invalid", 0)
    with pytest.raises(ServeError, match="port: found 70000; expected a number from 0 to 65535"):
        bind("127.0.0.1", 70000)


PROGRAM = """
import jax
from ziggurat.data.tokenizers import byte_level
from ziggurat.models import LanguageModel, LlamaConfig
from ziggurat.serve.llm.engine import Engine
from prometheus_client import CollectorRegistry
from ziggurat.serve.composition import Generator, openai_parts
from ziggurat.serve.server import Server, bind
c = LlamaConfig(vocab_size=257, d_model=32, n_layers=2, n_heads=4, max_sequence_length=4096)
m = LanguageModel.build(c)
with Engine(m, m.init(jax.random.key(0)), byte_level()) as engine:
    registry = CollectorRegistry()
    parts = openai_parts(registry, Generator("tiny", engine))
    server = Server(parts, bind("127.0.0.1", 0), registry)
    print(server.url, flush=True)
    server.serve_forever()
print("drained", flush=True)
"""


@pytest.mark.chaos
def test_sigterm_finishes_what_runs_and_exits_0():
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http://")

        def up():
            try:
                return urllib.request.urlopen(url + "/ready", timeout=5).status == 200
            except OSError:
                return False

        until(up)
        with openai.OpenAI(base_url=url + "/v1", api_key="x", max_retries=0) as client:
            stream = client.completions.create(
                model="tiny",
                prompt="a",
                max_tokens=600,
                stream=True,
                extra_body={"ignore_eos": True},
                stream_options={"include_usage": True},
            )
            first = next(iter(stream))
            assert first.choices
            process.send_signal(signal.SIGTERM)
            rest = list(stream)
            assert rest[-1].usage.completion_tokens == 600
        assert process.wait(60) == 0
        assert process.stdout.read() == "drained\n"
        with pytest.raises(OSError):
            urllib.request.urlopen(url + "/ready", timeout=5)
    finally:
        process.kill()
        process.wait()
