"""Messages as clients write them: every key of OpenAI's types and those that clients echo."""

import json

import pytest
from tests.serve.openai_types import examples

from ziggurat.serve.errors import RequestError
from ziggurat.serve.llm.render import render_chat
from ziggurat.serve.openai.messages import INERT, conversation, read_arguments

openai = pytest.importorskip("openai")
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}


MESSAGES = [
    message
    for message in examples(openai.types.chat.ChatCompletionMessageParam)
    if message["role"] != "tool" or "tool_call_id" in message
]
BEYOND = ("image_url", "input_audio", "file", "audio", "custom")
"""What a model of texts cannot take in; all else must be accepted."""


def test_the_sweep_has_every_role_and_every_key():
    assert {m["role"] for m in MESSAGES} >= {"developer", "system", "user", "assistant", "tool"}
    seen = {key for message in MESSAGES for key in message}
    assert seen >= {"content", "name", "refusal", "tool_calls", "function_call", "audio"}
    assert len(MESSAGES) > 40


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: json.dumps(m)[:60])
def test_every_message_of_openais_types_is_taken_or_refused_by_name(message, tokenizer):
    text = json.dumps(message)
    if any(f'"{word}"' in text for word in BEYOND) and message.get("audio", 0) is not None:
        with pytest.raises(RequestError) as caught:
            conversation([message])
        assert caught.value.param.startswith("messages[0].")
        assert caught.value.param in str(caught.value)
        return
    ids = render_chat(tokenizer, conversation([message]))
    shown = tokenizer.decode(ids)
    if isinstance(message.get("content"), str):
        assert message["content"] in shown
    else:
        assert "text" in shown or not message.get("content")


ECHOED = {
    "id": "msg_1",
    "index": 0,
    "annotations": [{"type": "url_citation"}],
    "cache_control": {"type": "ephemeral"},
    "logprobs": None,
    "refusal": None,
    "audio": None,
    "function_call": None,
    "tool_calls": None,
    "tool_call_id": None,
    "name": None,
    "reasoning_content": "thought",
    "reasoning": "thought",
    "reasoning_details": [{"type": "reasoning.text", "text": "thought"}],
    "provider_specific_fields": {"a": 1},
    "prefix": False,
    "x_own": {"any": ["thing"]},
}


@pytest.mark.parametrize(
    ("role", "key"),
    [
        (role, key)
        for role in ("system", "user", "assistant", "tool")
        for key in ECHOED
        if (role, key) != ("tool", "tool_call_id")
    ],
)
def test_keys_that_clients_echo_change_no_prompt(tokenizer, role, key):
    plain = {"role": role, "content": "hi"}
    plain |= {"tool_call_id": "c"} if role == "tool" else {}
    wanted = render_chat(tokenizer, conversation([plain]))
    assert render_chat(tokenizer, conversation([plain | {key: ECHOED[key]}])) == wanted


@pytest.mark.parametrize("key", sorted(INERT))
def test_inert_keys_do_not_reach_the_template_anywhere(key):
    part = {"type": "text", "text": "hi", key: {"a": 1}}
    call = {**CALL, key: 1, "function": {**CALL["function"], key: 1}}
    call["id"] = "c"
    (made,) = conversation(
        [{"role": "assistant", "content": [part], "tool_calls": [call], key: {"a": 1}}]
    )
    function = {"name": "f", "arguments": {"x": 1}}
    assert made == {
        "role": "assistant",
        "content": [{"type": "text", "text": "hi"}],
        "tool_calls": [{"id": "c", "type": "function", "function": function}],
    }


def test_other_keys_of_a_message_are_the_templates():
    (made,) = conversation([{"role": "user", "content": "x", "weather": "rain", "reasoning": "r"}])
    assert (made["weather"], made["reasoning"]) == ("rain", "r")


@pytest.mark.parametrize(
    ("message", "place"),
    [
        ({"role": "assistant", "content": "x", "prefix": True}, "prefix"),
        ({"role": "assistant", "content": "x", "partial": True}, "partial"),
        ({"role": "assistant", "content": "x", "audio": {"id": "a"}}, "audio"),
        ({"role": "user", "content": "x", "tool_calls": [CALL]}, "tool_calls"),
        ({"role": "user", "content": 5}, "content"),
        ({"role": "user", "content": ["text"]}, "content[0]"),
        ({"role": "user", "content": [{"type": "text"}]}, "content[0].text"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "content[0].type"),
        ({"role": "user", "content": "x", "name": 5}, "name"),
        ({"role": "assistant", "tool_calls": [{}]}, "tool_calls[0].function"),
        ({"role": "assistant", "tool_calls": [{**CALL, "type": "custom"}]}, "tool_calls[0].type"),
        ({"role": "assistant", "tool_calls": [{"function": {}}]}, "tool_calls[0].function.name"),
        ({"role": "assistant", "tool_calls": {}}, "role"),
        ({"role": "assistant", "tool_calls": "x"}, "tool_calls"),
        ({"role": "bot", "content": "x"}, "role"),
        ({"content": "x"}, "role"),
        ("text", ""),
    ],
)
def test_what_cannot_be_done_is_refused_by_its_place(message, place):
    if place == "role" and isinstance(message, dict) and message.get("role") == "assistant":
        assert conversation([message]) == [{"role": "assistant", "content": ""}]  # no calls
        return
    with pytest.raises(RequestError) as caught:
        conversation([message])
    assert caught.value.param == f"messages[0].{place}".rstrip(".")


def test_the_older_form_of_calls_is_the_newer_one():
    made = conversation(
        [
            {"role": "assistant", "content": None, "function_call": CALL["function"]},
            {"role": "function", "name": "f", "content": "22 C"},
        ]
    )
    function = {"name": "f", "arguments": {"x": 1}}
    assert made[0]["tool_calls"] == [{"id": "f", "type": "function", "function": function}]
    assert made[1] == {"role": "tool", "content": "22 C", "name": "f", "tool_call_id": "f"}


WHOLE = {"city": 'Zürich "x" \\', "days": [1, 2.5, None, True], "at": {"a": {"b": "c"}}}


def test_arguments_are_read_wherever_they_were_cut_off():
    text = json.dumps(WHOLE, ensure_ascii=False)
    for size in range(len(text) + 1):
        found = read_arguments(text[:size])
        assert isinstance(found, dict)
        for key in found:
            assert any(whole.startswith(key) for whole in WHOLE) or key == "arguments"
    assert read_arguments(text) == WHOLE
    assert read_arguments('{"city": "Par') == {"city": "Par"}


@pytest.mark.parametrize("text", ["{'a': 1}", "[1]", "null", "7", "{" * 5000, '"x"', "\ud800"])
def test_arguments_that_are_no_object_are_shown_as_they_are(text):
    assert read_arguments(text) in ({"arguments": text}, {})
