"""Request bodies: what is applied, what changes nothing, what is refused and by which name."""

import json

import pytest
from tests.serve.openai_types import examples

from ziggurat.data.tokenizers import byte_level
from ziggurat.serve.bodies import read
from ziggurat.serve.errors import RequestError
from ziggurat.serve.openai.messages import conversation
from ziggurat.serve.openai.requests import GUIDED, NEUTRAL, ChatRequest, CompletionRequest

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
TEXT = {"model": "m", "prompt": "Hi"}


def chat(**fields):
    return read(ChatRequest, json.dumps(CHAT | fields).encode())


def text(**fields):
    return read(CompletionRequest, json.dumps(TEXT | fields).encode())


def test_every_sampling_field_arrives():
    fields = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "presence_penalty": 0.5,
        "frequency_penalty": -1,
        "repetition_penalty": 1.5,
        "min_tokens": 4,
        "seed": 3,
        "n": 2,
        "ignore_eos": True,
        "max_tokens": 9,
    }
    listed = {"stop": ["a", "b"], "stop_token_ids": [5], "logit_bias": {"5": 1, "7": -100}}
    for params in (
        text(**fields, **listed, logprobs=2).sampling(),
        chat(**fields, **listed, logprobs=True, top_logprobs=2).sampling(),
    ):
        assert {name: getattr(params, name) for name in fields} == fields
        assert (params.stop, params.stop_token_ids, params.logprobs) == (("a", "b"), (5,), 2)
        assert params.logit_bias == ((5, 1), (7, -100))


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
    "function_call": "auto",
    "functions": [{}],
    "include_stop_str_in_output": True,
    "length_penalty": 2,
    "modalities": ["audio"],
    "moderation": {},
    "prompt_cache_options": {"mode": "explicit"},
    "service_tier": "flex",
    "skip_special_tokens": False,
    "spaces_between_special_tokens": False,
    "store": True,
    "suffix": "x",
    "use_beam_search": True,
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
        "cache_salt",
    }
    applied = {
        *("model", "stream", "stream_options", "max_tokens", "temperature", "top_p", "top_k"),
        *("min_p", "seed", "stop", "stop_token_ids", "ignore_eos", "n", "logprobs"),
        *("presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias"),
        *("min_tokens", "response_format", "structured_outputs", "prompt_logprobs"),
        *("allowed_token_ids", "bad_words", "return_token_ids", "skip_special_tokens"),
        *("include_stop_str_in_output", *GUIDED),
    }
    own = {CompletionRequest: {"prompt", "echo", "add_special_tokens"}}
    own[ChatRequest] = {
        *("messages", "max_completion_tokens", "top_logprobs", "tools", "tool_choice"),
        *("parallel_tool_calls", "add_generation_prompt", "chat_template_kwargs"),
        *("reasoning_effort", "prediction", "continue_final_message"),
    }
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
        (text, {"stream_options": {}}, "stream_options", "expected stream: true"),
        (text, {"stream_options": {"x": 1}}, "stream_options.x", "an unknown field"),
        (text, {"max_tokens": 0}, "max_tokens", "a number >= 1"),
        (text, {"logprobs": 21}, "logprobs", "from 0 to 20"),
        (text, {"prompt_logprobs": -1}, "prompt_logprobs", "from 0 to 20"),
        (chat, {"prompt_logprobs": 1, "stream": True}, "prompt_logprobs", "no stream"),
        (chat, {"messages": []}, "messages", "at least one"),
        (chat, {"messages": [{"content": "x"}]}, "messages[0].role", "nothing"),
        (chat, {"messages": [{"role": "bot", "content": "x"}]}, "messages[0].role", "bot"),
        (chat, {"messages": [{"role": "user"}]}, "messages[0].content", "found null"),
        (chat, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
         "messages[0].content[0].type", "image_url"),
        (chat, {"messages": [{"role": "user", "content": "x", "tool_call_id": "1"}]},
         "messages[0].tool_call_id", "only in a message of role tool"),
        (chat, {"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "one of them"),
        (chat, {"top_logprobs": 3}, "top_logprobs", "logprobs: true"),
        (chat, {"logprobs": True, "top_logprobs": 21}, "top_logprobs", "from 0 to 20"),
        (chat, {"logit_bias": {"x": 1}}, "logit_bias", "found 'x'; expected token ids"),
        (chat, {"logit_bias": {"1": 101}}, "logit_bias", "[-100, 100]"),
        (chat, {"presence_penalty": 3}, "presence_penalty", "[-2, 2]"),
        (chat, {"guided": {}}, "guided", "an unknown field"),
        (text, {"allowed_token_ids": []}, "allowed_token_ids", "at least one id"),
        (text, {"allowed_token_ids": [-1]}, "allowed_token_ids", "ids >= 0"),
        (text, {"bad_words": [" "]}, "bad_words", "not empty"),
        (chat, {"continue_final_message": True, "add_generation_prompt": True},
         "continue_final_message", "one of them"),
        (chat, {"response_format": {"type": "xml"}}, "response_format.type", "xml"),
        (chat, {"messages": [{"role": "user", "content": "x", "audio": {}}]},
         "messages[0].audio", "expected text only"),
        (text, {"cache_salt": ""}, "cache_salt", "not empty"),
        (text, {"prompt": ["a"] * 2049}, "prompt", "2049 prompts; expected at most 2048"),
    ],
)  # fmt: skip
def test_refusals_name_the_field(make, fields, param, said):
    def read():
        request = make(**fields)
        request.sampling()
        return request.prompts() if make is text else conversation(request.messages)

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
            read(kind, body)


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
    assert conversation(request.messages) == [
        {"role": "system", "content": "D"},
        {"role": "user", "content": [{"type": "text", "text": x} for x in "ab"]},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "c", "type": "function", "function": parsed}],
        },
        {"role": "tool", "content": "R", "tool_call_id": "c"},
    ]


SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}


@pytest.mark.parametrize(
    ("fields", "kind", "content"),
    [
        ({}, None, None),
        ({"response_format": {"type": "text"}}, None, None),
        ({"response_format": {"type": "json_object"}}, "json", {"type": "object"}),
        ({"response_format": FORMAT}, "json", SCHEMA),
        ({"structured_outputs": {"json": SCHEMA}}, "json", SCHEMA),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, "json", SCHEMA),
        ({"structured_outputs": {"json_object": True}}, "json", {"type": "object"}),
        ({"structured_outputs": {"regex": "a+"}}, "regex", "a+"),
        ({"structured_outputs": {"choice": ["a", "b"]}}, "choice", ["a", "b"]),
        ({"structured_outputs": {"grammar": "start: A"}}, "grammar", "start: A"),
    ],
)
def test_forms_of_answers(tokenizer, fields, kind, content):
    for make in (chat, text):
        form = make(**fields).form(tokenizer)
        found = (None, None) if form is None else (form.kind, form.content)
        assert found == (kind, content)


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format", "without json_schema"),
        ({"response_format": FORMAT | {"type": "text"}}, "response_format", "text with json_sch"),
        ({"structured_outputs": {}}, "structured_outputs", "none of its kinds"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs",
         "regex and choice"),
        ({"structured_outputs": {"regex": ""}}, "structured_outputs", "found nothing"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs", "found nothing"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs", "expected a JSON schema"),
        ({"structured_outputs": {"regex": "a", "disable_any_whitespace": True}},
         "structured_outputs", "whitespace only with json"),
        ({"structured_outputs": {"json": {}, "disable_any_whitespace": True,
                                 "whitespace_pattern": " "}}, "structured_outputs", "one of them"),
        ({"structured_outputs": {"regex": "a"}, "response_format": FORMAT}, "structured_outputs",
         "response_format too"),
        ({"tool_choice": "required"}, "tool_choice", "no tools"),
        ({"tools": [TOOL], "tool_choice": {"type": "custom", "custom": {"name": "f"}}},
         "tool_choice", "'custom'"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "allowed_tools": {
            "mode": "auto", "tools": [{"type": "function", "function": {"name": "g"}}]}}},
         "tool_choice", "a tool of this request: f"),
        ({"tools": [TOOL], "tool_choice": "always"}, "tool_choice", "none, auto, required"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
         "tool_choice", "a tool of this request: f"),
        ({"tools": [TOOL, TOOL]}, "tools", "f again"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools", "'a b'"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "x"}}}]},
         "tools", 'expected "object"'),
        ({"tools": [TOOL], "tool_choice": "required", "response_format": FORMAT},
         "response_format", "whose call is forced"),
        ({"tools": [TOOL], "structured_outputs": {"regex": "a"}}, "structured_outputs",
         "tools and regex"),
    ],
)  # fmt: skip
def test_forms_and_tools_that_cannot_be(tokenizer, fields, param, said):
    with pytest.raises(RequestError) as caught:
        chat(**fields).form(tokenizer)
    assert caught.value.param == param
    assert said in str(caught.value)


