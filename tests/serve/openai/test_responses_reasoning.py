"""Reasoning through OpenAI's client: in chats and responses, whole and streamed, sent back, and
before a form that is enforced."""

import pytest
from prometheus_client import CollectorRegistry
from tests.serve.conftest import TEMPLATE, allowed_ids, serving
from tests.serve.scripted import Scripted

from ziggurat.serve.composition import Generator, openai_parts

openai = pytest.importorskip("openai")

HI = [{"role": "user", "content": "hi"}]
THINKING = TEMPLATE.replace(
    "{{ m.content }}",
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }}",
) + ("{% if think is defined %}{{ '<think>' if think else '<think></think>' }}{% endif %}")
WEATHER = {"type": "function", "function": {"name": "weather"}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call>'


@pytest.fixture(scope="module")
def scripted():
    engine, registry = Scripted(), CollectorRegistry()
    engine.tokenizer.chat_templates["default"] = THINKING
    with (
        serving(openai_parts(registry, Generator("script", engine)), registry) as server,
        openai.OpenAI(base_url=server.url + "/v1", api_key="x", max_retries=0) as client,
    ):
        yield engine, client


def chat(scripted, script, size=1, messages=HI, **fields):
    engine, client = scripted
    engine.script, engine.size, engine.reason = script, size, "stop"
    asked = {"model": "script", "messages": messages, **fields}
    whole = client.chat.completions.create(**asked)
    parts = {"reasoning": "", "reasoning_content": "", "content": "", "calls": ""}
    stream = client.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    )
    for chunk in stream:
        for choice in chunk.choices:
            delta = choice.delta.to_dict()
            parts["calls"] += "".join(
                c["function"].get("name", "") for c in delta.get("tool_calls", [])
            )
            for name in delta.keys() & parts:
                parts[name] += delta[name] or ""
        used = chunk.usage
    assert used.to_dict() == whole.usage.to_dict()
    message = whole.choices[0].message
    thought = getattr(message, "reasoning", None) or ""
    assert parts["reasoning"] == parts["reasoning_content"] == thought
    assert parts["content"] == (message.content or "")
    assert parts["calls"] == "".join(c.function.name for c in message.tool_calls or [])
    return whole


@pytest.mark.parametrize("size", [1, 5])
def test_reasoning_stands_apart(scripted, size):
    made = chat(scripted, "<think>\nTwo.\n</think>\n\nFour.", size)
    message = made.choices[0].message
    assert (message.content, message.reasoning) == ("Four.", "Two.")
    assert message.reasoning_content == "Two."
    details = made.usage.completion_tokens_details
    if size == 1:  # a token for each letter, and what is seen of the closing tag
        assert details.reasoning_tokens == len("\nTwo.\n</think")
    back = {**message.to_dict(), "reasoning_content": None}
    chat(scripted, "Yes.", messages=[*HI, back, *HI])
    assert "<assistant><think>Two.</think>Four.<user>hi" in scripted[0].prompts[-1]


def test_the_prompt_decides_whether_an_answer_begins_with_reasoning(scripted):
    made = chat(scripted, "Two.</think>Four", extra_body={"chat_template_kwargs": {"think": True}})
    assert made.choices[0].message.reasoning == "Two."
    made = chat(scripted, "Two.</think>Four", extra_body={"chat_template_kwargs": {"think": False}})
    assert made.choices[0].message.content == "Two.</think>Four"
    assert made.usage.completion_tokens_details.reasoning_tokens == 0
    made = chat(scripted, "<think>Two")
    assert (made.choices[0].message.content, made.choices[0].message.reasoning) == (None, "Two")


def test_calls_follow_the_reasoning(scripted):
    made = chat(scripted, f"<think>{CALL}</think>\n{CALL}", 3, tools=[WEATHER])
    message = made.choices[0].message
    assert (message.reasoning, message.content) == (CALL, None)
    assert made.choices[0].finish_reason == "tool_calls"
    assert len(message.tool_calls) == 1


@pytest.mark.parametrize("think", [True, False])
def test_a_form_is_enforced_behind_the_reasoning_alone(scripted, think):
    pytest.importorskip("llguidance")
    form = {"structured_outputs": {"regex": "[ab]"}, "chat_template_kwargs": {"think": think}}
    chat(scripted, "Two.</think>a" if think else "a", extra_body=form)
    made = scripted[0].params.constraint()
    if think:
        assert ord("z") in allowed_ids(made.mask())
        for byte in b"z</think>":
            made.accept(byte)
    assert {i for i in allowed_ids(made.mask()) if i < 257} == set(b"ab")


def test_a_response_has_a_reasoning_item(scripted):
    engine, client = scripted
    engine.script, engine.size = f"<think>\nTwo.\n</think>Four.{CALL}", 2
    tools = [{"type": "function", "name": "weather"}]
    made = client.responses.create(model="script", input="hi", tools=tools)
    assert [item.type for item in made.output] == ["reasoning", "message", "function_call"]
    assert made.output[0].content[0].text == "Two."
    assert made.output_text == "Four."
    assert made.usage.output_tokens_details.reasoning_tokens > 2
    with client.responses.stream(model="script", input="hi", tools=tools) as stream:
        events = list(stream)
    told = [e.delta for e in events if e.type == "response.reasoning_text.delta"]
    assert "".join(told) == "Two."
    assert events[-1].response.output[0].content[0].text == "Two."
    output = {"type": "function_call_output", "call_id": made.output[2].call_id, "output": "r"}
    client.responses.create(model="script", input=[output], previous_response_id=made.id)
    assert engine.prompts[-1] == ("<user>hi<assistant><think>Two.</think>Four.<tool>r<assistant>")
