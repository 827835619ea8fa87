"""``/v1/messages`` through Anthropic's client: answers, streams, tools, reasoning, pictures, and
what is refused by name."""

import base64
import json
import urllib.error
import urllib.request

import pydantic
import pytest
from prometheus_client import CollectorRegistry
from tests.serve.conftest import TEMPLATE, serving
from tests.serve.scripted import Scripted

from ziggurat.serve.composition import Generator, openai_parts
from ziggurat.serve.llm.policy import RequestPolicy

anthropic = pytest.importorskip("anthropic")
pytest.importorskip("llguidance")

SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}},
    "required": ["city"],
}
WEATHER = {"name": "weather", "description": "Weather of a city.", "input_schema": SCHEMA}
SCRIPT = (
    'One moment.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
)
THINKING = TEMPLATE.replace(
    "{{ m.content }}",
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{% if m.is_error %}!{% endif %}{{ m.content }}",
) + ("{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}")


@pytest.fixture(scope="module")
def scripted():
    engine, registry = Scripted(), CollectorRegistry()
    engine.tokenizer.chat_templates["default"] = THINKING
    with (
        serving(
            openai_parts(registry, Generator("script", engine)), registry, keys=["one", "two"]
        ) as server,
        anthropic.Anthropic(base_url=server.url, api_key="one", max_retries=0) as client,
    ):
        yield engine, client


def say(engine, script, reason="stop", size=3, stop_text=None):
    engine.script, engine.reason, engine.size, engine.max_length = script, reason, size, 4096
    engine.stop_text = stop_text


def ask(client, given="hi", **fields):
    messages = [{"role": "user", "content": given}] if isinstance(given, str) else given
    return client.messages.create(model="script", max_tokens=99, messages=messages, **fields)


def streamed(client, given="hi", **fields):
    """Events of a stream, and the message that the client makes of them."""
    messages = [{"role": "user", "content": given}] if isinstance(given, str) else given
    with client.messages.stream(
        model="script", max_tokens=99, messages=messages, **fields
    ) as stream:
        events = [event.type for event in stream]
        return events, stream.get_final_message()


def shown(message):
    """All of a message but its id and the block's own ids."""
    whole = message.to_dict()
    for block in whole["content"]:
        block.pop("parsed_output", None)
        if block["type"] == "tool_use":
            block.pop("id")
    return {key: value for key, value in whole.items() if key not in ("id", "parsed_output")}


def test_an_answer(scripted):
    engine, client = scripted
    say(engine, "Hello.")
    sampling = {"temperature": 0.5, "top_k": 7}  # the client's newest version has no such fields
    made = ask(client, system="Be kind.", stop_sequences=["END"], extra_body=sampling)
    assert made.id.startswith("msg_")
    assert (made.type, made.role, made.model) == ("message", "assistant", "script")
    assert [block.to_dict() for block in made.content] == [{"type": "text", "text": "Hello."}]
    assert (made.stop_reason, made.stop_sequence) == ("end_turn", None)
    assert engine.prompts[-1] == "<system>Be kind.<user>hi<assistant>"
    assert made.usage.input_tokens == len(engine.prompts[-1])
    assert made.usage.output_tokens == len("Hello.") // 3 + 1
    params = engine.params
    assert (params.temperature, params.top_k, params.max_tokens) == (0.5, 7, 99)
    assert params.stop == ("END",)


@pytest.mark.parametrize(
    ("reason", "stop_text", "expected"),
    [
        ("length", None, ("max_tokens", None)),
        ("stop", "END", ("stop_sequence", "END")),
        ("stop", None, ("end_turn", None)),
    ],
)
def test_why_an_answer_ends(scripted, reason, stop_text, expected):
    engine, client = scripted
    say(engine, "Hell", reason, stop_text=stop_text)
    made = ask(client)
    _, final = streamed(client)
    assert (made.stop_reason, made.stop_sequence) == expected
    assert (final.stop_reason, final.stop_sequence) == expected


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize(
    "script",
    [
        "Hello.",
        " \n ",
        SCRIPT,
        " \n" + SCRIPT.partition("\n")[2] + "\nSo far.",
        "<think>\nTwo.\n</think>\n\nFour.",
        "<think>\nTwo.\n</think>\n\n" + SCRIPT,
    ],
)
def test_a_stream_adds_up_to_the_whole_answer(scripted, script, size):
    engine, client = scripted
    say(engine, script, size=size)
    whole = ask(client, tools=[WEATHER])
    events, final = streamed(client, tools=[WEATHER])
    assert shown(final) == shown(whole)
    assert (events[0], events[-1]) == ("message_start", "message_stop")
    assert events.count("content_block_start") == len(whole.content)
    assert events.count("content_block_stop") == len(whole.content)


