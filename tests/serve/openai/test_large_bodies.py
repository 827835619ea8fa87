"""Bodies of more values than are decoded: refused for every endpoint and field, before a value is
made; long lists of token ids, and all that is lawful, are served."""

import gc
import http.client
import json
import re
import time
import weakref

import msgspec
import pytest
from prometheus_client import CollectorRegistry
from tests.serve import conftest
from tests.serve.test_app import Counts

from ziggurat.data.tokenizers import byte_level
from ziggurat.serve import bodies, json_values
from ziggurat.serve.composition import Embedder, Generator, openai_parts
from ziggurat.serve.errors import RequestError
from ziggurat.serve.http import http_error
from ziggurat.serve.json_values import MAX_VALUES
from ziggurat.serve.llm.sampling import SamplingParams
from ziggurat.serve.memory import RequestMemory
from ziggurat.serve.openai import tokens
from ziggurat.serve.openai.embeddings import EmbeddingRequest
from ziggurat.serve.openai.requests import ChatRequest, CompletionRequest
from ziggurat.serve.openai.tokens import DetokenizeRequest, TokenizeRequest

USER = {"role": "user", "content": "x"}
LEAST = {
    CompletionRequest: {"model": "tiny", "prompt": "a", "max_tokens": 1},
    ChatRequest: {"model": "tiny", "messages": [USER], "max_tokens": 1},
    EmbeddingRequest: {"model": "counts", "input": "a"},
    TokenizeRequest: {"prompt": "a"},
    DetokenizeRequest: {"tokens": [1]},
}
PATHS = {
    CompletionRequest: "/v1/completions",
    ChatRequest: "/v1/chat/completions",
    EmbeddingRequest: "/v1/embeddings",
    TokenizeRequest: "/tokenize",
    DetokenizeRequest: "/detokenize",
}
PARTS = {"numbers": "0", "lists": "[]", "objects": "{}", "texts": '"a"', "entries": '"k":0'}
PLACES = ["%s", '{"a":%s}', "[[%s]]"]


FEW = 500
"""Most values where :func:`decoded` watches, so that the sweep over all fields is quick."""


def many(part, count=MAX_VALUES + 1):
    """A list, or an object, of so many values."""
    inner = ",".join([PARTS[part]] * count)
    return f"{{{inner}}}" if part == "entries" else f"[{inner}]"


def body(kind, field, text):
    """A request in which one field has this JSON."""
    whole = {**LEAST[kind], field: "@"}
    return json.dumps(whole).replace('"@"', text).encode()


@pytest.fixture
def decoded(monkeypatch):
    """Fails whoever decodes a text of more values than may be; independent of the count."""
    plain = msgspec.json.decode
    monkeypatch.setattr(json_values, "MAX_VALUES", FEW)
    monkeypatch.setattr(bodies, "MAX_VALUES", FEW)
    monkeypatch.setattr(bodies, "LARGE", 100)
    monkeypatch.setattr(bodies, "MAX_TEXTS", 50)
    monkeypatch.setattr(json_values, "_PIECE", 200)

    def decode(text, *args, **options):
        data = text if isinstance(text, bytes) else str(text).encode()
        bare = re.sub(rb'"(?:[^"\\]|\\.)*"', b"", data)
        assert sum(map(bare.count, (b",", b"[", b"{"))) <= FEW
        return plain(text, *args, **options)

    monkeypatch.setattr(msgspec.json, "decode", decode)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kind", LEAST)
def test_too_many_values_are_refused_before_they_are_made(decoded, kind, part):
    for field in kind.__struct_fields__:
        for place in PLACES:
            text = body(kind, field, place % many(part, FEW + 1))
            with pytest.raises(RequestError) as error:
                pytest.fail(f"{field}: {bodies.read(kind, text, most_ids=100)}")
            assert error.value.status in (400, 413), field
            assert len(str(error.value)) < 500, field


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kind", LEAST)
def test_so_are_they_under_names_of_no_field_and_outside_an_object(decoded, kind, part):
    for text in (body(kind, "nothing", many(part, FEW + 1)), many(part, FEW + 1).encode()):
        for ignore in (False, True):
            with pytest.raises(RequestError) as error:
                bodies.read(kind, text, ignore=ignore)
            assert error.value.status in (400, 413)


