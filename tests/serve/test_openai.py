"""Request bodies: what is applied, what changes nothing, what is refused and by which name."""

import json

import pytest

from ziggurat.serve.errors import RequestError
from ziggurat.serve.llm.openai import NEUTRAL, ChatRequest, CompletionRequest, decode

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
TEXT = {"model": "m", "prompt": "Hi"}


def chat(**fields):
    return decode(ChatRequest, json.dumps(CHAT | fields).encode())


def text(**fields):
    return decode(CompletionRequest, json.dumps(TEXT | fields).encode())


def test_every_sampling_field_arrives():
    fields = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "seed": 3,
        "n": 2,
        "ignore_eos": True,
        "max_tokens": 9,
    }
    for params in (
        text(**fields, stop=["a", "b"], stop_token_ids=[5], logprobs=2).sampling(),
        chat(
            **fields, stop=["a", "b"], stop_token_ids=[5], logprobs=True, top_logprobs=2
        ).sampling(),
    ):
        assert {name: getattr(params, name) for name in fields} == fields
        assert (params.stop, params.stop_token_ids, params.logprobs) == (("a", "b"), (5,), 2)


def test_defaults_are_openais():
    assert text().sampling().max_tokens == 16
    assert chat().sampling().max_tokens is None
    assert chat(max_completion_tokens=5).sampling().max_tokens == 5
    assert chat(max_completion_tokens=5, max_tokens=5).sampling().max_tokens == 5
    assert text(stop="x").sampling().stop == ("x",)
    assert chat(logprobs=True).sampling().logprobs == 0
    assert chat(logprobs=False).sampling().logprobs is None
    nulls = dict.fromkeys(["temperature", "top_p", "n", "stop", "seed", "max_tokens"])
    assert chat(**nulls).sampling() == chat().sampling()


VALUES = {
    "audio": {"voice": "x"},
    "best_of": 2,
    "frequency_penalty": 0.5,
    "function_call": "auto",
    "functions": [{}],
    "logit_bias": {"5": 1},
    "modalities": ["audio"],
    "moderation": {},
    "parallel_tool_calls": True,
    "prediction": {"type": "content"},
    "presence_penalty": -1,
    "prompt_cache_options": {},
    "reasoning_effort": "low",
    "repetition_penalty": 1.1,
    "response_format": {"type": "json_object"},
    "service_tier": "flex",
    "store": True,
    "suffix": "x",
    "tool_choice": "auto",
    "tools": [{"type": "function"}],
    "verbosity": "low",
    "web_search_options": {},
}


@pytest.mark.parametrize("name", NEUTRAL)
def test_what_is_not_applied_is_refused_by_name_and_taken_where_it_asks_for_nothing(name):
    kinds = [
        make
        for make, kind in ((chat, ChatRequest), (text, CompletionRequest))
        if name in kind.__struct_fields__
    ]
    assert kinds
    for make in kinds:
        with pytest.raises(RequestError, match="does not apply it") as caught:
            make(**{name: VALUES[name]})
        assert caught.value.param == name
        for neutral in (None, *NEUTRAL[name]):
            make(**{name: neutral})


def test_every_field_is_used_neutral_or_a_label():
    labels = {
        "user",
        "metadata",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
    }
    applied = {
        *("model", "stream", "stream_options", "max_tokens", "temperature", "top_p", "top_k"),
        *("min_p", "seed", "stop", "stop_token_ids", "ignore_eos", "n", "logprobs"),
    }
    own = {CompletionRequest: {"prompt", "echo"}}
    own[ChatRequest] = {"messages", "max_completion_tokens", "top_logprobs"}
    for kind, more in own.items():
        assert set(kind.__struct_fields__) - set(NEUTRAL) == labels | applied | more


def test_every_parameter_of_openais_client_is_known():
    """A field that the client's signature has is refused by our rule, not as an unknown one."""
    openai = pytest.importorskip("openai")
    import inspect

    for resource, kind in (
        (openai.resources.chat.Completions, ChatRequest),
        (openai.resources.Completions, CompletionRequest),
    ):
        given = set(inspect.signature(resource.create).parameters)
        transport = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}
        assert given - transport <= set(kind.__struct_fields__)


@pytest.mark.parametrize(
    ("make", "fields", "param", "said"),
    [
        (text, {"temperatur": 1}, "temperatur", "did you mean temperature?"),
        (text, {"temperature": "hot"}, "temperature", "Expected `float | null`, got `str`"),
        (text, {"n": 1.5}, "n", "got `float`"),
        (text, {"prompt": None}, "prompt", "got `null`"),
        (text, {"prompt": []}, "prompt", "found []"),
        (text, {"prompt": ["a", 1]}, "prompt", "a text, a list of texts, token ids"),
        (text, {"prompt": [True]}, "prompt", "found [True]"),
        (text, {"prompt": [[1], []]}, "prompt", "found [[1], []]"),
        (text, {"echo": True, "logprobs": 1}, "echo", "prompt are not computed"),
        (text, {"stream_options": {}}, "stream_options", "expected stream: true"),
        (text, {"stream_options": {"x": 1}}, "stream_options.x", "an unknown field"),
        (text, {"max_tokens": 0}, "max_tokens", "a number >= 1"),
        (text, {"logprobs": 21}, "logprobs", "from 0 to 20"),
        (chat, {"messages": []}, "messages", "at least one"),
        (chat, {"messages": [{"content": "x"}]}, "messages[0].role", "nothing"),
        (chat, {"messages": [{"role": "bot", "content": "x"}]}, "messages[0].role", "bot"),
        (chat, {"messages": [{"role": "user"}]}, "messages", "messages[0].content: found null"),
        (chat, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
         "messages[0].content[0].type", "image_url"),
        (chat, {"messages": [{"role": "user", "content": "x", "tool_call_id": "1"}]},
         "messages", "only in a message of role tool"),
        (chat, {"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "one of them"),
        (chat, {"top_logprobs": 3}, "top_logprobs", "logprobs: true"),
        (chat, {"logprobs": True, "top_logprobs": 21}, "top_logprobs", "from 0 to 20"),
    ],
)  # fmt: skip
def test_refusals_name_the_field(make, fields, param, said):
    def read():
        request = make(**fields)
        request.sampling()
        return request.prompts() if make is text else request.conversation()

    with pytest.raises(RequestError) as caught:
        read()
    assert caught.value.param == param
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"\xff", b"null", b"[" * 10**6, b'{"model": NaN}']
)
def test_what_is_no_json_object_is_refused(body):
    for kind in (ChatRequest, CompletionRequest):
        with pytest.raises(RequestError, match="request body"):
            decode(kind, body)


def test_messages_for_the_template():
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    request = chat(
        messages=[
            {"role": "developer", "content": "D"},
            {"role": "user", "content": [{"type": "text", "text": x} for x in "ab"]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": "R"},
        ]
    )  # fmt: skip
    parsed = {"name": "f", "arguments": {"x": 1}}
    assert request.conversation() == [
        {"role": "system", "content": "D"},
        {"role": "user", "content": "ab"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "c", "type": "function", "function": parsed}],
        },
        {"role": "tool", "content": "R", "tool_call_id": "c"},
    ]
