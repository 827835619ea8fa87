"""GGUF files that are written: dequantised by the package gguf, and read back as the same model."""

import dataclasses
import json

import gguf
import jax
import numpy as np
import pytest

from ziggurat.cli.main import main
from ziggurat.core.errors import CheckpointError, ModelError
from ziggurat.data.tokenizers import byte_level
from ziggurat.formats import GgufFile
from ziggurat.formats.gguf_tokenizer import byte_level_bpe, pieces_of
from ziggurat.models import LanguageModel, LlamaConfig
from ziggurat.models.loading import pretrained
from ziggurat.models.loading.gguf_output import export_gguf
from ziggurat.models.loading.pretrained import Pretrained
from ziggurat.models.quantized import dequantized, quantized, summed_axes
from ziggurat.nn.rope import Llama3Scaling, RopeConfig
from ziggurat.quantize import Recipe, Rule
from ziggurat.quantize.weights import quantize

CONFIG = LlamaConfig(
    vocab_size=257, d_model=64, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=96, init_std=0.2,
    max_sequence_length=64, tie_embeddings=False,
    rope=RopeConfig(theta=5e5, scaling=Llama3Scaling(factor=8.0)),
)  # fmt: skip
RECIPE = Recipe(
    rules=(
        Rule(module_path="blocks/attention/.*", weight="int4", tile_size=32),
        Rule(module_path="blocks/mlp/down", weight="nf4", tile_size=32),
        Rule(module_path="blocks/.*", weight="int4", tile_size=32, symmetric=False),
        Rule(module_path="(un)?embedding", weight="int8"),
    )
)
TOKENS = np.arange(24)[None] * 11 % 257
TYPES = {"attn_q": "Q4_0", "ffn_up": "Q4_1", "ffn_down": "F16", "attn_norm": "F32"}


@pytest.fixture(scope="module")
def small():
    model = LanguageModel.build(CONFIG)
    params = model.init(jax.random.key(0))
    done = quantize(params, RECIPE, summed_axes(model), search=True)
    return Pretrained(quantized(model, done.formats), done.params, byte_level(), "small", "small")


@pytest.fixture(scope="module")
def file(small, tmp_path_factory):
    return export_gguf(small, tmp_path_factory.mktemp("gguf") / "out" / "small.gguf")


@pytest.mark.slow
def test_types_and_values(small, file):
    """Rows of queries and keys are interleaved there; the package's own dequantiser reads them."""
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    for name, kind in TYPES.items():
        assert tensors[f"blk.1.{name}.weight"].tensor_type.name == kind
    assert tensors["token_embd.weight"].tensor_type.name == "Q8_0"
    blocks = dequantized(small.params)["blocks"]
    for name, part, rows in (("ffn_up", blocks["mlp"]["up"], None), ("attn_q", None, (4, 8, 2))):
        found = tensors[f"blk.1.{name}.weight"]
        values = gguf.dequantize(found.data, found.tensor_type)
        kernel = np.asarray((part or blocks["attention"]["query"])["kernel"][1]).T
        if rows is not None:  # halves of a head there lie in pairs
            kernel = kernel.reshape(4, 2, 8, -1).swapaxes(1, 2).reshape(kernel.shape)
        np.testing.assert_allclose(values, kernel, atol=1e-3, rtol=2e-3)


@pytest.mark.slow
def test_read_back_it_is_the_same_model(small, file):
    """Scales and offsets are float16 there, and nf4 weights too."""
    again = pretrained.load(file)
    assert isinstance(again.model.config, LlamaConfig)
    assert again.model.config.norm_eps == pytest.approx(CONFIG.norm_eps, rel=1e-6)  # float32 there
    unsaid = {"init_std": CONFIG.init_std, "norm_eps": CONFIG.norm_eps}
    config = dataclasses.replace(again.model.config, **unsaid)
    assert config == dataclasses.replace(CONFIG, head_dim=16)
    found, expected = (
        np.asarray(jax.jit(one.model.logits)(one.params, TOKENS)) for one in (again, small)
    )
    np.testing.assert_allclose(found, expected, atol=0.02)
    for text in ("a b  c\n12 345", "naïve 日本"):
        assert again.tokenizer.encode(text) == small.tokenizer.encode(text)
    assert again.tokenizer.eos_ids == small.tokenizer.eos_ids


def test_pieces_make_the_tokenizer_again(file):
    pieces = GgufFile(file).tokenizer()
    again = pieces_of(
        json.dumps(byte_level_bpe(pieces)),
        size=257,
        ids={"eos": pieces.eos_id},
        adds=(False, False),
        chat_template=None,
    )
    assert again.tokens == pieces.tokens
    assert again.token_types == pieces.token_types


def test_the_command_and_what_has_no_form_there(small, tmp_path, capsys):
    pretrained.save(small, tmp_path / "small")
    output = str(tmp_path / "a.gguf")
    assert main(["export", "gguf", str(tmp_path / "small"), "--output", output]) == 0
    assert main(["export", "gguf", str(tmp_path / "small"), "--output", output]) == 2
    assert "it exists" in capsys.readouterr().err
    command = ["export", "gguf", str(tmp_path / "small"), "--output", str(tmp_path / "b.gguf")]
    assert main([*command, "--dtype", "float16"]) == 2
    assert "this option for hf only" in capsys.readouterr().err
    windowed = LanguageModel.build(dataclasses.replace(CONFIG, window=16))
    with pytest.raises(ModelError, match="export gguf: window: found 16"):
        export_gguf(dataclasses.replace(small, model=windowed), tmp_path / "c.gguf")
    assert not (tmp_path / "c.gguf").exists()
    with pytest.raises(CheckpointError, match="Whitespace"):
        pieces_of(
            '{"model": {"type": "BPE"}, "pre_tokenizer": {"type": "Whitespace"}}',
            size=1, ids={}, adds=(False, False), chat_template=None,
        )  # fmt: skip
