"""Every field that OpenAI's, TRL's and Axolotl's formats know moves the result or is refused."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ziggurat.core.errors import DataError
from ziggurat.data import (
    DataConfig,
    HuggingFaceTokenizer,
    JsonLines,
    Parquet,
    build_answers,
    byte_level,
)
from ziggurat.data.encode import DocumentEncoder
from ziggurat.data.sources import fields, read

TEMPLATE = (
    "{% if tools %}[tools {{ tools | tojson }}]{% endif %}{{ mood }}"
    "{% for m in messages %}<{{ m.role }}{{ ' ' + m.name if m.name }}>"
    "{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}!{{ c.function.arguments | tojson }}{% endfor %};"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
CALL = [{"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}]
TOOLS = [{"type": "function", "function": {"name": "f"}}]
ASKED, SAID = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}


def tokenizer(template=TEMPLATE):
    settings = {"eos_token": "<|end|>"}
    templates = {"default": template}
    return HuggingFaceTokenizer(byte_level(settings).backend, settings, chat_templates=templates)


def results(tmp_path, record, content="messages", made=None, template=TEMPLATE, **settings):
    """Text and learned text of a record's documents."""
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(record) + "\n")
    encoder = DocumentEncoder(tokenizer(template))
    found = []
    for document in read([made or JsonLines(path=str(path), content=content, **settings)]):
        rendered = encoder.render(document)
        assert rendered is not None
        learned = [rendered.text[slice(*span)] for span in rendered.learned or ()]
        found.append((rendered.text, learned))
    return found


def talk(**more):
    return {"messages": [ASKED, SAID], **more}


PLAIN = [("<user>Q;<assistant>A;", ["A;"])]
RECORDS = {
    "messages": ({"messages": [ASKED, {"role": "assistant", "content": "B"}]}, "<assistant>B;"),
    "tools": (talk(tools=TOOLS), '[tools [{"type": "function"'),
    "chat_template_kwargs": (talk(chat_template_kwargs={"mood": "glad"}), "glad<user>"),
}
"""Records with an honoured field, and what of their text is due to it."""
READ_ELSEWHERE = {"prompt", "completion", "chosen", "rejected", "label", "margin"}
"""Honoured fields that no conversation has; tests below."""
VALUES = {"labels": [1, -100], "input_ids": [1]}
SAMPLES = {
    "weight": [0, "<assistant>A;", []],
    "train": [False, "<assistant>A;", []],
    "training": [False, "<assistant>A;", []],
    "content": ["B", "<assistant>B;", ["B;"]],
    "tool_calls": [CALL, '<assistant>A!{"a": 1};', ['A!{"a": 1};']],
    "reasoning_content": ["why", "<assistant>(why)A;", ["(why)A;"]],
    "thinking": ["why", "<assistant>(why)A;", ["(why)A;"]],
    "reasoning": ["why", "<assistant>(why)A;", ["(why)A;"]],
}
"""By message field: a value, the text it gives, and what is learned of it."""


@pytest.mark.parametrize("known", fields.RECORD, ids=lambda field: field.name)
def test_fields_of_records(known, tmp_path):
    name = known.name
    if known.use == "refused":
        record = talk(**{name: VALUES.get(name, ["value"])})
        content = "messages"
        if name in fields.OF_PROMPTS:
            record |= {"prompt": [ASKED], "completion": [SAID]}
            content = "prompt_completion"
        with pytest.raises(DataError, match=rf"a\.jsonl line 1: found '{name}', a field of"):
            results(tmp_path, record, content)
        for empty in (None, [], ""):  # as tables fill what a record lacks
            assert results(tmp_path, record | {name: empty}, content) == PLAIN
    elif known.use == "inert":
        assert results(tmp_path, talk(**{name: False})) == PLAIN
    elif name not in READ_ELSEWHERE:
        record, part = RECORDS[name]
        ((text, _),) = results(tmp_path, record)
        assert part in text
        assert results(tmp_path, record) != PLAIN


@pytest.mark.parametrize("known", fields.MESSAGE, ids=lambda field: field.name)
def test_fields_of_messages(known, tmp_path):
    name = known.name
    first = {"role": "assistant", "content": "first"}  # so that something is learned always
    if known.use == "refused":
        record = {"messages": [ASKED, SAID | {name: ["value"]}]}
        with pytest.raises(DataError, match=rf"message 1: '{name}', a field of"):
            results(tmp_path, record)
        record = {"messages": [ASKED, SAID | {name: None}]}
        assert results(tmp_path, record) == PLAIN
    elif known.use == "inert":  # the template's own affair
        record = {"messages": [ASKED | {name: "x"}, SAID]}
        ((_, learned),) = results(tmp_path, record)
        assert learned == ["A;"]
    elif name != "role":
        value, text, learned = SAMPLES[name]
        record = {"messages": [first, ASKED, SAID | {name: value}]}
        assert results(tmp_path, record) == [
            (f"<assistant>first;<user>Q;{text}", ["first;", *learned])
        ]


