"""Streamed text equals decoded text, whatever ids come, and never shows half a character."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ziggurat.data.streaming import StreamDecoder

UNICODE = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def stream(tokenizer, ids, skip):
    decoder = StreamDecoder(tokenizer, skip_special_tokens=skip)
    return [*(decoder.push(number) for number in ids), decoder.finish()]


@pytest.mark.parametrize("name", ["bytes", "bpe", "byte_fallback", "word_piece"])
@settings(max_examples=150, deadline=None)
@given(data=st.data(), skip=st.booleans())
def test_any_ids_join_to_the_decoded_text(families, name, data, skip):
    tokenizer = families[name]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    pieces = stream(tokenizer, ids, skip)
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("name", ["bytes", "bpe", "byte_fallback"])
@settings(max_examples=100, deadline=None)
@given(text=UNICODE)
@example(text="你好 😀👩‍👩‍👧 é\ufffd")
def test_valid_text_streams_without_replacement_characters(families, name, text):
    tokenizer = families[name]
    ids = tokenizer.encode(text)
    pieces = stream(tokenizer, ids, False)
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=False)
    assert "".join(pieces).count("\ufffd") == text.count("\ufffd")


@pytest.mark.parametrize("name", ["bytes", "bpe", "byte_fallback"])
def test_text_comes_as_soon_as_it_is_whole(families, name):
    tokenizer = families[name]
    ids = tokenizer.encode("Hello world, hello a world.")
    decoder = StreamDecoder(tokenizer)
    seen = ""
    for number, token in enumerate(ids):
        seen += decoder.push(token)
        assert seen == tokenizer.decode(ids[: number + 1])
    assert decoder.finish() == ""


def test_half_a_character_waits_and_a_broken_one_is_replaced(families):
    first, second, third = "你".encode()
    byte = families["bytes"]
    assert stream(byte, [first, second, third], True) == ["", "", "你", ""]
    assert stream(byte, [first, second, 97], True) == ["", "", "\ufffda", ""]
    assert stream(byte, [first, second], True) == ["", "", "\ufffd"]


def test_a_run_of_fallback_bytes_is_decoded_as_a_whole(families):
    tokenizer = families["byte_fallback"]
    run = [3 + byte for byte in "你".encode()]
    letter = tokenizer.backend.token_to_id("a")
    assert stream(tokenizer, [*run, letter], True) == ["", "", "", "你a", ""]
    assert stream(tokenizer, [*run, run[0], letter], True)[4:] == ["\ufffd" * 4 + "a", ""]


def test_long_output_is_not_decoded_again_and_again(families, monkeypatch):
    tokenizer = families["byte_fallback"]
    lengths = []
    decode = tokenizer.decode

    def counting(ids, *, skip_special_tokens=True):
        lengths.append(len(ids))
        return decode(ids, skip_special_tokens=skip_special_tokens)

    monkeypatch.setattr(tokenizer, "decode", counting)
    decoder = StreamDecoder(tokenizer)
    for token in tokenizer.encode("hello world " * 200):
        decoder.push(token)
    assert max(lengths) < 10
