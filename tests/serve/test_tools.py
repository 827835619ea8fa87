"""Tools and structured output through OpenAI's client: calls written by a script, whole and in
pieces, then calls and JSON that a random model cannot but write well."""

import asyncio
import json
import re

import jsonschema
import pydantic
import pytest
from prometheus_client import CollectorRegistry
from tests.serve.conftest import serving
from tests.serve.scripted import Scripted

from ziggurat.serve.composition import Generator, openai_parts
from ziggurat.serve.errors import RequestError
from ziggurat.serve.llm.grammar import Grammars
from ziggurat.serve.llm.offline import LLM
from ziggurat.serve.llm.sampling import SamplingParams

openai = pytest.importorskip("openai")
pytest.importorskip("llguidance")

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "maximum": 9}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
NOW = {"type": "function", "function": {"name": "now"}}
HI = [{"role": "user", "content": "hi"}]
SCRIPT = (
    'One moment.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
)


@pytest.fixture(scope="module")
def scripted():
    engine, registry = Scripted(), CollectorRegistry()
    with (
        serving(openai_parts(registry, Generator("script", engine)), registry) as server,
        openai.OpenAI(base_url=server.url + "/v1", api_key="x", max_retries=0) as client,
    ):
        yield engine, client


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_calls_in_a_models_text_whole_and_streamed(scripted, size):
    engine, client = scripted
    engine.script, engine.size, engine.reason = SCRIPT, size, "stop"
    asked = {"model": "script", "messages": HI, "tools": [WEATHER, NOW]}
    choice = client.chat.completions.create(**asked).choices[0]
    assert engine.prompts[-1] == "[weather][now]<user>hi<assistant>"
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "One moment."
    calls = choice.message.tool_calls
    assert [(c.function.name, c.function.arguments) for c in calls] == [
        ("weather", '{"city": "Oslo"}'),
        ("now", "{}"),
    ]
    assert len({call.id for call in calls}) == 2
    assert {call.type for call in calls} == {"function"}
    with client.chat.completions.stream(**asked) as stream:
        events = list(stream)
        final = stream.get_final_completion().choices[0]
    assert final.message.content == choice.message.content
    found = [(c.function.name, c.function.arguments) for c in final.message.tool_calls]
    assert found == [(c.function.name, c.function.arguments) for c in calls]
    assert final.finish_reason == "tool_calls"
    pieces = [e for e in events if e.type == "tool_calls.function.arguments.delta"]
    assert size > 4 or len(pieces) > 4


def test_a_conversation_goes_on_after_a_call(scripted):
    engine, client = scripted
    engine.script, engine.reason = SCRIPT, "stop"
    tools = [WEATHER, NOW]
    said = client.chat.completions.create(model="script", messages=HI, tools=tools)
    message = said.choices[0].message
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": "22 C"} for call in message.tool_calls
    ]
    engine.script = "It is warm."
    answer = client.chat.completions.create(
        model="script", messages=[*HI, message, *results], tools=tools
    )
    assert answer.choices[0].message.content == "It is warm."
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].finish_reason == "stop"
    assert engine.prompts[-1].endswith("<tool>22 C<tool>22 C<assistant>")


def test_a_call_that_the_limit_cuts_ends_with_length(scripted):
    engine, client = scripted
    engine.script, engine.reason = SCRIPT[:70], "length"
    choice = client.chat.completions.create(model="script", messages=HI, tools=[WEATHER]).choices[0]
    assert choice.finish_reason == "length"
    assert choice.message.tool_calls[0].function.arguments.startswith('{"ci')


def test_without_tools_nothing_is_taken_out(scripted):
    engine, client = scripted
    engine.script, engine.reason = SCRIPT, "stop"
    for fields in ({}, {"tools": [WEATHER], "tool_choice": "none"}):
        answer = client.chat.completions.create(model="script", messages=HI, **fields)
        assert answer.choices[0].message.content == SCRIPT
        assert engine.prompts[-1] == "<user>hi<assistant>"


# From here on the model is real, if random; bytes are its tokens. White space where the grammar
# leaves the choice would fill its short context, so it is made unlikely.
SMALL = {
    "type": "object",
    "properties": {"x": {"enum": ["a", 1]}},
    "required": ["x"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SMALL}}
COMPACT = {str(ord(character)): -100.0 for character in " \t\r\n"}


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        ("required", "tool_calls"),
        ({"type": "function", "function": {"name": "f"}}, "stop"),
    ],
)
def test_forced_calls_of_a_random_model_parse(client, choice, reason):
    asked = {
        "model": "tiny", "messages": HI, "tools": [TOOL], "tool_choice": choice, "n": 4,
        "parallel_tool_calls": False, "logit_bias": COMPACT, "seed": 1,
    }  # fmt: skip
    answer = client.chat.completions.create(**asked)
    for made in answer.choices:
        assert made.finish_reason == reason
        assert made.message.content is None
        (call,) = made.message.tool_calls
        assert call.function.name == "f"
        jsonschema.validate(json.loads(call.function.arguments), SMALL)
    calls = ["", "", "", ""]
    for chunk in client.chat.completions.create(**asked, stream=True):
        for piece in chunk.choices[0].delta.tool_calls or ():
            calls[chunk.choices[0].index] += piece.function.arguments
    assert calls == [made.message.tool_calls[0].function.arguments for made in answer.choices]