def test_what_means_nothing_is_carried_along(tmp_path):
    more = {"id": 3, "source": "web", "metadata": {"a": []}, "score": 0.5, "labels": ["maths"]}
    messages = [ASKED | {"id": "m1"}, SAID | {"index": 0, "cache_control": {}}]
    assert results(tmp_path, {"messages": messages, **more}) == PLAIN
    assert results(tmp_path, talk(input="a conversation about it")) == PLAIN


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (SAID | {"weight": 0.5}, "'weight' of 0.5; expected 0 or 1"),
        (SAID | {"weight": "0"}, "'weight' of '0'"),
        (SAID | {"weight": 0, "train": True}, "masks that agree"),
        (ASKED | {"train": True}, "'train' on a message of role 'user'"),
        (ASKED | {"weight": 1}, "'weight' on a message of role 'user'"),
        ({"role": "gpt", "content": "x"}, "role 'gpt'; expected role 'assistant'"),
        ({"role": "human", "content": "x"}, "role 'human'; expected role 'user'"),
        (ASKED | {"content": [{"type": "image_url"}]}, "a part of type 'image_url'"),
        (ASKED | {"content": ["x"]}, "a part of type 'str'"),
    ],
)
def test_messages_that_are_refused(message, said, tmp_path):
    with pytest.raises(DataError, match=rf"message 2.*{said}"):
        results(tmp_path, {"messages": [ASKED, SAID, message]})


def test_masks_of_messages_that_are_not_learned_anyway(tmp_path):
    record = {"messages": [ASKED | {"weight": 0, "train": False}, SAID | {"weight": 1}]}
    assert results(tmp_path, record) == PLAIN


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (talk(tools=TOOLS), "tools: found a chat template that reads no tools"),
        (
            talk(chat_template_kwargs={"mood": 1}),
            r"chat_template_kwargs\.mood: found a chat template",
        ),
        (talk(chat_template_kwargs={"messages": []}), r"chat_template_kwargs\.messages"),
        ({"messages": [ASKED, SAID | {"tool_calls": CALL}]}, "message 1: tool_calls"),
        ({"messages": [ASKED, SAID | {"reasoning": "x"}]}, "message 1: reasoning"),
    ],
)
def test_a_template_without_a_place_for_a_field_is_no_excuse(record, said, tmp_path):
    with pytest.raises(DataError, match=said):
        results(tmp_path, record, template="{% for m in messages %}{{ m.content }};{% endfor %}")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"tools": "no JSON"}, "'tools'"),
        ({"tools": {"name": "f"}}, "'tools': dict; expected a list"),
        ({"chat_template_kwargs": [1]}, "'chat_template_kwargs': list"),
        (
            {"prompt": "Q", "completion": "A", "tools": TOOLS},
            "'tools' beside a prompt that is a text",
        ),
    ],
)
def test_values_that_are_refused(more, said, tmp_path):
    content = "prompt_completion" if "prompt" in more else "messages"
    with pytest.raises(DataError, match=said):
        results(tmp_path, talk(**more), content)


def test_a_text_has_no_other_fields(tmp_path):
    record = {"text": "plain", "input_ids": [1], "system": "S", "tools": TOOLS}
    assert results(tmp_path, record, "text") == [("plain", [])]


def test_prompts_and_completions_may_be_messages(tmp_path):
    record = {"prompt": [SAID, ASKED], "completion": [SAID], "tools": json.dumps(TOOLS)}
    ((text, learned),) = results(tmp_path, record, "prompt_completion")
    assert text.startswith("[tools [")
    assert learned == ["A;"]
    for prompt, completion in (("Q", [SAID]), ([ASKED], "A"), (None, "A")):
        record = {"prompt": prompt, "completion": completion}
        with pytest.raises(DataError, match="both strings, or both lists"):
            results(tmp_path, record, "prompt_completion")


def test_tables_have_the_same_fields(tmp_path):
    """Columns that other rows fill are null here, and structs have their keys."""
    rows = [
        {**talk(tools=TOOLS), "images": None},
        {"messages": [ASKED | {"weight": 0}, SAID | {"tool_calls": CALL}], "tools": None},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    source = Parquet(path=str(tmp_path / "a.parquet"), content="messages")
    lines = [results(tmp_path, {k: v for k, v in row.items() if v}) for row in rows]
    assert results(tmp_path, {}, made=source) == [found for (found,) in lines]
    rows[1]["system"] = "S"
    pq.write_table(
        pa.Table.from_pylist(
            rows, pa.schema([*pa.Table.from_pylist(rows).schema, ("system", pa.string())])
        ),
        tmp_path / "a.parquet",
    )
    with pytest.raises(DataError, match=r"a\.parquet row 2: found 'system', a field"):
        results(tmp_path, {}, made=source)


def pairs(tmp_path, *margins):
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"{n}: ", "chosen": "x", "rejected": "y"} for n in range(len(margins))]
    rows = [r if m is None else r | {"margin": m} for r, m in zip(rows, margins)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = JsonLines(path=str(path), content="preference")
    config = DataConfig(sources=(source,), sequence_length=8, batch_size=3, shuffle=False)
    return build_answers(config, byte_level(), 0, tmp_path / "cache", "preference")


def test_margins_reach_the_batch(tmp_path):
    data = pairs(tmp_path, 1.5, 0, -2.0)
    assert data.has_margins
    assert data.batch(0)["margin"].tolist() == [[1.5], [0.0], [-2.0]]
    assert data.batch(0, slice(1, 3))["margin"].tolist() == [[0.0], [-2.0]]
    data.stores[0].verify()
    none = pairs(tmp_path, None, None, None)
    assert not none.has_margins
    assert none.batch(0)["margin"].tolist() == [[0.0]] * 3
    assert data.stores[0].content != none.stores[0].content


@pytest.mark.parametrize(
    ("margins", "said"),
    [
        ((1.0, None, 2.0), "record 2: found no margin, as 1 of 3"),
        ((float("nan"),), "'margin': nan"),
        (("1",), "'margin': '1'"),
        ((True,), "'margin': True"),
    ],
)
def test_margins_that_are_refused(margins, said, tmp_path):
    with pytest.raises(DataError, match=said):
        pairs(tmp_path, *margins)
