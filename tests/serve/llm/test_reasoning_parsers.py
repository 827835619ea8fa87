"""Reasoning taken out of answers: in pieces of any size, by the prompt's end, by the template."""

import itertools

import pytest
import tokenizers

from ziggurat.core.errors import ConfigError
from ziggurat.data import HuggingFaceTokenizer
from ziggurat.data.tokenizers import byte_level
from ziggurat.serve.llm.answer_reader import AnswerReader
from ziggurat.serve.llm.policy import RequestPolicy
from ziggurat.serve.llm.reasoning_parsers import (
    REASONING_PARSERS,
    ReasoningDelta,
    reasoning_parser_for,
)
from ziggurat.serve.llm.tool_parsers import TOOL_CALL_PARSERS, CallDelta

QWEN3, R1, SEED = (REASONING_PARSERS[name] for name in ("qwen3", "deepseek_r1", "seed_oss"))

CASES = [
    # opened, text, reasoning, answer
    (None, "<think>\nTwo.\n</think>\n\nFour.\n", "Two.", "Four.\n"),
    (None, "\n<think>a <b </thin k></think>c</think>", "a <b </thin k>", "c</think>"),
    (None, "Four. <think>x</think>", "", "Four. <think>x</think>"),
    (None, "<thinking is hard", "", "<thinking is hard"),
    (None, " <th", "", " <th"),
    (None, "<think>cut </th", "cut </th", ""),
    (None, "<think></think>Four", "", "Four"),
    (None, "<think>\n\n</think>\n", "", ""),
    (None, "", "", ""),
    (True, "Two.\n</think>\nFour", "Two.", "Four"),
    (True, "<think>Two.</think>Four", "Two.", "Four"),
    (True, "Two, and <b> no end ", "Two, and <b> no end", ""),
    (False, " Four</think>", "", " Four</think>"),
]


def read(stream, pieces):
    """Reasoning and text of an answer in pieces."""
    found = {ReasoningDelta: ""}
    deltas = [delta for piece in pieces for delta in stream.push(piece)] + stream.finish()
    names = [type(delta) for delta in deltas]
    assert names == sorted(names, key=lambda kind: kind is not ReasoningDelta)
    for delta in deltas:
        assert delta.text
        found[type(delta)] = found.get(type(delta), "") + delta.text
    return found.pop(ReasoningDelta), "".join(found.values())


@pytest.mark.parametrize(("opened", "text", "reasoning", "answer"), CASES)
def test_what_is_reasoning(opened, text, reasoning, answer):
    assert read(QWEN3.stream(opened), [text]) == (reasoning, answer)
    assert read(QWEN3.stream(opened), list(text)) == (reasoning, answer)
    for a, b in itertools.combinations(range(len(text) + 1), 2):
        pieces = [text[:a], text[a:b], text[b:]]
        assert read(QWEN3.stream(opened), pieces) == (reasoning, answer)


def test_reasoning_is_let_out_as_it_comes():
    stream = QWEN3.stream(None)
    deltas = [delta for letter in "<think>abc</x</think>" for delta in stream.push(letter)]
    assert [delta.text for delta in deltas] == ["a", "b", "c", "</x"]


def test_the_prompt_tells_whether_reasoning_has_begun():
    tokenizer = byte_level()
    for text, opened in [
        ("hi<assistant><think>\n", True),
        ("<think>\n\n</think>\n\n", False),
        ("<assistant>", None),
    ]:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert QWEN3.opened(tokenizer, ids) is opened
        assert R1.opened(tokenizer, ids) is (True if opened is None else opened)


def test_the_template_chooses_the_parser():
    tokenizer = byte_level()
    assert reasoning_parser_for(tokenizer) is None
    for template, parser in [
        ("{{ messages }}", None),
        ("{% if reasoning %}<think>{{ reasoning }}</think>{% endif %}", QWEN3),
        ("{{ content.split('</think>')[-1] }}", R1),
        ("<seed:think></seed:think>", SEED),
    ]:
        tokenizer.chat_templates["default"] = template
        assert reasoning_parser_for(tokenizer) is parser
        assert reasoning_parser_for(tokenizer, "none") is None
        assert reasoning_parser_for(tokenizer, "deepseek_r1") is R1


def test_a_parser_that_cannot_be_used_is_refused():
    with pytest.raises(ConfigError, match=r"reasoning parser: found 'qwen'.*did you mean qwen3"):
        RequestPolicy(reasoning_parser="qwen")
    tokenizer = byte_level()
    tag = tokenizers.AddedToken("</think>", special=True, normalized=False)
    tokenizer.backend.add_tokens([tag])
    hidden = HuggingFaceTokenizer(tokenizer.backend, {"eos_token": "<|endoftext|>"})
    hidden.chat_templates["default"] = "<think></think>"
    assert reasoning_parser_for(hidden) is None
    with pytest.raises(ConfigError, match="special token </think>"):
        reasoning_parser_for(hidden, "qwen3")


def test_calls_begin_after_the_reasoning():
    call = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    reader = AnswerReader(TOOL_CALL_PARSERS["hermes"].stream(), QWEN3.stream(None))
    deltas = [d for letter in f"<think>{call}</think>\n" for d in reader.read(letter, ended=False)]
    assert "".join(delta.text for delta in deltas) == call
    assert not reader.called
    assert reader.read(call, ended=True) == [CallDelta(0, "f", ""), CallDelta(0, None, "{}")]
    assert reader.called
