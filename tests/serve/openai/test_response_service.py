"""``/v1/responses`` through OpenAI's client: answers, streams, tools, parsed forms, kept answers,
and what is refused by name."""

import json

import pydantic
import pytest
from prometheus_client import CollectorRegistry
from tests.serve.conftest import serving
from tests.serve.scripted import Scripted

from ziggurat.serve.composition import Generator, openai_parts

openai = pytest.importorskip("openai")
pytest.importorskip("llguidance")

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": False}
SCRIPT = (
    'One moment.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
)
COMPACT = {str(ord(character)): -100.0 for character in " \t\r\n"}


@pytest.fixture(scope="module")
def scripted():
    engine, registry = Scripted(), CollectorRegistry()
    with (
        serving(
            openai_parts(registry, Generator("script", engine)), registry, keys=["one", "two"]
        ) as server,
        openai.OpenAI(base_url=server.url + "/v1", api_key="one", max_retries=0) as client,
    ):
        yield engine, client


def say(engine, script, reason="stop", size=3):
    engine.script, engine.reason, engine.size, engine.max_length = script, reason, size, 4096


def ask(client, given="hi", **fields):
    return client.responses.create(model="script", input=given, **fields)


def test_an_answer_and_what_it_repeats(scripted):
    engine, client = scripted
    say(engine, "Hello.")
    made = ask(
        client, instructions="Be kind.", temperature=0.5, max_output_tokens=9, metadata={"a": "b"}
    )
    assert made.output_text == "Hello."
    assert engine.prompts[-1] == "<system>Be kind.<user>hi<assistant>"
    assert (made.status, made.object, made.model) == ("completed", "response", "script")
    assert (made.temperature, made.max_output_tokens, made.metadata) == (0.5, 9, {"a": "b"})
    assert made.instructions == "Be kind."
    (message,) = made.output
    assert (message.type, message.role, message.status) == ("message", "assistant", "completed")
    assert made.usage.total_tokens == made.usage.input_tokens + made.usage.output_tokens
    assert made.usage.input_tokens == len(engine.prompts[-1])
    assert made.usage.output_tokens_details.reasoning_tokens == 0


