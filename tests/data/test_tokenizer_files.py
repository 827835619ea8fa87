"""Tokenizers without tokenizer.json: the ids of sentencepiece, tiktoken and transformers."""

import base64
import json
import unicodedata

import pytest
from tests.oracle import tokenizer_files as oracle

from ziggurat.core.errors import CheckpointError, DataError
from ziggurat.data.huggingface import HuggingFaceTokenizer
from ziggurat.formats.sentencepiece_model import BYTE, CONTROL, read_sentencepiece

FILES, IDS = oracle.load()
TEXTS = oracle.texts()
SPECIALS = {"<|begin_of_text|>": 901, "<|end_of_text|>": 902, "<|eot_id|>": 904}
LLAMA_3 = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<|begin_of_text|>",
    "eos_token": "<|end_of_text|>",
    "added_tokens_decoder": {
        str(number): {"content": token, "special": True} for token, number in SPECIALS.items()
    },
}


def loaded(directory, name, content, **settings) -> HuggingFaceTokenizer:
    directory.mkdir(exist_ok=True)
    (directory / name).write_bytes(content)
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return HuggingFaceTokenizer.load(directory)


def tekken(**changes) -> bytes:
    """Mistral's file for the stored ranks."""
    lines = [line.split() for line in FILES["ranks"].splitlines()]
    specials = ("<unk>", "<s>", "</s>", "[INST]")
    content = {
        "config": {
            "pattern": oracle.PATTERNS["tekken"],
            "default_vocab_size": len(lines) + 10,
            "default_num_special_tokens": 10,
            "version": "v3",
        },
        "vocab": [
            {"rank": int(rank), "token_bytes": token.decode(), "token_str": None}
            for token, rank in [*lines, (base64.b64encode(b"never a token"), len(lines))]
        ],
        "special_tokens": [
            {"rank": n, "token_str": token, "is_control": True} for n, token in enumerate(specials)
        ],
    }
    return json.dumps(content | changes).encode()


class TestSentencePiece:
    @pytest.mark.parametrize("name", oracle.MODELS)
    def test_ids_are_those_of_sentencepiece(self, name, tmp_path):
        made = loaded(tmp_path, "tokenizer.model", FILES[name])
        for text, ids in zip(TEXTS, IDS[name], strict=True):
            assert made.encode(text) == ids, text
        assert made.encode("a", add_special_tokens=True) == [made.bos_id, *made.encode("a")]
        made.save(tmp_path / "saved")
        again = HuggingFaceTokenizer.load(tmp_path / "saved")
        assert again.encode_batch(TEXTS) == IDS[name]
        assert (again.bos_id, again.eos_ids) == (made.bos_id, made.eos_ids)

    @pytest.mark.parametrize("name", ["llama", "gemma", "unigram_bytes"])
    def test_a_text_comes_back_whole(self, name, tmp_path):
        made = loaded(tmp_path, "tokenizer.model", FILES[name])
        for text in TEXTS:
            assert made.decode(made.encode(text)) == text.replace("▁", " ")

    def test_pieces_of_all_types(self, tmp_path):
        """Control and user-defined pieces in a text are single ids; those of bytes are not."""
        made = loaded(tmp_path, "tokenizer.model", FILES["llama"])
        model = read_sentencepiece(tmp_path / "tokenizer.model")
        control, user, byte = (model.pieces.index(one) for one in ("<ctl>", "<x>", "<0x41>"))
        assert [model.types[n] for n in (control, byte)] == [CONTROL, BYTE]
        ids = made.encode("a<ctl>a<x>")
        assert (ids[-1], ids.count(control)) == (user, 1)
        assert made.decode(ids) == "aa<x>"
        assert byte not in made.encode("<0x41>")
        assert made.decode(made.encode("<0x41>")) == "<0x41>"
        assert [made.special_tokens[f"{r}_token"] for r in ("bos", "eos", "unk")] == [
            *("<s>", "</s>", "<unk>")
        ]

    def test_settings_beside_the_file_count(self, tmp_path):
        def ids(text="a</s>a", **settings):
            made = loaded(tmp_path, "tokenizer.model", FILES["llama"], **settings)
            return made.backend.encode(text, add_special_tokens=True).tokens

        assert ids() == ["<s>", "▁a", "</s>", "a"]
        assert ids(legacy=True) == ["<s>", "▁a", "</s>", "▁a"]
        assert ids(add_prefix_space=False) == ["<s>", "a", "</s>", "a"]
        assert ids(add_bos_token=False, add_eos_token=True) == ["▁a", "</s>", "a", "</s>"]
        assert ids(bos_token="<ctl>")[0] == "<ctl>"
        assert ids("a", tokenizer_class="T5Tokenizer") == ["▁a", "</s>"]
        later = {"702": {"content": "<|end|>", "special": True, "rstrip": True}}
        made = loaded(tmp_path, "tokenizer.model", FILES["llama"], added_tokens_decoder=later)
        assert made.encode("<|end|>  a") == [702, *made.encode("</s>a")[1:]]
        (tmp_path / "added_tokens.json").write_text('{"<tool>": 700}')
        assert loaded(tmp_path, "tokenizer.model", FILES["llama"]).encode("<tool>") == [700]

    def test_a_tab_that_is_a_byte_starts_merges(self, tmp_path):
        """As in Gemma: two tabs are a piece, one is a byte; sentencepiece gives the same ids."""
        pieces = [("<unk>", 2), ("<s>", 3), ("</s>", 3), *((f"<0x{n:02X}>", 6) for n in range(256))]
        pieces += [("\t\t", 1), ("a", 1), ("▁", 1)]
        written = [(piece.encode(), kind) for piece, kind in pieces]
        sized = ((len(piece) + 4, len(piece), piece, kind) for piece, kind in written)
        content = b"".join(b"\x0a%c\x0a%c%b\x18%c" % one for one in sized)
        content += b"\x12\x05\x18\x02\x98\x02\x01" + b"\x1a\x04\x18\x00\x20\x00"
        made = loaded(tmp_path, "tokenizer.model", content)
        assert made.encode("\t\t\ta") == [259, 12, 260]
        assert made.decode([259, 12, 260, 12]) == "\t\t\ta\t"
        made.save(tmp_path)
        assert HuggingFaceTokenizer.load(tmp_path).encode("\t\t\ta") == [259, 12, 260]

    def test_other_models_are_refused(self, tmp_path):
        def message(content, **settings):
            with pytest.raises((DataError, CheckpointError)) as caught:
                loaded(tmp_path, "tokenizer.model", content, **settings)
            assert "\n" not in str(caught.value)
            return str(caught.value)

        whole = FILES["llama"]
        assert "XLMRobertaTokenizer, which has other ids" in message(
            whole, tokenizer_class="XLMRobertaTokenizer"
        )
        assert "found a damaged file, or another kind" in message(b"")
        assert "found a damaged file, or another kind" in message(b'{"a": 1}')
        for keep in range(1, len(whole), 499):
            assert str(tmp_path) in message(whole[:keep])
        word = b"\x12\x02\x18\x03"  # the trainer's settings again, with model_type = WORD
        assert "found model_type word" in message(whole + word)


