"""What all parts of an application share, with an embedder as the one model: keys, the access log,
models, health, the start and end of parts; then embeddings and tokens."""

import asyncio
import base64
import contextlib
import json
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from starlette.routing import Route
from tests.serve.conftest import serving

from ziggurat.data.tokenizers import byte_level
from ziggurat.serve.app import ServicePart
from ziggurat.serve.composition import Embedder, openai_parts
from ziggurat.serve.http import guarded, json_response
from ziggurat.serve.openai.embeddings import TextEmbedder

openai = pytest.importorskip("openai")
KEY = "sesame"


class Counts:
    """Embeds a text as its length, the sum of its ids, and 1."""

    max_length, dimension, vocab_size = 12, 3, 257

    def __init__(self):
        self.together, self.most = 0, 0

    def embed(self, ids):
        self.together += 1
        self.most = max(self.most, self.together)
        out = np.array([[len(entry), sum(entry), 1] for entry in ids], np.float32) / 7
        self.together -= 1
        return out


class World:
    """A server of an embedder and a part of our own, with what happened to them."""

    def __init__(self):
        self.events, self.lines, self.sick = [], [], None
        self.embedder = Counts()
        self.hold = threading.Event()


@pytest.fixture(scope="module")
def world():
    made = World()

    @contextlib.asynccontextmanager
    async def running():
        made.events.append("start")
        yield
        made.events.append("end")

    async def hello(request):
        await asyncio.sleep(float(request.query_params.get("seconds", 0)))
        return json_response({"hello": "you"})

    own = ServicePart(
        routes=[Route("/v2/hello", guarded(hello), methods=["GET"])],
        failure=lambda: made.sick,
        ready=lambda: made.events == ["start"],
        running=running,
    )
    registry = CollectorRegistry()
    embedder = Embedder("counts", made.embedder, byte_level())
    parts = [*openai_parts(registry, embedder=embedder), own]
    with serving(parts, registry, keys=[KEY, "second"], access_log=made.lines.append) as server:
        made.server = server
        yield made
    assert made.events == ["start", "end"]


def ask(world, path, body=None, key=KEY, scheme="Bearer"):
    headers = {"authorization": f"{scheme} {key}"} if key else {}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(world.server.url + path, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_parts_stand_beside_each_other(world):
    assert ask(world, "/v2/hello") == (200, {"hello": "you"})
    _, models = ask(world, "/v1/models")
    assert [card["id"] for card in models["data"]] == ["counts"]
    assert models["data"][0]["max_model_len"] == 12
    assert ask(world, "/v1/models/counts")[1] == models["data"][0]
    assert ask(world, "/v1/completions", {"model": "counts", "prompt": "a"})[0] == 404


def test_any_part_can_make_the_whole_unfit(world):
    assert ask(world, "/ready") == (200, {"ready": True})
    world.sick = "no more disk"
    try:
        assert ask(world, "/health") == (503, {"status": "failed", "reason": "no more disk"})
        assert ask(world, "/ready") == (503, {"ready": False})
    finally:
        world.sick = None
    assert ask(world, "/health") == (200, {"status": "ok"})


def test_without_a_known_key_only_probes_are_answered(world):
    for key, scheme in ((None, ""), ("wrong", "Bearer"), (KEY, "Basic"), ("", "Bearer")):
        status, body = ask(world, "/v1/models", key=key, scheme=scheme)
        assert status == 401
        assert body["error"]["code"] == "invalid_api_key"
        assert KEY not in body["error"]["message"]
    assert ask(world, "/v2/hello", key=None)[0] == 401
    assert ask(world, "/nothing", key=None)[0] == 401
    for path in ("/health", "/ready"):
        assert ask(world, path, key=None)[0] == 200
    metrics = urllib.request.urlopen(world.server.url + "/metrics", timeout=60)
    assert metrics.status == 200
    assert ask(world, "/v1/models", key="second", scheme="bearer")[0] == 200
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=world.server.url + "/v1", api_key="x").models.list()


def test_the_access_log_has_a_line_for_each_request(world):
    before = len(world.lines)
    ask(world, "/v2/hello?seconds=0.02")
    ask(world, "/v1/models", key="wrong")
    records = [json.loads(line) for line in world.lines[before:]]
    assert [(r["method"], r["path"], r["status"]) for r in records] == [
        ("GET", "/v2/hello", 200),
        ("GET", "/v1/models", 401),
    ]
    assert records[0]["duration_s"] >= 0.02
    assert records[0]["client"].startswith("127.0.0.1:")
    assert KEY not in "".join(world.lines)