def nested(text):
    """Bodies that hold JSON as a text."""
    call = {"function": {"name": "f", "arguments": text}}
    messages = [USER, {"role": "assistant", "tool_calls": [call] * 2}]
    yield {**LEAST[ChatRequest], "messages": messages}
    older = {"role": "assistant", "function_call": call["function"]}
    yield {**LEAST[ChatRequest], "messages": [USER, older]}
    yield {**LEAST[ChatRequest], "structured_outputs": {"json": text}}
    yield {**LEAST[CompletionRequest], "structured_outputs": {"json": text}}


@pytest.fixture(scope="module")
def world(engine):
    registry = CollectorRegistry()
    memory = RequestMemory(largest=2**23, together=2**26)
    parts = openai_parts(
        registry, Generator("tiny", engine), Embedder("counts", Counts(), byte_level()), memory
    )
    with conftest.serving(parts, registry) as server:
        yield server.url.removeprefix("http://"), memory


def ask(world, path, data):
    connection = http.client.HTTPConnection(world[0], timeout=60)
    connection.request("POST", path, data if isinstance(data, bytes) else json.dumps(data))
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer.status, text


@pytest.mark.parametrize("number", range(4))
def test_json_inside_a_text_counts_too(world, decoded, number):
    text = json.dumps({"a": [0] * FEW})
    path = PATHS[CompletionRequest if number == 3 else ChatRequest]
    status, answer = ask(world, path, list(nested(text))[number])
    assert status == 413, answer
    status, answer = ask(world, path, list(nested('{"type": "object"}'))[number])
    assert status == 200, answer


@pytest.mark.parametrize("kind", LEAST)
def test_every_endpoint_refuses_them_and_gives_its_memory_back(world, kind):
    for field, part in (("nothing", "numbers"), (kind.token_ids or "messages", "lists")):
        status, answer = ask(world, PATHS[kind], body(kind, field, many(part)))
        assert status in (400, 413), answer
        assert len(answer) < 1000
    assert ask(world, PATHS[kind], LEAST[kind])[0] == 200
    assert world[1].held == 0


@pytest.mark.parametrize("field", ["prompt", "input", "tokens"])
@pytest.mark.parametrize("nest", [False, True])
def test_long_lists_of_ids_are_read_as_short_ones_are(field, nest):
    kind = next(kind for kind in LEAST if kind.token_ids == field)
    if nest and field == "tokens":
        pytest.skip("takes one list")
    ids = list(range(MAX_VALUES + 5))
    value = [ids, [7], ids] if nest else ids
    request = bodies.read(kind, body(kind, field, json.dumps(value)))
    assert request.model == LEAST[kind].get("model")
    made = getattr(request, field)
    assert ([list(each) for each in made] if nest else list(made)) == value


def test_a_lawful_request_of_very_many_ids_is_served(world, decoded):
    data = {"model": "tiny", "prompt": [[65] * 80] * 20, "max_tokens": 1}
    status, answer = ask(world, "/v1/completions", data)
    assert status == 200, answer
    assert json.loads(answer)["usage"]["prompt_tokens"] == 80 * 20
    data = {"model": "tiny", "prompt": [[65] * 97] * 20, "max_tokens": 1}
    status, answer = ask(world, "/v1/completions", data)
    assert (status, json.loads(answer)["error"]["code"]) == (400, "context_length_exceeded")
    data = {"model": "counts", "input": [[1, 2] * 6] * 49}
    status, answer = ask(world, "/v1/embeddings", data)
    assert status == 200, answer
    assert len(json.loads(answer)["data"]) == 49
    status, answer = ask(world, "/detokenize", {"tokens": [65] * (FEW + 1)})
    assert status == 200, answer
    assert len(json.loads(answer)["prompt"]) == FEW + 1


