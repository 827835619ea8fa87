"""Requests that make no sense and clients that leave: the server answers, and nothing is lost."""

import collections
import contextlib
import http.client
import json
import random
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("openai")
HI = [{"role": "user", "content": "hi"}]


def idle(engine):
    """Nothing runs or waits, and every block of the cache has come back."""
    now = engine.statistics()
    return (now.running, now.waiting) == (0, 0) and now.blocks_free == now.blocks_total


def until_idle(engine):
    end = time.monotonic() + 60
    while not idle(engine):
        assert time.monotonic() < end, engine.statistics()
        time.sleep(0.01)


# Requests are drawn by hand from a seed, not by hypothesis, which takes longer than the server.


def junk(rng, depth=2):
    """Any JSON value."""
    kind = rng.randrange(8 if depth else 6)
    if kind == 6:
        return [junk(rng, depth - 1) for _ in range(rng.randrange(4))]
    if kind == 7:
        return {text(rng): junk(rng, depth - 1) for _ in range(rng.randrange(4))}
    simple = (None, rng.random() < 0.5, rng.uniform(-9, 9), text(rng))
    numbers = (0, 1, 2, -1, 0.5, 1e308, -0.0, 2**63, 2**70, -(2**64), rng.randrange(-300, 300))
    return rng.choice(numbers if kind > 3 else simple)


def text(rng):
    alphabet = 'ab \n\t"\\{}[]():?*+|^$.,<>/%0é漢\U0001f600\x00\ud800'
    return "".join(rng.choice(alphabet) for _ in range(rng.choice([0, 1, 1, 2, 3, 5, 12])))


def ids(rng):
    high = rng.choice([256, 256, 256, 400])
    return [rng.randint(-5 if high > 256 else 0, high) for _ in range(rng.randint(1, 4))]


def schema(rng, depth=2):
    kind = rng.randrange(9 if depth else 6)
    if kind == 6:
        return {"type": "array", "items": schema(rng, depth - 1), "maxItems": rng.randint(-1, 3)}
    if kind == 7:
        return {"anyOf": [schema(rng, depth - 1) for _ in range(rng.randrange(3))]}
    if kind == 8:
        names = [text(rng) for _ in range(rng.randrange(3))]
        properties = {name: schema(rng, depth - 1) for name in names}
        return {"type": "object", "properties": properties, "required": names}
    plain = ({}, {"type": "integer"}, {"type": "boolean"}, {"enum": ["a", 1]}, {"$ref": "#"})
    odd = ({"type": "string", "pattern": text(rng)}, {"maxLength": junk(rng)}, junk(rng))
    return rng.choice(plain if rng.random() < 0.7 else odd)


def structure(rng):
    kind = rng.choice(["json", "regex", "choice", "grammar", "json_object"])
    content = {
        "json": lambda: schema(rng),
        "regex": lambda: rng.choice(["[ab]+", "a|b", "(", text(rng)]),
        "choice": lambda: [text(rng) for _ in range(rng.randint(1, 3))],
        "grammar": lambda: "start: " + rng.choice(['"a"', "/[0-9]+/", "start", "x", text(rng)]),
        "json_object": lambda: True,
    }
    more = {"whitespace_pattern": text(rng)} if rng.random() < 0.1 else {}
    return {kind: content[kind]()} | more


def response_format(rng):
    kind = rng.choice(["text", "json_object", "json_schema", "json_schema", "xml"])
    made = {"json_schema": {"name": "x", "schema": schema(rng)}} if kind == "json_schema" else {}
    return {"type": kind} | made


def tools(rng):
    return [
        {
            "type": "function",
            "function": {"name": rng.choice(["f", "g", "h", "a b"])}
            | ({"parameters": {"type": "object", "properties": {"x": schema(rng)}}}
               if rng.random() < 0.7 else {})
            | ({"strict": rng.random() < 0.5} if rng.random() < 0.3 else {}),
        }
        for _ in range(rng.choice([0, 1, 1, 2]))
    ]  # fmt: skip


def message(rng):
    role = rng.choice(["user", "user", "system", "assistant", "developer", "tool", "bot"])
    parts = [{"type": "text", "text": "c"}, {"type": "image_url"}]
    content = rng.choice([text(rng), text(rng), None, parts[:1], parts])
    return {"role": role, "content": content}


def near(low, high):
    """Mostly within, sometimes beyond."""
    return lambda rng: rng.uniform(low, high) + (rng.random() < 0.1) * (high - low + 1)


def whole(low, high):
    return lambda rng: rng.randint(low, high) + (rng.random() < 0.1) * (high - low + 1)