@pytest.fixture
def client(world):
    made = openai.OpenAI(base_url=world.server.url + "/v1", api_key=KEY, max_retries=0, timeout=60)
    with made as entered:
        yield entered


def test_embeddings_of_texts_and_ids_as_floats_and_base64(world, client):
    assert isinstance(world.embedder, TextEmbedder)
    expected = (np.array([[2, 97 + 98, 1], [1, 99, 1]], np.float32) / 7).tolist()
    for given in (["ab", "c"], [[97, 98], [99]]):
        for form in ("float", "base64", None):  # the client asks for base64 by itself
            options = {} if form is None else {"encoding_format": form}
            answer = client.embeddings.create(model="counts", input=given, **options)
            vectors = [entry.embedding for entry in answer.data]
            if form == "base64":
                vectors = [np.frombuffer(base64.b64decode(v), "<f4").tolist() for v in vectors]
            assert vectors == expected
            assert [entry.index for entry in answer.data] == [0, 1]
            assert answer.usage.prompt_tokens == answer.usage.total_tokens == 3
    one = client.embeddings.create(model="counts", input="ab", dimensions=3)
    assert one.data[0].embedding == expected[0]


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"input": "a" * 13}, "input", "13 tokens; expected at most 12"),
        ({"input": ["a", ""]}, "input", "input 1: found no tokens"),
        ({"input": []}, "input", "a text, a list of texts"),
        ({"input": [999]}, "input", "ids from 0 to 256"),
        ({"input": ["a"] * 2049}, "input", "at most 2048 texts"),
        ({"input": "a", "dimensions": 2}, "dimensions", "expected 3, the model's"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format", "hex"),
        ({"input": "a", "truncate_prompt_tokens": 5}, "truncate_prompt_tokens", "unknown field"),
        ({"input": "a", "model": "other"}, "model", "found 'other'"),
        ({"input": "\ud800"}, None, "valid JSON"),
    ],
)
def test_embedding_requests_that_are_refused(world, fields, param, said):
    status, body = ask(world, "/v1/embeddings", {"model": "counts"} | fields)
    assert status == (404 if param == "model" else 400)
    assert body["error"]["param"] == param
    assert said in body["error"]["message"]


def test_embedders_are_asked_by_one_thread_at_a_time(world):
    async def main():
        async with openai.AsyncOpenAI(base_url=world.server.url + "/v1", api_key=KEY) as client:
            calls = [client.embeddings.create(model="counts", input="ab") for _ in range(40)]
            return await asyncio.gather(*calls)

    assert len({answer.data[0].embedding[1] for answer in asyncio.run(main())}) == 1
    assert world.embedder.most == 1


def test_tokens_and_back(world):
    asked = {"prompt": "abé", "return_token_strs": True}
    status, body = ask(world, "/tokenize", asked)
    assert (status, body["tokens"], body["count"]) == (200, [97, 98, 195, 169], 4)
    assert body["token_strs"][:2] == ["a", "b"]
    assert body["max_model_len"] == 12
    assert ask(world, "/detokenize", {"tokens": body["tokens"]}) == (200, {"prompt": "abé"})
    for path, fields, said in (
        ("/tokenize", {}, "found neither"),
        ("/tokenize", {"prompt": "a", "tools": []}, "tools: found no messages"),
        ("/tokenize", {"prompt": "a", "model": "other"}, "found 'other'"),
        ("/tokenize", {"messages": [{"role": "user", "content": "u"}]}, "chat template"),
        ("/detokenize", {"tokens": [300]}, "ids from 0 to 256"),
        ("/detokenize", {"tokens": [-1]}, "found -1"),
    ):
        status, body = ask(world, path, fields)
        assert status in (400, 404)
        assert said in body["error"]["message"]


def test_embeddings_are_counted(world, client):
    def read():
        text = urllib.request.urlopen(world.server.url + "/metrics", timeout=60).read().decode()
        name = 'vllm:prompt_tokens_total{engine="0",model_name="counts"} '
        return next(float(x.removeprefix(name)) for x in text.splitlines() if x.startswith(name))

    client.embeddings.create(model="counts", input="a")
    before = read()
    client.embeddings.create(model="counts", input="abc")
    assert read() - before == 3
