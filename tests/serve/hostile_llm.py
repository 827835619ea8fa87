"""Clients of a language model's server that mean harm or do not care: functions of its address.

Every function returns the status codes it got; a client that leaves before its answer adds none.
Another load test can run :data:`CLIENTS` beside its own.
"""

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Callable

MODEL = "tiny"


def post(address: str, path: str, body: dict | bytes) -> int:
    """Status of a request; 0 where the server closed the connection without an answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection = http.client.HTTPConnection(address, timeout=300)
    with contextlib.closing(connection):
        try:
            connection.request("POST", path, data, {"content-type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            return answer.status
        except (ConnectionError, http.client.HTTPException):
            return 0


def text(address: str, **fields) -> int:
    return post(address, "/v1/completions", {"model": MODEL, "max_tokens": 1} | fields)


def chat(address: str, content: str = "hi", **fields) -> int:
    messages = [{"role": "user", "content": content}]
    body = {"model": MODEL, "messages": messages, "max_tokens": 2}
    return post(address, "/v1/chat/completions", body | fields)


def giant_prompts(address: str) -> list[int]:
    size = 7 * 2**20
    return [
        text(address, prompt="word " * (size // 5)),
        text(address, prompt="<|end|>" * (size // 7)),
        text(address, prompt=[7] * (size // 3)),
        chat(address, "<" * size),
    ]


def long_lists(address: str) -> list[int]:
    return [text(address, prompt=["a"] * count) for count in (500, 2048, 2049, 200_000)]


def many_values(address: str) -> list[int]:
    """As many values as a body holds, in places where any JSON may be."""
    statuses = []
    for part in ("0", "[]", "{}", '"a"', '"k":0'):
        inner = ",".join([part] * (7 * 2**20 // (len(part) + 1)))
        value = f"{{{inner}}}" if part == '"k":0' else f"[{inner}]"
        message = f'{{"role":"user","content":"x","own":{value}}}'
        body = f'{{"model":"{MODEL}","messages":[{message}],"max_tokens":2}}'
        statuses.append(post(address, "/v1/chat/completions", body.encode()))
    text_of_json = json.dumps({"x": [0] * 2**21}, separators=(",", ":"))
    call = {"function": {"name": "f", "arguments": text_of_json}}
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [call]}]
    return [*statuses, chat(address, messages=messages)]


def tokens(address: str) -> list[int]:
    return [
        post(address, "/tokenize", {"prompt": "x " * 2**20}),
        post(address, "/tokenize", {"messages": [{"role": "user", "content": "<" * 2**22}]}),
        post(address, "/detokenize", {"tokens": [65] * 60_000}),
        post(address, "/detokenize", {"tokens": [65] * 2_000_000}),
    ]


def huge_names(address: str) -> list[int]:
    huge = "x" * 7 * 2**20
    tool = {"type": "function", "function": {"name": huge}}
    return [
        text(address, prompt="a", model=huge),
        text(address, prompt="a", **{huge: 1}),
        chat(address, messages=[{"role": huge, "content": "x"}]),
        chat(address, tools=[tool]),
    ]


def many_choices(address: str) -> list[int]:
    return [text(address, prompt="a", n=128), text(address, prompt=["a"] * 100, n=128)]


def special_tokens(address: str) -> list[int]:
    return [chat(address, "<|end|>" * count) for count in (1, 5, 10_000)]


def biases(address: str) -> list[int]:
    return [
        text(address, prompt="a", logit_bias={str(i): 100 for i in range(count)})
        for count in (250, 300, 100_000)
    ]


def deep_schemas(address: str) -> list[int]:
    statuses = []
    for depth in (20, 400, 5000):
        body = '{"type":"string"}'
        for _ in range(depth):
            body = f'{{"type":"object","properties":{{"a":{body}}},"required":["a"]}}'
        form = f'{{"type":"json_schema","json_schema":{{"name":"x","schema":{body}}}}}'
        head = f'{{"model":"{MODEL}","messages":[{{"role":"user","content":"x"}}],"max_tokens":2,'
        whole = f'{head}"response_format":{form}}}'
        statuses.append(post(address, "/v1/chat/completions", whole.encode()))
    words = {"enum": [f"word {i}" for i in range(50_000)]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": words}}
    return [*statuses, chat(address, response_format=form)]


def deep_values(address: str) -> list[int]:
    statuses = []
    for depth in (100, 900, 100_000):
        nested = "[" * depth + "]" * depth
        for field in ('"chat_template_kwargs":{"x":%s}', '"metadata":%s'):
            messages = '"messages":[{"role":"user","content":"x"}],"max_tokens":2'
            body = f'{{"model":"{MODEL}",{messages},{field % nested}}}'
            statuses.append(post(address, "/v1/chat/completions", body.encode()))
        message = f'{{"role":"user","content":"x","own":{nested}}}'
        body = f'{{"model":"{MODEL}","messages":[{message}],"max_tokens":2}}'
        statuses.append(post(address, "/v1/chat/completions", body.encode()))
    return statuses


def many_tools(address: str) -> list[int]:
    properties = {f"p{i}": {"type": "string", "pattern": "(a|b)*c{1,30}"} for i in range(20)}
    schema = {"type": "object", "properties": properties}
    tools = [
        {"type": "function", "function": {"name": f"f{i}", "parameters": schema}}
        for i in range(128)
    ]
    return [chat(address, tools=tools, tool_choice="required") for _ in range(2)]


def stops(address: str) -> list[int]:
    return [text(address, prompt="a", stop=["x" * 200_000] * 16, max_tokens=50)]


def leave_at_once(address: str) -> list[int]:
    body = {"model": MODEL, "prompt": ["a"] * 50, "max_tokens": 90, "ignore_eos": True}
    for stream in (True, False) * 5:
        begun_stream(address, body | {"stream": stream}).close()
    return []


def read_slowly(address: str) -> list[int]:
    body = {"model": MODEL, "prompt": "a", "n": 100, "max_tokens": 90, "ignore_eos": True}
    with begun_stream(address, body | {"stream": True}) as connection:
        for _ in range(20):
            connection.recv(10)
            time.sleep(0.05)
    return []


def send_slowly(address: str) -> list[int]:
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
        connection.sendall(head + b"{")
        time.sleep(1)
    return []


def begun_stream(address: str, body: dict) -> socket.socket:
    """A connection on which a request has been sent and nothing been read."""
    host, port = address.split(":")
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
    connection = socket.create_connection((host, int(port)), timeout=60)
    connection.sendall(head.encode() + data)
    return connection


CLIENTS: dict[str, Callable[[str], list[int]]] = {
    function.__name__: function
    for function in (
        *(giant_prompts, long_lists, many_choices, special_tokens, biases, deep_schemas),
        *(deep_values, many_tools, stops, leave_at_once, read_slowly, send_slowly),
        *(many_values, tokens, huge_names),
    )
}