def test_uses_of_tools():
    named = {"type": "function", "function": {"name": "f"}}
    for choice, parallel, expected in (
        (None, None, (False, False, True, False)),
        ("auto", False, (False, False, False, True)),
        ("required", True, (True, False, True, True)),
        (named, None, (True, True, False, True)),
    ):
        use = chat(tools=[TOOL], tool_choice=choice, parallel_tool_calls=parallel).tool_use()
        assert (use.forced, use.named, use.parallel, use.constrained) == expected
        assert use.for_template() == [TOOL]
    other = {"type": "function", "function": {"name": "g"}}
    for mode in ("auto", "required"):
        allowed = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [named]}}
        use = chat(tools=[other, TOOL], tool_choice=allowed).tool_use()
        assert (use.forced, use.named) == (mode == "required", False)
        assert use.for_template() == [TOOL]
    assert chat(tool_choice="auto", parallel_tool_calls=True).tool_use() is None
    strict = {"type": "function", "function": TOOL["function"] | {"strict": True}}
    assert chat(tools=[strict]).tool_use().constrained
    assert chat(tools=[TOOL], tool_choice="none").tool_use() is None
    assert chat(tools=[]).tool_use() is None


def test_unknown_and_unapplied_fields_can_be_left_out():
    fields = CHAT | {"colour": 1, "store": True, "verbosity": "low", "seed": 3, "user": "me"}
    made = read(ChatRequest, json.dumps(fields).encode(), ignore=True)
    assert (made.seed, made.user, made.store, made.verbosity) == (3, "me", None, None)
    with pytest.raises(RequestError, match="seed"):  # a field that is applied stays strict
        read(ChatRequest, json.dumps(CHAT | {"seed": "x"}).encode(), ignore=True)
    with pytest.raises(RequestError, match="request body"):
        read(ChatRequest, b"[]", ignore=True)


def test_reasoning_effort_goes_to_templates_that_know_it(tokenizer):
    asked = chat(reasoning_effort="low")
    with pytest.raises(RequestError, match="the model's chat template knows none") as caught:
        asked.template_variables(tokenizer)
    assert caught.value.param == "reasoning_effort"
    assert asked.template_variables(tokenizer, ignore=True) == {}
    knows = byte_level()
    knows.chat_templates["default"] = "{{ reasoning_effort }}{{ messages }}"
    assert asked.template_variables(knows) == {"reasoning_effort": "low"}


def test_best_of_as_many_as_are_shown_is_all_of_them():
    assert text(best_of=3, n=3).sampling().n == 3
    with pytest.raises(RequestError, match="best_of"):
        text(best_of=3, n=2)


def fields_of_openais_types():
    openai = pytest.importorskip("openai")
    import typing

    from openai.types import completion_create_params as of_text
    from openai.types.chat import completion_create_params as of_chat

    assert openai
    for make, hint in (
        (chat, of_chat.CompletionCreateParamsNonStreaming),
        (text, of_text.CompletionCreateParamsNonStreaming),
    ):
        for name, entry in typing.get_type_hints(hint, include_extras=True).items():
            if name not in ("messages", "model", "prompt", "stream"):
                for value in examples(entry, name):
                    yield make, name, value


def test_every_value_of_openais_types_is_applied_inert_or_refused_by_its_field(tokenizer):
    """What decides is whether an error names the field; all others must be read to the end."""
    swept = {"taken": set(), "refused": set()}
    for make, name, value in fields_of_openais_types():
        fields = {name: value}
        if name == "stream_options":
            fields |= {"stream": True}
        if name in ("tool_choice", "parallel_tool_calls"):
            fields |= {"tools": [TOOL | {"function": TOOL["function"] | {"name": "text"}}]}
        if name == "top_logprobs":
            fields |= {"logprobs": True}
        try:
            made = make(**fields)
            made.sampling()
            made.form(tokenizer)
            if make is chat:
                made.tool_use()
                made.template_variables(tokenizer)
        except RequestError as error:
            swept["refused"].add(name)
            assert name in (error.param or "").split(".")[0], (name, value, str(error))  # noqa: PT017
        else:
            swept["taken"].add(name)
    assert swept["taken"] >= {"temperature", "seed", "prediction", "store", "tools", "tool_choice"}
    assert swept["refused"] >= {"audio", "functions", "web_search_options", "reasoning_effort"}