def test_calls_and_their_results(scripted):
    engine, client = scripted
    say(engine, SCRIPT)
    made = ask(client, tools=[WEATHER])
    assert made.stop_reason == "tool_use"
    text, *calls = made.content
    assert text.text.strip() == "One moment."
    assert [(call.name, call.input) for call in calls] == [
        ("weather", {"city": "Oslo"}),
        ("weather", {"city": "Rome"}),
    ]
    assert engine.prompts[-1].startswith("[weather]")
    results = [
        {"type": "tool_result", "tool_use_id": calls[0].id, "content": "12"},
        {"type": "tool_result", "tool_use_id": calls[1].id, "is_error": True,
         "content": [{"type": "text", "text": "no station"}]},
        {"type": "text", "text": "So?", "cache_control": {"type": "ephemeral"}},
    ]  # fmt: skip
    say(engine, "Cold.")
    turns = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": made.content},
        {"role": "user", "content": results},
    ]
    assert ask(client, turns, tools=[WEATHER]).content[0].text == "Cold."
    assert engine.prompts[-1].endswith("<tool>12<tool>!no station<user>So?<assistant>")


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}])
def test_a_call_that_is_forced(scripted, choice):
    engine, client = scripted
    say(engine, SCRIPT)
    ask(client, tools=[WEATHER], tool_choice=choice | {"disable_parallel_tool_use": True})
    assert engine.params.constraint is not None
    ask(client, tools=[WEATHER], tool_choice=choice)
    assert engine.params.constraint is not None
    ask(client, tools=[WEATHER], tool_choice={"type": "none"})
    assert engine.params.constraint is None


def test_a_form_that_is_parsed(scripted):
    class City(pydantic.BaseModel):
        city: str

    engine, client = scripted
    say(engine, '{"city": "Oslo"}')
    made = client.messages.parse(
        model="script",
        max_tokens=9,
        messages=[{"role": "user", "content": "Where?"}],
        output_format=City,
    )
    assert made.parsed_output == City(city="Oslo")
    assert engine.params.constraint is not None


