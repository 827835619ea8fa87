"""Tokenizers: round trips, special tokens, directories; parity with transformers."""

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from ziggurat.core import config
from ziggurat.core.errors import ConfigError, DataError
from ziggurat.core.protocols import Tokenizer
from ziggurat.data.huggingface import HuggingFaceTokenizer
from ziggurat.data.tokenizers import (
    ByteTokenizer,
    LoadTokenizer,
    TrainBpe,
    byte_level,
    tokenizer,
    train_bpe,
)
from ziggurat.formats.tokenizer_document import BYTE_CHARACTERS

UNICODE = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
SAMPLES = [
    "",
    "Hello world",
    " leading and trailing ",
    "don't stop, it's 12345 o'clock",
    "Grüezi 你好 😀👩‍👩‍👧",
    "a<s>b</s>c <|im_start|> d",
    "tabs\tand\r\nlines\n\n\n  indented",
    "é é \u00a0\u200b",
]


def test_protocol(bpe):
    protocol: type = Tokenizer
    assert isinstance(bpe, protocol)
    assert bpe.vocab_size == 700
    assert (bpe.backend.id_to_token(bpe.bos_id), bpe.eos_ids) == ("<s>", (0,))


@settings(max_examples=200, deadline=None)
@given(UNICODE)
def test_byte_level_round_trip(text):
    byte = byte_level({"eos_token": "\x00never\x00"})
    ids = byte.encode(text)
    assert ids == list(text.encode())
    assert byte.decode(ids) == text


@settings(max_examples=100, deadline=None)
@given(text=UNICODE)
def test_bpe_round_trip(bpe, text):
    assert bpe.decode(bpe.encode(text), skip_special_tokens=False) == text


def test_byte_table_is_that_of_the_library():
    assert sorted(BYTE_CHARACTERS) == sorted(pre_tokenizers.ByteLevel.alphabet())


def test_special_tokens_are_never_split_and_can_be_left_out(bpe):
    ids = bpe.encode("x<|im_start|>y</s>")
    assert bpe.backend.token_to_id("<|im_start|>") in ids
    assert bpe.decode(ids) == "xy"
    assert bpe.decode(ids, skip_special_tokens=False) == "x<|im_start|>y</s>"
    assert bpe.encode("x", add_special_tokens=True)[0] == bpe.bos_id
    assert bpe.encode("x") == bpe.encode("x", add_special_tokens=True)[1:]


def test_digits_are_cut_by_three(bpe):
    assert len(bpe.encode("1234567")) >= 3


def test_training_is_the_same_in_another_process(bpe):
    """Hash seeds and thread timing differ between processes."""
    program = (
        "from ziggurat.data import *\n"
        "docs = [d.text for d in read([TextFiles(path='{stdlib}/json', glob='*.py')])]\n"
        "names = {'eos_token': '</s>', 'bos_token': '<s>'}\n"
        "print(train_bpe(docs, 700, names, ['<|im_start|>', '<é x>']).digest)"
    )
    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == bpe.digest


def test_small_corpus_gives_fewer_ids_and_says_so(caplog):
    made = train_bpe(["aaaa"], 5000)
    assert made.vocab_size < 300
    assert "instead of 5000" in caplog.text


def test_training_reads_no_more_than_asked():
    read_so_far = []

    def documents():
        for number in range(10):
            read_so_far.append(number)
            yield "text " * 3

    tokenizer(TrainBpe(vocab_size=257, max_documents=3), documents())
    assert read_so_far == [0, 1, 2]


def test_training_on_nothing():
    with pytest.raises(DataError, match="no documents"):
        tokenizer(TrainBpe(vocab_size=300))


@pytest.mark.parametrize("kind", ["bytes", "bpe", "byte_fallback", "word_piece"])
def test_save_and_load_give_the_same(kind, make_tokenizer, tmp_path):
    made = make_tokenizer(kind)
    made.chat_templates |= {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    made.save(tmp_path)
    back = tokenizer(LoadTokenizer(path=str(tmp_path)))
    assert back.digest == made.digest
    assert (back.eos_ids, back.bos_id, back.vocab_size) == (
        made.eos_ids,
        made.bos_id,
        made.vocab_size,
    )
    assert back.chat_templates == made.chat_templates
    assert back.special_tokens == made.special_tokens
    for text in SAMPLES:
        for special in (False, True):
            ids = made.encode(text, add_special_tokens=special)
            assert back.encode(text, add_special_tokens=special) == ids
            assert back.decode(ids) == made.decode(ids)


def test_end_ids_come_from_generation_config(tmp_path, bpe):
    bpe.save(tmp_path)
    assert not (tmp_path / "generation_config.json").exists()
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 0]}')
    back = HuggingFaceTokenizer.load(tmp_path)
    assert back.eos_ids == (0, 5)
    back.save(tmp_path / "again")
    assert HuggingFaceTokenizer.load(tmp_path / "again").eos_ids == (0, 5)