def test_an_answer_that_the_limit_cuts_is_incomplete(scripted):
    engine, client = scripted
    say(engine, "Hell", reason="length")
    made = ask(client, max_output_tokens=3)
    assert (made.status, made.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert made.output[0].status == "incomplete"
    last = list(ask(client, max_output_tokens=3, stream=True))[-1]
    assert last.type == "response.incomplete"
    assert last.response.output_text == "Hell"


def kinds(events):
    """Types of events, runs of one type as one."""
    names = [event.type.removeprefix("response.") for event in events]
    return [name for name, before in zip(names, ["", *names]) if name != before]


ITEM = ["output_item.added", "content_part.added", "output_text.delta"]
ITEM += ["output_text.done", "content_part.done", "output_item.done"]
CALL = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done"]
CALL += ["output_item.done"]


@pytest.mark.parametrize("size", [1, 1000])
def test_the_events_of_a_stream(scripted, size):
    engine, client = scripted
    say(engine, SCRIPT, size=size)
    events = list(ask(client, tools=[WEATHER], stream=True))
    assert kinds(events) == ["created", "in_progress", *ITEM, *CALL, *CALL, "completed"]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    final = events[-1].response
    whole = ask(client, tools=[WEATHER])
    shown = [(i.type, getattr(i, "arguments", None)) for i in final.output]
    assert shown == [(i.type, getattr(i, "arguments", None)) for i in whole.output]
    assert shown[1:] == [
        ("function_call", '{"city": "Oslo"}'),
        ("function_call", '{"city": "Rome"}'),
    ]
    pieces = {0: "", 1: "", 2: ""}
    for event in events:
        if event.type.endswith(".delta"):
            assert event.item_id == final.output[event.output_index].id
            pieces[event.output_index] += event.delta
    assert list(pieces.values()) == ["One moment.", '{"city": "Oslo"}', '{"city": "Rome"}']
    with client.responses.stream(model="script", input="hi", tools=[WEATHER]) as stream:
        list(stream)
        assert stream.get_final_response().output_text == "One moment."


def test_a_round_trip_of_tools(scripted):
    engine, client = scripted
    say(engine, SCRIPT)
    first = ask(client, tools=[WEATHER])
    results = [
        {"type": "function_call_output", "call_id": call.call_id, "output": "22 C"}
        for call in first.output[1:]
    ]
    say(engine, "It is warm.")
    said = [{"role": "user", "content": "hi"}, *first.output, *results]
    whole = ask(client, said, tools=[WEATHER])
    prompt = engine.prompts[-1]
    assert whole.output_text == "It is warm."
    assert prompt == "[weather]<user>hi<assistant>One moment.<tool>22 C<tool>22 C<assistant>"
    ask(client, results, tools=[WEATHER], previous_response_id=first.id)
    assert engine.prompts[-1] == prompt
    with pytest.raises(openai.BadRequestError, match=r"input\[0\]\.call_id: found 'call_9'"):
        ask(client, [results[0] | {"call_id": "call_9"}])


def test_answers_are_kept_for_their_key(scripted):
    engine, client = scripted
    say(engine, "One.")
    first = ask(client, "a", instructions="I")
    assert client.responses.retrieve(first.id).to_dict() == first.to_dict()
    second = ask(client, "b", previous_response_id=first.id)
    assert engine.prompts[-1] == "<user>a<assistant>One.<user>b<assistant>"
    assert second.previous_response_id == first.id
    other = client.with_options(api_key="two")
    with pytest.raises(openai.NotFoundError, match="expected an answer that is kept"):
        other.responses.retrieve(first.id)
    with pytest.raises(openai.BadRequestError) as caught:
        ask(other, "b", previous_response_id=first.id)
    assert caught.value.code == "previous_response_not_found"
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.delete(first.id)
    (*_, last) = ask(client, "c", stream=True, previous_response_id=second.id)
    assert engine.prompts[-1].endswith("<user>b<assistant>One.<user>c<assistant>")
    assert client.responses.retrieve(last.response.id).output_text == "One."
    unkept = ask(client, store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(unkept.id)


def test_a_conversation_that_is_too_long_loses_its_beginning(scripted):
    engine, client = scripted
    say(engine, "Yes.")
    engine.max_length = 60
    talk = [{"role": "developer", "content": "S"}]
    for number in range(9):
        talk += [
            {"role": "user", "content": f"q{number}"},
            {"role": "assistant", "content": f"a{number}"},
        ]
    talk.append({"role": "user", "content": "last"})
    ask(client, talk, truncation="auto", max_output_tokens=5)
    found = engine.prompts[-1]
    assert found == "<system>S<user>q8<assistant>a8<user>last<assistant>"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [WEATHER | {"parameters": {"type": "array"}}]}, "tools"),
        ({"tools": [WEATHER], "tool_choice": {"type": "file_search"}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "f"}}, "tool_choice"),
        ({"include": ["reasoning.encrypted_content"]}, "include"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"reasoning": {"effort": "low"}}, "reasoning.effort"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format"),
        ({"extra_body": {"messages": []}}, "messages"),
        ({"extra_body": {"n": 2}}, "n"),
        ({"given": [{"type": "item_reference", "id": "a"}]}, "input[0].type"),
        ({"given": []}, "input"),
        (
            {"given": [{"role": "user", "content": [{"type": "input_file", "file_id": "a"}]}]},
            "input[0].content[0].type",
        ),
        (
            {
                "instructions": "I",
                "given": [{"role": "user", "content": [{"type": "input_image", "image_url": "a"}]}],
            },
            "input[0].content[0].type",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(scripted, fields, param):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(scripted[1], **fields)
    assert caught.value.param == param


# From here on the model is real, if random; bytes are its tokens.
class City(pydantic.BaseModel):
    """An answer to parse."""

    city: bool


def test_forms_of_a_random_model_are_parsed(client):
    more = {"extra_body": {"logit_bias": COMPACT, "seed": 2}}
    made = client.responses.parse(model="tiny", input="hi", text_format=City, **more)
    assert isinstance(made.output_parsed, City)
    assert made.text.format.type == "json_schema"
    made = client.responses.create(
        model="tiny", input="hi", tools=[WEATHER], tool_choice="required",
        parallel_tool_calls=False, **more,
    )  # fmt: skip
    (call,) = made.output
    assert json.loads(call.arguments) in ({"city": "Oslo"}, {"city": "Rome"})


def test_an_input_that_is_too_long_is_refused(client):
    for given in ("x" * 95, "x" * 9000):
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(model="tiny", input=given, max_output_tokens=20)
        assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input")


def test_log_probabilities_are_those_of_a_chat(client):
    same = {"model": "tiny", "temperature": 0, "top_logprobs": 2}
    made = client.responses.create(
        **same, input="hi", max_output_tokens=4, include=["message.output_text.logprobs"]
    )
    chat = client.chat.completions.create(
        **same, messages=[{"role": "user", "content": "hi"}], max_tokens=4, logprobs=True
    )
    assert made.output_text == chat.choices[0].message.content
    shown = made.output[0].content[0].logprobs
    assert [x.to_dict() for x in shown] == [x.to_dict() for x in chat.choices[0].logprobs.content]
    assert made.usage.output_tokens == chat.usage.completion_tokens == 4
    again = client.responses.create(model="tiny", input="hi" * 20, max_output_tokens=1)
    assert again.usage.input_tokens_details.cached_tokens == 0
    again = client.responses.create(model="tiny", input="hi" * 20, max_output_tokens=1)
    assert again.usage.input_tokens_details.cached_tokens > 16


def test_an_error_within_a_stream_is_its_last_event(scripted, monkeypatch):
    engine, client = scripted
    say(engine, "Hello.")

    monkeypatch.setattr("ziggurat.serve.openai.token_stream.Usage.add", lambda *_: 1 / 0)
    (*_, last) = ask(client, stream=True)
    assert last.type == "response.failed"
    assert (last.response.status, last.response.error.code) == ("failed", "server_error")
