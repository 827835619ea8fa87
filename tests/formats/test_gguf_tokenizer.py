"""Tokenizers in GGUF files of every kind: the ids are llama.cpp's."""

import unicodedata

import pytest
import tokenizers
from tests.oracle import llama_cpp_tokenizers as oracle

from ziggurat.formats import GgufFile
from ziggurat.formats.gguf_pre_tokenizers import PRE_TOKENIZERS
from ziggurat.formats.gguf_tokenizer import tokenizer_json

IDS = oracle.load()
TEXTS = oracle.texts()


def made(kind: str, directory) -> tokenizers.Tokenizer:
    path = directory / "tiny.gguf"
    oracle.write_model(path, kind)
    return tokenizers.Tokenizer.from_str(tokenizer_json(GgufFile(path).tokenizer()))


def compared(kind: str, text: str) -> bool:
    """Whether llama.cpp says what the models' own tokenizers do: it composes no accents where they
    do, and in WordPiece it takes U+2581 for a space, and few marks for accents."""
    if kind in PRE_TOKENIZERS and PRE_TOKENIZERS[kind].composed:
        return unicodedata.is_normalized("NFC", text)
    marks = any(unicodedata.category(character) in ("Mn", "Mc") for character in text)
    return kind != "bert" or not ("\u2581" in text or marks)


RULES = {id(rule): name for name, rule in reversed([*PRE_TOKENIZERS.items()])}
"""The first name of each rule."""
SLOW = pytest.param("t5", marks=pytest.mark.slow)  # gguf reads rules of Unicode byte by byte


@pytest.mark.parametrize("kind", ["llama", "llama-no-prefix", SLOW, "bert", *RULES.values()])
def test_ids_are_those_of_llama_cpp(kind, tmp_path):
    ours, count = made(kind, tmp_path), 0
    for text, ids in zip(TEXTS, IDS[kind], strict=True):
        if compared(kind, text):
            count += 1
            assert ours.encode(text).ids == ids, text
    assert count > len(TEXTS) / 3


def test_names_of_one_rule_give_the_same_ids_in_llama_cpp():
    for name, rule in PRE_TOKENIZERS.items():
        assert IDS[name] == IDS[RULES[id(rule)]], name


def test_a_text_comes_back(tmp_path):
    for kind in ("llama", "llama-no-prefix", "gpt-2", "falcon", "tekken"):
        ours = made(kind, tmp_path)
        for text in TEXTS:
            if "</s>" not in text:
                assert ours.decode(ours.encode(text).ids) == text.replace(
                    "\u2581", " " if "llama" in kind else "\u2581"
                )


def test_the_stored_ids_are_those_of_the_package(tmp_path):
    pytest.importorskip("xllamacpp")
    for kind in ("llama", "t5", "bert", "tekken"):
        assert oracle.measure(kind, tmp_path / f"{kind}.gguf") == IDS[kind]