class TestRankedTokens:
    def test_a_tiktoken_file_of_llama_3(self, tmp_path):
        made = loaded(tmp_path, "tokenizer.model", FILES["ranks"], **LLAMA_3)
        assert made.encode_batch(TEXTS) == IDS["llama_3"]
        for text in TEXTS:
            assert made.decode(made.encode(text)) == text
        assert made.encode("a<|eot_id|>", add_special_tokens=True)[::2] == [901, 904]
        assert (made.bos_id, made.eos_ids, made.vocab_size) == (901, (902,), 905)

    def test_a_tiktoken_file_of_qwen(self, tmp_path):
        made = loaded(tmp_path, "qwen.tiktoken", FILES["ranks"], tokenizer_class="QWenTokenizer")
        for text, ids in zip(TEXTS, IDS["qwen"], strict=True):
            if unicodedata.is_normalized("NFC", text):
                assert made.encode(text) == ids, text
        assert made.encode("<|im_end|><|extra_0|>") == [902, 903]
        assert made.decode(made.encode("e\u0301")) == "é"

    def test_tekken(self, tmp_path):
        made = loaded(tmp_path, "tekken.json", tekken())
        shifted = [[number + 10 for number in ids] for ids in IDS["tekken"]]
        assert made.encode_batch(TEXTS) == shifted
        assert made.encode("[INST]<SPECIAL_7>", add_special_tokens=True) == [1, 3, 7]
        assert (made.bos_id, made.eos_ids) == (1, (2,))

    @pytest.mark.parity
    def test_tekken_as_in_transformers(self, tmp_path):
        module = pytest.importorskip("transformers.integrations.mistral.tokenizer")
        made = loaded(tmp_path, "tekken.json", tekken())
        theirs = module.MistralConverter(str(tmp_path / "tekken.json")).converted()
        for text in [*TEXTS, "[INST]a</s>"]:
            assert made.encode(text) == theirs.encode(text).ids

    @pytest.mark.parametrize(
        ("name", "content", "settings", "part"),
        [
            ("tokenizer.model", FILES["ranks"], {}, "found no special tokens"),
            ("x.tiktoken", FILES["ranks"], {"tokenizer_class": "XTokenizer"}, "XTokenizer, whose"),
            ("x.tiktoken", FILES["ranks"] + b"!! 3\n", LLAMA_3, "line 901: found b'!! 3'"),
            ("x.tiktoken", FILES["ranks"] + b"YWJjZA== 999\n", LLAMA_3, "a gap"),
            ("x.tiktoken", b"YQ== 0\n", LLAMA_3, "found no token for byte 0"),
            ("tekken.json", b"{", {}, "expected a tekken.json"),
            ("tekken.json", b"[]", {}, "expected a tekken.json"),
            ("tekken.json", tekken(special_tokens=None), {}, "special_tokens: found 0 tokens"),
            ("tekken.json", tekken(vocab=[]), {}, "found no token for byte 0"),
        ],
    )
    def test_damaged_files_are_refused(self, name, content, settings, part, tmp_path):
        with pytest.raises((DataError, CheckpointError)) as caught:
            loaded(tmp_path, name, content, **settings)
        assert part in str(caught.value)
        assert "\n" not in str(caught.value)


def test_the_stored_ids_are_those_of_the_packages():
    for name in ("sentencepiece", "tiktoken"):
        pytest.importorskip(name)
    assert oracle.measure(FILES) == IDS