class Person(pydantic.BaseModel, frozen=True):
    """What the model is to fill in."""

    ok: bool
    age: int = pydantic.Field(ge=0, le=150)


def test_json_of_a_random_model_is_always_valid(client):
    parsed = client.chat.completions.parse(
        model="tiny", messages=HI, response_format=Person, n=8, seed=2, logit_bias=COMPACT
    )
    assert len(parsed.choices) == 8
    assert all(choice.finish_reason == "stop" for choice in parsed.choices)
    people = {choice.message.parsed for choice in parsed.choices}
    assert all(isinstance(person, Person) for person in people)
    assert len(people) > 1


def test_other_forms_of_a_random_model(client):
    asked = {"model": "tiny", "prompt": "ab", "n": 6, "seed": 3, "max_tokens": 40}
    for form, pattern in (
        ({"regex": "[ab]{3}c?"}, "[ab]{3}c?"),
        ({"choice": ["yes", "no"]}, "yes|no"),
        ({"grammar": 'start: "<" /[0-9]/ ">"'}, "<[0-9]>"),
        ({"json": {"enum": [1, "b", None]}}, '1|"b"|null'),
    ):
        answer = client.completions.create(**asked, extra_body={"structured_outputs": form})
        for choice in answer.choices:
            assert choice.finish_reason == "stop"
            assert re.fullmatch(pattern, choice.text)
    answer = client.completions.create(**asked, extra_body={"response_format": {"type": "text"}})
    assert len(answer.choices) == 6


def test_a_form_that_cannot_be_is_answered_400_with_the_reason(client):
    bad = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "thing"}}}
    with pytest.raises(openai.BadRequestError, match="Invalid type: thing") as caught:
        client.chat.completions.create(model="tiny", messages=HI, response_format=bad)
    assert caught.value.param == "response_format"
    tool = {"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}
    with pytest.raises(openai.BadRequestError, match="Unimplemented keys") as caught:
        client.chat.completions.create(
            model="tiny", messages=HI, tools=[tool], tool_choice="required"
        )
    assert caught.value.param == "tools"


def test_constrained_and_free_requests_at_once_keep_apart(server):
    async def main():
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="x") as client:

            async def one(number):
                body = {"structured_outputs": {"regex": f"{number}+x"}} if number % 2 else {}
                answer = await client.completions.create(
                    model="tiny", prompt="q", max_tokens=12, seed=number, extra_body=body
                )
                return answer.choices[0].text

            return await asyncio.gather(*(one(number) for number in range(8)))

    texts = asyncio.run(main())
    for number in (1, 3, 5, 7):
        assert re.fullmatch(f"{number}+x?", texts[number])
    assert not any(re.fullmatch(r"\d+x?", texts[number]) for number in (0, 2, 4, 6))


def test_offline_generations_keep_to_forms_and_hear_of_tools(engine):
    llm = object.__new__(LLM)  # over the engine that has been compiled already
    llm.tokenizer, llm.engine = engine.tokenizer, engine
    llm._grammars = Grammars(engine.tokenizer, engine.vocab_size)
    colour = llm.constraint("choice", ["red", "green"])
    outputs = llm.generate(["a", "b"], SamplingParams(constraint=colour, n=2, seed=4))
    assert {c.text for output in outputs for c in output.completions} <= {"red", "green"}
    with pytest.raises(RequestError, match=r"regex: found .*unclosed group"):
        llm.constraint("regex", "(")
    told = llm.chat(HI, SamplingParams(max_tokens=2), tools=[TOOL])
    assert engine.tokenizer.decode(told.prompt_ids) == "[f]<user>hi<assistant>"


CALLED = (
    "Well.\n" + '<tool_call>\n{"name": "f", "arguments": {"x": "a b", "y": [1, 2]}}\n</tool_call>'
)
WRONG = CALLED.replace('"x": "a b"', "'x': None")


@pytest.mark.parametrize("script", [CALLED, WRONG])
@pytest.mark.parametrize("stream", [False, True])
def test_every_answer_of_the_server_is_taken_back_as_history(scripted, script, stream):
    """Cut off at any place, whole or streamed, dumped by the client with all of its keys."""
    engine, client = scripted
    tools = [{"type": "function", "function": {"name": "f"}}]
    for size in range(0, len(script) + 1, 5):
        engine.script, engine.reason = script[:size], "length"
        asked = {"model": "script", "messages": HI, "tools": tools}
        if stream:
            with client.chat.completions.stream(**asked) as events:
                list(events)
                choice = events.current_completion_snapshot.choices[0]
        else:
            choice = client.chat.completions.create(**asked).choices[0]
        said = choice.message.model_dump()
        turns = [*HI, said]
        for call in said.get("tool_calls") or ():
            turns.append({"role": "tool", "tool_call_id": call["id"], "content": "22"})
        engine.script = "ok"
        again = client.chat.completions.create(model="script", messages=turns)
        assert again.choices[0].message.content == "ok", script[:size]
