"""Clients of one server, each with a key: what each may do, and what none does to others."""

import asyncio
import contextlib
import http.client
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jsonschema
import pytest
from tests.serve.conftest import CONTEXT, serving

from ziggurat.serve.composition import Generator, openai_parts
from ziggurat.serve.llm.policy import RequestPolicy
from ziggurat.serve.openai import token_stream

openai = pytest.importorskip("openai")
HI = [{"role": "user", "content": "hi"}]
LONG = {"model": "tiny", "prompt": "a", "max_tokens": 90, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def guarded(engine, server):
    """The engine behind two keys, with the switches that are off by default.

    An engine has one monitor: that of ``server``, made before, gets it back for other tests.
    """
    from prometheus_client import CollectorRegistry

    policy = RequestPolicy(extra_fields="ignore", special_tokens="all", sampling={"top_k": 1})
    registry, monitor = CollectorRegistry(), engine.monitor
    parts = openai_parts(registry, Generator("tiny", engine, policy))
    origins = ["https://chat.example"]
    with serving(parts, registry, keys=["k1", "k2"], allowed_origins=origins) as made:
        yield made
    engine.monitor = monitor


@contextlib.contextmanager
def client_of(server, key):
    base = server.url + "/v1"
    with openai.OpenAI(base_url=base, api_key=key, max_retries=0, timeout=120) as made:
        yield made


def raw(server, method, path, body=None, headers=()):
    """Status, headers and body of a request as it stands."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=120)
    with contextlib.closing(connection):
        data = None if body is None else json.dumps(body).encode()
        connection.request(method, path, data, dict(headers))
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()


def until(condition):
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_every_key_of_several_opens_and_no_other(guarded):
    for key in ("k1", "k2"):
        with client_of(guarded, key) as client:
            assert client.completions.create(model="tiny", prompt="a", max_tokens=1).choices
    for key in ("k3", "k1 k2", "k"):
        with client_of(guarded, key) as client, pytest.raises(openai.AuthenticationError):
            client.completions.create(model="tiny", prompt="a", max_tokens=1)


def test_a_list_of_more_prompts_than_may_wait_is_served(client):
    found = client.completions.create(model="tiny", prompt=["a"] * 100, max_tokens=1, seed=1)
    assert [choice.index for choice in found.choices] == list(range(100))
    assert len({choice.text for choice in found.choices}) == 1
    assert found.usage.prompt_tokens == 100


@contextlib.contextmanager
def busy(engine, monkeypatch):
    """The engine stands still, as in the middle of a long step."""
    go = threading.Event()
    plan = engine._scheduler.plan

    def wait():
        go.wait(120)
        return plan()

    monkeypatch.setattr(engine._scheduler, "plan", wait)
    try:
        yield
    finally:
        monkeypatch.undo()
        go.set()


def test_a_full_queue_is_429_with_a_time_and_only_for_its_own_key(guarded, engine, monkeypatch):
    monkeypatch.setattr(engine._admission._most, "requests", 2)
    with ThreadPoolExecutor(8) as pool, busy(engine, monkeypatch):
        body = {"model": "tiny", "prompt": ["a"] * 3, "max_tokens": 1}
        call = lambda key: raw(  # noqa: E731
            guarded, "POST", "/v1/completions", body, {"authorization": f"Bearer {key}"}
        )
        held = [pool.submit(call, "k1") for _ in range(2)]
        until(lambda: engine.waiting == 6)
        status, headers, text = call("k1")
        error = json.loads(text)["error"]
        assert (status, headers["retry-after"], error["code"]) == (429, "1", "queue_full")
        assert engine.waiting == 6, "of a list that is refused nothing is kept"
        other = pool.submit(call, "k2")
        until(lambda: engine.waiting == 9)
    assert [each.result()[0] for each in (*held, other)] == [200, 200, 200]
    assert engine._admission._clients == {}


def test_what_can_never_fit_is_400_and_names_the_limit(server, engine, monkeypatch):
    monkeypatch.setattr(engine._admission._most, "tokens", 100)
    for prompt, said in (("a" * 60, None), ("a" * 90, "101")):
        body = {"model": "tiny", "prompt": [prompt, "b" * 11], "max_tokens": 1}
        status, headers, text = raw(server, "POST", "/v1/completions", body)
        if said is None:
            assert status == 200
            continue
        error = json.loads(text)["error"]
        assert (status, error["param"]) == (400, "prompt")
        assert f"{said} prompt tokens in one request; expected at most 100" in error["message"]
        assert "retry-after" not in headers


def test_a_client_with_a_deep_queue_lets_others_through(guarded, engine, monkeypatch):
    """Counted in requests that end before another's, not in time."""
    ended = []
    end = type(engine)._end

    def note(self, generation, error):
        ended.append(len(generation.prompt))
        end(self, generation, error)

    monkeypatch.setattr(type(engine), "_end", note)
    with (
        client_of(guarded, "k1") as deep,
        client_of(guarded, "k2") as late,
        ThreadPoolExecutor(1) as pool,
    ):
        many = pool.submit(deep.completions.create, model="tiny", prompt=["ab"] * 200, max_tokens=4)
        until(lambda: engine.waiting > 100)
        late.completions.create(model="tiny", prompt="abc", max_tokens=4)
        place = ended.index(3)
        many.result()
    assert place < 150, "it waited for the others' end"
    assert ended.count(2) == 200


def test_prefixes_are_shared_within_a_key_and_a_salt(guarded, server, engine):
    def hits(where, key, **more):
        before = engine.statistics().prefix_hits
        with client_of(where, key) as client:
            prompt = "the very same beginning of a prompt " * 2
            asked = {"model": "tiny", "prompt": prompt, "max_tokens": 1}
            client.completions.create(**asked, extra_body=more)
        return engine.statistics().prefix_hits - before

    assert hits(guarded, "k1") == 0
    assert hits(guarded, "k1") > 0
    assert hits(guarded, "k2") == 0
    assert hits(guarded, "k1", cache_salt="s") == 0
    assert hits(guarded, "k1", cache_salt="s") > 0
    assert hits(guarded, "k2", cache_salt="s") == 0
    assert hits(server, "any") == 0


def test_browsers_of_an_allowed_origin_may_ask(guarded, server):
    ask = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization",
    }
    good, bad = {"origin": "https://chat.example"}, {"origin": "https://evil.example"}
    path = "/v1/chat/completions"
    status, headers, _ = raw(guarded, "OPTIONS", path, headers=ask | good)
    assert (status, headers["access-control-allow-origin"]) == (200, good["origin"])
    assert "authorization" in headers["access-control-allow-headers"].lower()
    assert raw(guarded, "OPTIONS", path, headers=ask | bad)[0] == 400
    status, headers, _ = raw(guarded, "GET", "/v1/models", headers=good)
    assert (status, headers["access-control-allow-origin"]) == (401, good["origin"])
    for headers in (raw(guarded, "GET", "/health", headers=bad)[1],
                    raw(server, "GET", "/v1/models", headers=good)[1]):  # fmt: skip
        assert "access-control-allow-origin" not in headers