def test_templates_choose_tools():
    made = byte_level()
    with pytest.raises(DataError, match="expected a default template"):
        made.apply_chat_template([])
    made.chat_templates |= {"default": "d{{ eos_token }}", "tool_use": "t{{ tools[0].name }}"}
    assert made.apply_chat_template([]) == "d<|endoftext|>"
    assert made.apply_chat_template([], [{"name": "f"}]) == "tf"


def test_load_errors(tmp_path):
    def message():
        with pytest.raises(DataError) as caught:
            HuggingFaceTokenizer.load(tmp_path / "x")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "found no such directory" in message()
    (tmp_path / "x").mkdir()
    assert "found no tokenizer file" in message()
    (tmp_path / "x" / "tokens.txt").write_text("")
    assert "found tokens.txt; expected a directory with tokenizer.json, tokenizer" in message()
    (tmp_path / "x" / "tokenizer.json").write_text("{")
    assert "expected a tokenizer" in message()
    byte_level().save(tmp_path / "x")
    (tmp_path / "x" / "tokenizer_config.json").write_text('{"added_tokens_decoder": {"a": {}}}')
    assert "found ValueError" in message()
    (tmp_path / "x" / "tokenizer_config.json").write_text("[]")
    assert "tokenizer_config.json: found list; expected a JSON object" in message()


def test_text_must_be_unicode():
    with pytest.raises(DataError, match="lone surrogate in text 1"):
        byte_level().encode_batch(["a", "\ud800"])


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("vocab_size = 100", "vocab_size: found 100, expected at least 257"),
        ("vocab_size = 300\nbos_token = '<|endoftext|>'", "expected distinct tokens"),
        ("vocab_size = 300\nspecial_tokens = ['']", "expected no empty token"),
        ("vocab_size = 300\nmin_frequency = -1", "min_frequency: found -1"),
    ],
)
def test_settings_are_checked(text, part):
    with pytest.raises(ConfigError) as caught:
        config.parse(TrainBpe, text)
    assert part in str(caught.value)


def test_byte_tokenizer_node():
    made = tokenizer(ByteTokenizer(bos_token="<s>", special_tokens=("<x>",)))
    assert made.encode("a<x>", add_special_tokens=True) == [257, 97, 258]


def rewrite(directory, **settings):
    file = directory / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


@pytest.mark.parity
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"add_bos_token": True, "add_eos_token": True},
        {"add_bos_token": False},
        {"add_eos_token": True},
        {"split_special_tokens": True},
        {"pad_token": "<pad>"},
        {"clean_up_tokenization_spaces": True},
        {"extra_special_tokens": ["<a>", "<b>"]},
        {"extra_special_tokens": {"image_token": "<a>"}, "audio_token": "<new>"},
        {
            "added_tokens_decoder": {
                "2000": {"content": "<new>", "special": False, "lstrip": True, "normalized": False}
            }
        },
        {"eos_token": {"__type": "AddedToken", "content": "</s>", "special": True}},
    ],
    ids=lambda settings: "-".join(settings) or "plain",
)
@pytest.mark.parametrize("kind", ["bytes", "bpe", "byte_fallback", "word_piece"])
def test_equal_to_transformers(kind, settings, make_tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    make_tokenizer(kind).save(tmp_path)
    rewrite(tmp_path, **settings)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = HuggingFaceTokenizer.load(tmp_path)
    assert len(theirs) == ours.vocab_size
    assert (theirs.bos_token_id, theirs.eos_token_id) == (ours.bos_id, (*ours.eos_ids, None)[0])
    assert theirs.special_tokens_map == ours.special_tokens
    for text in [*SAMPLES, "x <new> y<a><pad>b", "do n't a. , !"]:
        for special in (False, True):
            ids = theirs.encode(text, add_special_tokens=special)
            assert ours.encode(text, add_special_tokens=special) == ids
            assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
            assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids)


@pytest.mark.parity
def test_a_directory_of_transformers_loads_and_saves(tmp_path, bpe):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe.backend, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    theirs.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    theirs.save_pretrained(tmp_path / "a")
    ours = HuggingFaceTokenizer.load(tmp_path / "a")
    ours.save(tmp_path / "b")
    back = transformers.AutoTokenizer.from_pretrained(tmp_path / "b")
    assert back.chat_template == theirs.chat_template == ours.chat_template
    assert back.special_tokens_map == theirs.special_tokens_map
    chat = [{"role": "user", "content": "hi"}]
    assert ours.apply_chat_template(chat) == theirs.apply_chat_template(
        chat, tokenize=False, add_generation_prompt=True
    )
    for text in SAMPLES:
        assert back.encode(text) == theirs.encode(text)
        assert back.encode(text) == ours.encode(text, add_special_tokens=True)
