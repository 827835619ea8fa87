"""Chat templates: the sandbox, the extensions and the errors; parity with transformers."""

import datetime

import pytest

from ziggurat.core.errors import DataError
from ziggurat.data.chat import render, render_with_spans

CHATML = (
    "{%- for message in messages %}\n"
    "    {{- '<|im_start|>' + message['role'] + '\\n' }}\n"
    "    {%- if message.role == 'assistant' %}\n"
    "        {%- generation %}\n"
    "        {{- message.content }}{{ '<|im_end|>' }}\n"
    "        {%- endgeneration %}\n"
    "    {%- else %}{{ message.content + '<|im_end|>' }}{% endif %}\n"
    "    {{- '\\n' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"
)
TOOLS = """{{ bos_token }}{% if tools is not none %}
    {% for tool in tools %}
{{ tool | tojson(indent=2) }}
    {% endfor %}
{% endif %}
{% set ns = namespace(last=-1) %}
{% for message in messages %}
    {% if loop.index0 > 3 %}{% break %}{% endif %}
    {% if message.role == 'system' %}{% set ns.last = loop.index0 %}{% continue %}{% endif %}
    [{{ message.role }}]{{ message.content | trim }}{{ message.reasoning_content or '' }}
    {% if message.tool_calls %}{{ message.tool_calls[0].function.arguments | tojson }}{% endif %}
{% endfor %}
{{ ns.last }}{{ dict(a=1) | tojson }}{{ eos_token }}{% if enable_thinking %}<think>{% endif %}"""
STRICT = (
    "{% if messages[0].role != 'user' %}{{ raise_exception('start with the user') }}{% endif %}ok"
)

CHAT = [
    {"role": "system", "content": "Be <b>brief</b> & kind."},
    {"role": "user", "content": " Grüezi 😀\n"},
    {
        "role": "assistant",
        "content": "Hoi",
        "reasoning": "greet",
        "tool_calls": [
            {"function": {"name": "f", "arguments": {"x": "<ä>", "n": [1, None, True]}}}
        ],
    },
    {"role": "user", "content": "Ade"},
]
TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "description": "a <b> & 'c'",
        "parameters": {"type": "object", "properties": {"x": {"type": "string"}}},
    },
}


def test_chatml():
    assert render(CHATML, CHAT[1:3]) == (
        "<|im_start|>user\n Grüezi 😀\n<|im_end|>\n"
        "<|im_start|>assistant\nHoi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_spans_are_what_the_assistant_said():
    chat = [*CHAT[1:3], CHAT[3], {"role": "assistant", "content": "Tschüss"}]
    text, spans = render_with_spans(CHATML, chat, add_generation_prompt=False)
    assert [text[a:b] for a, b in spans] == ["Hoi<|im_end|>", "Tschüss<|im_end|>"]


def test_json_is_not_escaped_for_html():
    text = render(TOOLS, CHAT, [TOOL], bos_token="<s>", eos_token="</s>")
    assert '"description": "a <b> & \'c\'"' in text
    assert '{"x": "<ä>", "n": [1, null, true]}' in text
    assert "[assistant]Hoigreet" in text


def test_today():
    text = render("{{ strftime_now('%Y') }}", [])
    assert abs(int(text) - datetime.datetime.now().year) <= 1


@pytest.mark.parametrize(
    ("template", "part"),
    [
        ("{% for %}", "chat template line 1: found TemplateSyntaxError"),
        ("\n{{ messages[0].content + 3 }}", "TypeError"),
        ("{{ raise_exception('no\nway') }}", "found TemplateError: no way"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ messages.__class__.__mro__ }}", "SecurityError"),
        ("{{ namespace(_x=1) }}", "SecurityError"),
        ("{{ unknown.field }}", "UndefinedError: 'unknown' is undefined"),
        ("{% for i in range(10**9) %}{% endfor %}", "OverflowError"),
    ],
)
def test_failing_templates_give_one_line(template, part):
    with pytest.raises(DataError) as caught:
        render(template, [{"role": "user", "content": "x"}])
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_messages_must_be_mappings():
    with pytest.raises(DataError, match="message 0"):
        render("x", ["hello"])


def test_objects_reach_the_template_without_methods():
    class Secret:
        def leak(self):
            return "leaked"

    with pytest.raises(DataError):
        render("{{ messages[0].content.leak() }}", [{"content": Secret()}])
    assert render("{{ messages[0].content }}", [{"content": Secret()}]) == "<Secret>"


@pytest.mark.parity
@pytest.mark.parametrize("template", [CHATML, TOOLS, "{{ messages | tojson }}"])
@pytest.mark.parametrize("tools", [None, [TOOL]])
@pytest.mark.parametrize("prompt", [True, False])
def test_equal_to_transformers(template, tools, prompt):
    chat_utils = pytest.importorskip("transformers.utils.chat_template_utils")
    variables = {"bos_token": "<s>", "eos_token": "</s>", "enable_thinking": True}
    (expected,), _ = chat_utils.render_jinja_template(
        [CHAT],
        tools=tools,
        chat_template=template,
        add_generation_prompt=prompt,
        **variables,
    )
    assert render(template, CHAT, tools, prompt, **variables) == expected


@pytest.mark.parity
def test_rejections_equal_to_transformers():
    chat_utils = pytest.importorskip("transformers.utils.chat_template_utils")
    with pytest.raises(Exception, match="start with the user"):
        chat_utils.render_jinja_template([CHAT], chat_template=STRICT)
    with pytest.raises(DataError, match="start with the user"):
        render(STRICT, CHAT)
    assert render(STRICT, CHAT[1:]) == "ok"


@pytest.mark.parity
def test_spans_equal_to_transformers():
    chat_utils = pytest.importorskip("transformers.utils.chat_template_utils")
    (text,), (spans,) = chat_utils.render_jinja_template(
        [CHAT], chat_template=CHATML, return_assistant_tokens_mask=True
    )
    assert render_with_spans(CHATML, CHAT, None, False) == (text, spans)