FIELDS = {
    "temperature": near(0, 3),
    "top_p": near(0.1, 1),
    "top_k": whole(-1, 300),
    "min_p": near(0, 1),
    "presence_penalty": near(-2, 2),
    "frequency_penalty": near(-2, 2),
    "repetition_penalty": near(0.1, 3),
    "logit_bias": lambda rng: {str(i): rng.uniform(-101, 101) for i in ids(rng)},
    "min_tokens": whole(0, 2),
    "max_tokens": whole(1, 4),
    "seed": whole(-(2**63), 2**63),
    "n": whole(1, 3),
    "stop": lambda rng: rng.choice([text(rng), [text(rng), text(rng)]]),
    "stop_token_ids": ids,
    "ignore_eos": lambda rng: rng.random() < 0.5,
    "logprobs": lambda rng: rng.choice([True, False, 0, 5, 20, 21]),
    "top_logprobs": whole(0, 20),
    "echo": lambda rng: rng.random() < 0.5,
    "stream": lambda rng: rng.random() < 0.7,
    "stream_options": lambda rng: {"include_usage": rng.random() < 0.5},
    "response_format": response_format,
    "structured_outputs": structure,
    "tools": tools,
    "tool_choice": lambda rng: rng.choice(["auto", "none", "required", "perhaps"]),
    "parallel_tool_calls": lambda rng: rng.random() < 0.5,
    "chat_template_kwargs": lambda rng: {rng.choice(["think", "messages"]): junk(rng)},
    "add_generation_prompt": lambda rng: rng.random() < 0.5,
    "add_special_tokens": lambda rng: rng.random() < 0.5,
    "user": text,
    "surprise": junk,
}
COMPLETION_ONLY = {"echo", "add_special_tokens"}
CHAT_ONLY = {
    *("top_logprobs", "tools", "tool_choice", "parallel_tool_calls", "chat_template_kwargs"),
    "add_generation_prompt",
}


def draw(rng):
    """A path and a body: sound, with some fields more that mostly are, or anything at all."""
    kind = rng.randrange(20)
    if kind == 0:
        return rng.choice(["/v1/completions", "/tokenize"]), rng.randbytes(rng.randrange(30))
    if kind < 3:
        body = {"prompt": text(rng), "tokens": ids(rng), "messages": [message(rng)]}
        path, names = rng.choice(
            [("/tokenize", ["prompt"]), ("/tokenize", ["messages"]), ("/detokenize", ["tokens"])]
        )
        body = {name: body[name] for name in names}
        foreign = set(FIELDS)
    elif kind < 10:
        prompt = rng.choice([text(rng) + "a", ids(rng), ["a", text(rng)], [ids(rng), ids(rng)]])
        path, body = "/v1/completions", {"prompt": prompt}
        foreign = CHAT_ONLY
    else:
        path, body = "/v1/chat/completions", {"messages": [message(rng) for _ in range(2)]}
        foreign = COMPLETION_ONLY
    if path.startswith("/v1"):
        body |= {"model": "tiny", "max_tokens": 2}
    own = sorted(set(FIELDS) - foreign) if rng.random() < 0.95 else sorted(FIELDS)
    for name in rng.sample(own, min(len(own), rng.randrange(4))):
        body[name] = FIELDS[name](rng) if rng.random() < 0.9 else junk(rng)
    if rng.random() < 0.1:
        body[rng.choice(sorted(body))] = junk(rng)
    return path, body


@pytest.fixture(scope="module")
def connection(server):
    host, port = server.url.removeprefix("http://").split(":")
    made = http.client.HTTPConnection(host, int(port), timeout=60)
    with contextlib.closing(made):
        yield made


@pytest.mark.slow
def test_no_request_breaks_the_server_and_every_block_comes_back(connection, engine, client):
    rng, seen = random.Random(0), collections.Counter()
    for _ in range(2000):
        path, body = draw(rng)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", path, data)
        response = connection.getresponse()
        answer = response.read()
        seen[response.status] += 1
        told = (path, data, response.status, answer)
        assert response.status in (200, 400, 404), told
        if response.status != 200:
            error = json.loads(answer)["error"]
            assert error["message"], told
            assert "\n" not in error["message"], told
            assert error["type"] == "invalid_request_error", told
        elif answer.startswith(b"data: "):
            assert answer.endswith(b"data: [DONE]\n\n"), told
    assert seen[200] > 500, "most requests are refused: they try little"
    assert seen[400] > 500, "few requests are wrong"
    until_idle(engine)
    assert client.completions.create(model="tiny", prompt="ab", max_tokens=4).choices


@pytest.mark.slow
def test_clients_that_come_and_go_leave_nothing_behind(server, engine):
    host, port = server.url.removeprefix("http://").split(":")

    def one(number):
        rng = random.Random(number)
        body = {"model": "tiny", "prompt": "a" * rng.randint(1, 40), "max_tokens": 50}
        body |= {"stream": rng.random() < 0.7, "n": rng.randint(1, 3), "ignore_eos": True}
        if rng.random() < 0.3:
            body["structured_outputs"] = {"regex": "[ab]*"}
        data = json.dumps(body).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            whole = head.encode() + data
            if rng.random() < 0.2:
                connection.sendall(whole[: rng.randrange(len(whole))])
                return
            connection.sendall(whole)
            for _ in range(rng.randint(0, 6)):
                if not connection.recv(rng.choice([1, 100, 4096])):
                    return
            time.sleep(rng.random() * 0.02)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(one, range(200)))
    until_idle(engine)
    assert engine.failure is None