def test_a_list_longer_than_any_context_is_no_text(world, monkeypatch):
    monkeypatch.setattr(tokens, "_AT_ONCE", 3)
    status, answer = ask(world, "/detokenize", {"tokens": [65, 195, 169, 256, 255, 66]})
    assert (status, json.loads(answer)["prompt"]) == (200, "Aé<|end|>\ufffdB")
    status, answer = ask(world, "/detokenize", {"tokens": [65] * (tokens.MOST_TOKENS + 1)})
    assert (status, json.loads(answer)["error"]["param"]) == (400, "tokens")


def test_a_text_full_of_commas_is_a_text(world):
    text = "a,[{" * 2**16
    status, answer = ask(world, "/tokenize", {"prompt": text})
    assert status == 200
    assert json.loads(answer)["count"] >= len(text) // 4


@pytest.mark.parametrize("kind", LEAST)
def test_a_huge_text_in_any_field_is_not_sent_back(world, kind):
    huge = "x" * 2**17
    for field in (*kind.__struct_fields__, huge):
        status, answer = ask(world, PATHS[kind], {**LEAST[kind], field: huge})
        assert status in (200, 400, 404, 413), (field[:20], answer[:300])
        assert status == 200 or len(answer) < 2500, field[:20]
    for key in ("role", "content", "name", "tool_calls", "own", "prefix"):
        message = {**USER, key: huge}
        status, answer = ask(
            world, PATHS[ChatRequest], {**LEAST[ChatRequest], "messages": [message]}
        )
        assert status in (200, 400)
        assert len(answer) < 2500
    assert world[1].held == 0


def test_a_body_for_which_the_budget_has_no_room_is_to_come_again(world):
    _, memory = world
    taken = memory.open()
    taken.add(memory._limits[0] - 2**16, body=False)
    try:
        large = {**LEAST[CompletionRequest], "user": "x" * 2**18}
        for path in PATHS.values():
            status, answer = ask(world, path, large)
            assert status == 429, answer
        assert ask(world, "/v1/completions", LEAST[CompletionRequest])[0] == 200
    finally:
        taken.close()
    assert ask(world, "/v1/completions", large)[0] == 200
    assert memory.held == 0


def test_the_texts_of_a_waiting_request_stay_in_the_budget(world, engine, monkeypatch):
    _, memory = world
    seen = []
    plain = engine.submit_together

    def submit(*args, **options):
        made = plain(*args, **options)
        seen.append(memory.held)
        return made

    monkeypatch.setattr(engine, "submit_together", submit)
    stop = "y" * 2**18
    assert ask(world, "/v1/completions", {**LEAST[CompletionRequest], "stop": [stop]})[0] == 200
    assert seen[0] >= 2 * len(stop), "the body, and what is kept of it"
    assert memory.held == 0


def test_ended_requests_are_gone_without_a_collection(engine):
    gc.collect()
    gc.disable()
    try:
        made = engine.submit_together(
            [([65], SamplingParams(max_tokens=50))] * 6, lambda place: lambda event: None
        )
        left = [weakref.ref(request) for request in made]
        made[0].cancel()
        for request in made[1:3]:
            request.cancel()
        del made, request
        while engine.running or engine.waiting:
            time.sleep(0.005)
        engine.submit([65], SamplingParams(max_tokens=1))  # the engine's frames hold the newest
        while engine.running or engine.waiting:
            time.sleep(0.005)
        assert sum(ref() is not None for ref in left) <= 1
    finally:
        gc.enable()


def test_an_error_lets_go_of_what_its_frames_hold():
    class Held:
        pass

    def fail():
        held = Held()
        nonlocal left
        left = weakref.ref(held)
        try:
            raise ValueError("inner")
        except ValueError:
            error = RequestError("body", found="too much")
            raise error  # noqa: B904

    left = None
    gc.disable()
    try:
        with pytest.raises(RequestError) as caught:
            fail()
        assert left() is not None
        error = caught.value
        del caught
        assert http_error(error).status_code == 400
        assert left() is None
    finally:
        gc.enable()