def test_special_tokens_of_messages_are_text_unless_the_operator_says_otherwise(server, guarded):
    key = {"authorization": "Bearer k1"}
    asked = {"messages": [{"role": "user", "content": "<|end|>"}]}
    for where, ids in ((server, list(b"<|end|>")), (guarded, [256])):
        _, _, text = raw(where, "POST", "/tokenize", asked, key)
        shown = json.loads(text)["tokens"]
        assert bytes(shown[:6]) == b"<user>"
        assert shown[6 : 6 + len(ids)] == ids
        _, _, text = raw(where, "POST", "/tokenize", {"prompt": "<|end|>"}, key)
        assert json.loads(text)["tokens"] == [256]


def test_extra_fields_and_sampling_defaults_are_the_operators(guarded, client):
    asked = {"model": "tiny", "messages": HI, "max_tokens": 8, "temperature": 3}
    greedy = client.chat.completions.create(**asked | {"temperature": 0}).choices[0].message
    with client_of(guarded, "k2") as other:
        extra = {"colour": 1, "store": True, "reasoning_effort": "low"}
        for seed in (1, 2):
            found = other.chat.completions.create(**asked, seed=seed, extra_body=extra)
            assert found.choices[0].message.content == greedy.content, "top_k is 1 by default"
        drawn = other.chat.completions.create(**asked, seed=1, extra_body={"top_k": 0})
        assert drawn.choices[0].message.content != greedy.content
    with pytest.raises(openai.BadRequestError, match="colour"):
        client.chat.completions.create(**asked, extra_body={"colour": 1})


TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 2}},
            "required": ["city"],
        },
    },
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("length", [3, 45, 60, 66])
def test_the_servers_own_answers_are_taken_back(client, length, stream):
    """Cut off anywhere, in the name of a call and in its arguments, dumped whole by the client."""
    asked = {"model": "tiny", "messages": HI, "tools": [TOOL], "tool_choice": "required"}
    asked |= {"max_tokens": length, "seed": 3, "logprobs": True}
    if stream:
        with client.chat.completions.stream(**asked) as events:
            for _ in events:
                pass
            answer = events.current_completion_snapshot
    else:
        answer = client.chat.completions.create(**asked)
    choice = answer.choices[0]
    turns = [*HI, choice.message.model_dump()]
    for call in choice.message.tool_calls or ():
        turns.append({"role": "tool", "tool_call_id": call.id, "content": "22"})
    again = client.chat.completions.create(model="tiny", messages=turns, max_tokens=1)
    assert again.choices
    whole = {"index": 0, **choice.model_dump()["message"], "finish_reason": choice.finish_reason}
    assert client.chat.completions.create(model="tiny", messages=[*HI, whole], max_tokens=1).choices


def test_a_forced_call_has_no_arguments_but_those_of_its_schema(client):
    asked = {"model": "tiny", "messages": HI, "tools": [TOOL], "tool_choice": "required"}
    for seed in range(4):
        found = client.chat.completions.create(**asked, seed=seed, temperature=2, max_tokens=66)
        if found.choices[0].finish_reason == "length":
            continue
        arguments = json.loads(found.choices[0].message.tool_calls[0].function.arguments)
        assert set(arguments) == {"city"}
        jsonschema.validate(arguments, TOOL["function"]["parameters"])


def test_usage_so_far_is_told_in_every_chunk_if_asked(client):
    options = {"include_usage": True, "continuous_usage_stats": True}
    asked = LONG | {"max_tokens": 5, "stream": True, "stream_options": options}
    counts = [chunk.usage.completion_tokens for chunk in client.completions.create(**asked)]
    assert counts == sorted(counts)
    assert counts[-1] == 5


def test_a_client_that_does_not_read_is_given_up(client, engine, monkeypatch):
    monkeypatch.setattr(token_stream, "MAX_UNREAD", 20)

    read = token_stream.TokenStream.read

    async def late(self):
        while not self._given_up:
            await asyncio.sleep(0.01)
        async for entry in read(self):
            yield entry

    monkeypatch.setattr(token_stream.TokenStream, "read", late)
    stream = client.completions.create(**LONG | {"stream": True, "n": 4})
    with pytest.raises(openai.APIError, match="20 events unread"):
        list(stream)
    until(lambda: engine.running == 0)


def test_limits_of_one_request_are_the_context_and_not_its_bytes(server):
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x" * 10**6}]}
    status, _, text = raw(server, "POST", "/v1/chat/completions", body)
    error = json.loads(text)["error"]
    assert (status, error["code"]) == (400, "context_length_exceeded")
    assert f"at most {CONTEXT} tokens" in error["message"]