def test_reasoning_is_a_block_of_its_own_and_comes_back(scripted):
    engine, client = scripted
    say(engine, "<think>\nTwo.\n</think>\n\nFour.", size=1)
    made = ask(client, thinking={"type": "adaptive"})
    thought, text = made.content
    assert (thought.type, thought.thinking) == ("thinking", "Two.")
    assert (text.type, text.text) == ("text", "Four.")
    assert made.usage.output_tokens_details.thinking_tokens > len("Two.")
    say(engine, "Yes.")
    turns = [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": made.content}]
    ask(client, [*turns, {"role": "user", "content": "Sure?"}], thinking={"type": "disabled"})
    assert engine.prompts[-1] == (
        "<user>2+2<assistant><think>Two.</think>Four.<user>Sure?<assistant><think></think>"
    )


def test_an_answer_that_is_begun_is_continued(scripted):
    engine, client = scripted
    say(engine, "yes.")
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Well, "}]
    assert ask(client, turns).content[0].text == "yes."
    assert engine.prompts[-1] == "<user>hi<assistant>Well, "


def test_turns_of_one_role_are_one(scripted):
    engine, client = scripted
    say(engine, "Yes.")
    both = [{"type": "text", "text": "one "}, {"type": "text", "text": "two "}]
    ask(client, [{"role": "user", "content": both}, {"role": "user", "content": "three"}])
    assert engine.prompts[-1].count("<user>") == 1
    assert [engine.prompts[-1].count(word) for word in ("one", "two", "three")] == [1, 1, 1]


def test_tokens_are_counted(scripted):
    engine, client = scripted
    say(engine, "Hello.")
    asked = {"system": "Be kind.", "tools": [WEATHER]}
    turns = [{"role": "user", "content": "hi"}]
    counted = client.messages.count_tokens(model="script", messages=turns, **asked)
    assert counted.input_tokens == ask(client, turns, **asked).usage.input_tokens


def test_reasoning_is_turned_on_and_off_where_it_can_be():
    """A template with reasoning that has no switch for it, and one without reasoning."""
    unswitched = THINKING.partition("{% if enable_thinking")[0] + "{# <think> </think> #}"
    said = {
        ("enabled", TEMPLATE): "no reasoning is read",
        ("disabled", TEMPLATE): "",
        ("enabled", unswitched): "",
        ("disabled", unswitched): "cannot turn its reasoning off",
    }
    for (kind, template), refusal in said.items():
        other, registry = Scripted(), CollectorRegistry()
        other.script = "Yes."
        other.tokenizer.chat_templates["default"] = template
        for ignore in (False, True):
            fields = "ignore" if ignore else "refuse"
            policy = RequestPolicy(extra_fields=fields)
            parts = openai_parts(registry, Generator("script", other, policy))
            registry = CollectorRegistry()
            with (
                serving(parts, registry) as server,
                anthropic.Anthropic(base_url=server.url, api_key="x", max_retries=0) as asking,
            ):
                if not refusal or ignore:
                    assert ask(asking, thinking={"type": kind}).content[0].text == "Yes."
                    continue
                with pytest.raises(anthropic.BadRequestError, match=refusal):
                    ask(asking, thinking={"type": kind})


def test_a_call_cannot_be_continued(scripted):
    engine, client = scripted
    say(engine, SCRIPT)
    made = ask(client, tools=[WEATHER])
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": made.content}]
    with pytest.raises(anthropic.BadRequestError) as error:
        ask(client, turns, tools=[WEATHER])
    assert "messages: found calls behind it" in error.value.body["error"]["message"]


def user(*blocks):
    return {"messages": [{"role": "user", "content": list(blocks)}]}


REFUSED = {
    "an unknown field": ({"colour": 1}, "colour: found an unknown field"),
    "no max_tokens": ({"max_tokens": None}, "max_tokens: found nothing"),
    "a bound of reasoning": (
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        "thinking.budget_tokens: found 1024",
    ),
    "a tool of Anthropic's": (
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        "tools[0].type: found 'web_search_20250305'; expected custom",
    ),
    "a tool that waits": (
        {"tools": [WEATHER | {"defer_loading": True}]},
        "tools[0].defer_loading: found True",
    ),
    "a choice without its tool": (
        {"tool_choice": {"type": "tool", "name": "f"}, "tools": [WEATHER]},
        "tool_choice: found",
    ),
    "a document": (
        user({"type": "document", "source": {}}),
        "messages[0].content[0].type: found 'document'",
    ),
    "a picture": (
        user({"type": "text", "text": "?"}, {"type": "image", "source": {
            "type": "base64", "media_type": "image/png", "data": "AAAA"}}),
        "messages[0].content[1].type: found 'image'; expected text",
    ),
    "a result without a call": (
        user({"type": "tool_result", "tool_use_id": "x", "content": "1"}),
        "messages[0].content[0].tool_use_id: found 'x'",
    ),
    "an effort that the template does not know": (
        {"output_config": {"effort": "high"}},
        "output_config.effort: found 'high'",
    ),
    "a stop text that is empty": ({"stop_sequences": [""]}, "stop_sequences: found"),
    "no messages": ({"messages": []}, "messages: found none"),
    "a role": ({"messages": [{"role": "tool", "content": ""}]}, "messages[0].role: found 'tool'"),
    "a container": ({"container": "c"}, "container: found"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
def test_what_is_refused(scripted, name, path):
    _, client = scripted
    changed, said = REFUSED[name]
    if path.endswith("count_tokens") and name == "no max_tokens":
        return
    body = {"model": "script", "max_tokens": 9, **user({"type": "text", "text": "hi"})} | changed
    body = {key: value for key, value in body.items() if value is not None}
    with pytest.raises(anthropic.BadRequestError) as error:
        client.post(path, body=body, cast_to=object)
    told = error.value.body
    assert (told["type"], told["error"]["type"]) == ("error", "invalid_request_error")
    assert said in told["error"]["message"]
    assert "\n" not in told["error"]["message"]


def test_keys_and_names(scripted):
    _, client = scripted
    with pytest.raises(anthropic.AuthenticationError) as error:
        ask(client.with_options(api_key="three"))
    assert error.value.body["error"]["type"] == "authentication_error"
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(
            model="other", max_tokens=1, messages=[{"role": "user", "content": "hi"}]
        )
    bearer = anthropic.Anthropic(base_url=client.base_url, auth_token="two", max_retries=0)
    with bearer:
        assert ask(bearer).role == "assistant"


@pytest.mark.parametrize(("key", "status"), [("one", 200), ("three", 401), ("", 401)])
def test_a_key_in_the_header_of_earlier_clients(scripted, key, status):
    """They send ``x-api-key``, newer ones ``authorization``."""
    say(scripted[0], "Hello.")
    body = json.dumps({"model": "script", "max_tokens": 9, **user({"type": "text", "text": "hi"})})
    url = str(scripted[1].base_url.join("/v1/messages"))
    asked = urllib.request.Request(url, body.encode(), {"x-api-key": key})
    try:
        found = urllib.request.urlopen(asked, timeout=60).status
    except urllib.error.HTTPError as error:
        found = error.code
    assert found == status


def test_an_error_in_a_stream_is_its_last_event(scripted, monkeypatch):
    engine, client = scripted
    say(engine, "Hello.")

    def fails(prompt, listener):
        import threading
        import types

        threading.Thread(target=listener, args=(RuntimeError("lost"),)).start()
        return types.SimpleNamespace(
            cancel=lambda: None, timeline=types.SimpleNamespace(cached_tokens=0)
        )

    monkeypatch.setattr(engine, "_say", fails)
    with pytest.raises(anthropic.APIStatusError) as error:
        streamed(client)
    assert error.value.body["error"]["type"] == "api_error"
    assert "lost" not in json.dumps(error.value.body)


@pytest.mark.slow
def test_a_picture_gives_the_answer_that_chats_give(monkeypatch):
    pytest.importorskip("PIL")
    openai = pytest.importorskip("openai")
    from PIL import Image
    from tests.models.families.test_qwen_vl import loaded
    from tests.models.test_image_processor import file_of
    from tests.oracle import qwen_vl
    from tests.serve.openai.test_image_parts import data_uri
    from tests.serve.openai.test_image_parts_turns import LIMITS

    from ziggurat.serve.llm.offline import LLM

    file = file_of(Image.fromarray(qwen_vl.pictures()[0]))
    registry = CollectorRegistry()
    with LLM(loaded("qwen3_vl"), LIMITS) as llm:
        parts = openai_parts(registry, Generator("vl", llm.engine, images=llm.images))
        with serving(parts, registry) as server:
            chats = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=300)
            client = anthropic.Anthropic(base_url=server.url, api_key="none", timeout=300)
            part = {"type": "image_url", "image_url": {"url": data_uri(file)}}
            text = {"type": "text", "text": "t5 t6"}
            expected = chats.chat.completions.create(
                model="vl",
                messages=[{"role": "user", "content": [part, text]}],
                max_tokens=6,
                temperature=0,
            )
            data = base64.b64encode(file).decode()
            source = {"type": "base64", "media_type": "image/png", "data": data}
            found = client.messages.create(
                model="vl",
                messages=[{"role": "user", "content": [{"type": "image", "source": source}, text]}],
                max_tokens=6,
                extra_body={"temperature": 0},
            )
            assert found.content[0].text == expected.choices[0].message.content
            used = found.usage
            assert used.cache_read_input_tokens > 0, "the chat before has the same beginning"
            assert used.input_tokens + used.cache_read_input_tokens == expected.usage.prompt_tokens
            turns = [{"role": "user", "content": [{"type": "image", "source": source}, text]}]
            monkeypatch.setattr(llm.images, "embedded", None)  # counting needs no tower
            counted = client.messages.count_tokens(model="vl", messages=turns)
            assert counted.input_tokens == expected.usage.prompt_tokens
            chats.close()
            client.close()
