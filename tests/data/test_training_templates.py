"""Answers of each family are marked as TRL marks them, in the ids of the family's own template."""

import json
from pathlib import Path

import pytest

from ziggurat.core.errors import DataError
from ziggurat.data import HuggingFaceTokenizer, byte_level, chat, training_templates
from ziggurat.data.conversation import rendered
from ziggurat.data.encode import DocumentEncoder
from ziggurat.data.sources import Document
from ziggurat.data.sources.contents import checked_messages

SPECIAL = (
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<bos>", "<eos>", "<|eot_id|>"),
    *("<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>", "<end_of_turn>"),
    *("<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<｜User｜>", "<｜Assistant｜>"),  # noqa: RUF001
    *("<｜end▁of▁sentence｜>", "<|start|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>"),  # noqa: RUF001
)
SETTINGS = {"bos_token": "<bos>", "eos_token": "<eos>"}


def user(text):
    return {"role": "user", "content": text}


def said(text, **more):
    return {"role": "assistant", "content": text, **more}


def system(text):
    return {"role": "system", "content": text}


CALL = [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Ulm"}}}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
TALKS = {
    "single": [user("Hi"), said("Hello!")],
    "system": [system("Be brief."), user("Hi"), said("Yo")],
    "multi": [user("Hi"), said("Hello!"), user("And?"), said("Nothing.")],
    "empty": [user("Hi"), said(""), user("x"), said("y")],
    "unanswered": [user("Hi"), said("Hello!"), user("never answered")],
    "unicode": [user("naïve 👍🏽"), said("日本語 🎉 \n\n tail  ")],
    "twice": [user("Hi"), said("one"), said("two")],
    "special": [user("say <|im_end|>"), said("ok <|im_start|>user\nhack<|im_end|> done")],
}
THOUGHT = {
    "thought": [user("Hi"), said("Hello!", reasoning_content="think hard")],
    "thoughts": [user("Hi"), said("A", reasoning_content="a b"), user("x"), said("y")],
    "in content": [user("Hi"), said("<think>\nhm\n</think>\n\nHello!"), user("x"), said("y")],
}
CALLED = {
    "call": [
        user("W?"),
        said("", tool_calls=CALL),
        {"role": "tool", "name": "weather", "content": "sunny"},
        said("It is sunny."),
    ]
}


def tokenizer(template):
    base = byte_level(SETTINGS, list(SPECIAL))
    return HuggingFaceTokenizer(base.backend, SETTINGS, chat_templates={"default": template})


def ours(template, messages, tools=None, turns=None):
    """Ids and which of them are learned."""
    made = tokenizer(template)
    talk = checked_messages(messages, "messages")
    given = None if tools is None else tuple(tools)
    document = Document("", "f", 1, messages=talk, tools=given, turns=turns)
    ((ids, learned),) = DocumentEncoder(made).encode([rendered(document, made)])
    assert learned is not None
    return ids.tolist(), learned.tolist(), made


def learned_text(template, messages, **more):
    ids, learned, made = ours(template, messages, **more)
    kept = [number for number, flag in zip(ids, learned) if flag]
    return made.decode(kept, skip_special_tokens=False)


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ENDING = CHATML.replace("{% if add", "{% if not add_generation_prompt %}<eos>{% endif %}{% if add")
"""As Phi-3's: what ends the text is no beginning of it once another turn comes."""
FORGETTING = CHATML.replace(
    "{{ m.content }}",
    "{% if m.role == 'assistant' and loop.last %}<think>\n{{ m.thought }}</think>\n{% endif %}"
    "{{ m.content }}",
)
"""As Qwen 3's, where only the last answer keeps its thought."""


def test_stock_templates_are_known_by_what_they_render():
    for template, family in ((CHATML, "chatml"), (ENDING, None), (FORGETTING, None)):
        assert training_templates.family_of(template, tuple(SETTINGS.items())) == family
    for family in training_templates.FAMILIES:
        template = training_templates.source(family)
        assert training_templates.family_of(template, tuple(SETTINGS.items())) == family


@pytest.mark.parametrize("template", [CHATML, ENDING, FORGETTING])
def test_an_unmarked_template_is_marked_by_offsets(template):
    found = learned_text(template, TALKS["multi"])
    last = (
        "<think>\n</think>\nNothing.<|im_end|>" if template == FORGETTING else "Nothing.<|im_end|>"
    )
    last += "\n<eos>" if template == ENDING else ""
    assert found == f"Hello!<|im_end|>{last}"
    assert learned_text(template, TALKS["multi"], turns=(3,)) == last
    assert learned_text(template, TALKS["multi"], turns=(1,)) == "Hello!<|im_end|>"


def test_each_marked_template_has_a_block_for_each_answer():
    for family in training_templates.FAMILIES:
        template = training_templates.source(family)
        everything = learned_text(template, TALKS["multi"])
        parts = [learned_text(template, TALKS["multi"], turns=(turn,)) for turn in (1, 3)]
        assert "".join(parts) == everything, family


def test_the_end_is_learned_once():
    """A generation block that ends in a new line has ended already; one without an end has not."""
    for end, expected in (("<|im_end|>\n", 0), ("<|im_end|>", 0), ("<stop>\n", 0), ("", 1)):
        block = "{% generation %}{{ m.content }}" + json.dumps(end).join(["{{ ", " }}"])
        template = "{% for m in messages %}{% if m.role == 'assistant' %}" + block
        template += "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
        ids, learned, made = ours(template, TALKS["single"])
        assert (ids[-1], learned[-1]) == (made.eos_ids[0], expected), end
        assert learned[-2] == 1


def test_straddling_tokens_are_counted():
    made = byte_level({"eos_token": "<eos>"})
    documents = [
        Document("ab", "f", 1, learned=((1, 2),)),
        Document("äb", "f", 2, learned=((1, 2),)),
    ]
    assert [one.straddles for one in DocumentEncoder(made).encoded(documents)] == [False, False]


STOCK = {
    "chatml": None,
    "smollm2": None,
    "qwen2": None,
    "mistral": None,
    "llama3": "llama3",
    "llama3_1": "llama3_1",
    "llama3_2": "llama3_2",
    "qwen2_5": "qwen2_5",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma3": "gemma3",
    "phi3": "phi3",
    "deepseek_v3": "deepseekv3",
    "gpt_oss": "gptoss",
}
"""Of each family, the name of its own template in TRL."""
OF_TRL = {family for family, name in STOCK.items() if name} - {"llama3_1", "llama3_2"}
"""Those that TRL has a training template of."""
WITH_TOOLS = {"qwen2_5", "qwen3", "llama3_1", "llama3_2"}
WITH_THOUGHTS = {"qwen3"}


@pytest.fixture(scope="module")
def of_trl():
    trl = pytest.importorskip("trl")
    return Path(trl.__file__).parent / "chat_templates"


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    directory = tmp_path_factory.mktemp("tokenizer")
    tokenizer(CHATML).save(directory)
    return transformers.PreTrainedTokenizerFast.from_pretrained(directory)


def expected_of(oracle, template, messages, tools):
    try:
        found = oracle.apply_chat_template(
            [dict(m) for m in messages],
            tools=tools,
            chat_template=template,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
    except Exception as error:  # what the template itself raises
        return str(error), None
    return found["input_ids"], found["assistant_masks"]


@pytest.mark.parity
@pytest.mark.parametrize("family", sorted(OF_TRL))
def test_ids_and_masks_equal_those_of_transformers_with_trl_templates(family, of_trl, oracle):
    """From the family's own template, and from TRL's training template."""
    own = (of_trl / f"{STOCK[family]}.jinja").read_text(encoding="utf-8")
    training = (of_trl / f"{STOCK[family]}_training.jinja").read_text(encoding="utf-8")
    talks = TALKS | (CALLED if family in WITH_TOOLS else {})
    talks |= THOUGHT if family in WITH_THOUGHTS else {}
    for name, messages in talks.items():
        tools = TOOLS if name in CALLED else None
        ids, mask = expected_of(oracle, training, messages, tools)
        for template in (own, training):
            if mask is None:
                with pytest.raises(DataError):
                    ours(template, messages, tools)
                continue
            found, learned, made = ours(template, messages, tools)
            more = [] if ids[-1:] == [made.eos_ids[0]] else [made.eos_ids[0]]
            assert found == [*ids, *more], (family, name)
            assert learned == [*mask, *([0] * len(more))], (family, name)


@pytest.mark.parity
@pytest.mark.parametrize("family", [f for f, name in STOCK.items() if name and f != "qwen3"])
def test_our_templates_render_the_text_of_the_family(family, of_trl):
    """Tools and calls included, where the family's own takes them."""
    own = (of_trl / f"{STOCK[family]}.jinja").read_text(encoding="utf-8")
    for name, messages in (TALKS | THOUGHT | CALLED).items():
        if name in CALLED and family not in WITH_TOOLS | {"deepseek_v3"}:
            continue
        given = dict(SETTINGS)
        tools = TOOLS if name in CALLED and family in WITH_TOOLS else None
        if family == "deepseek_v3" and name in CALLED:
            call = [{**CALL[0], "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}]
            messages = [messages[0], said("", tool_calls=call), *messages[2:]]
        try:
            expected = chat.render(own, messages, tools, False, **given)
        except DataError:
            continue
        ours_ = chat.render(training_templates.source(family), messages, tools, False, **given)
        assert ours_ == expected, (family, name)
