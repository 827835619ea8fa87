"""GGUF's blocks repacked: the values that ``gguf`` says they stand for, to the bit."""

import logging

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.models import quantised_cases as cases

from ziggurat.core.pytrees import named_leaves
from ziggurat.formats import GgufFile
from ziggurat.kernels.linear import is_quantized
from ziggurat.models.conversion.quantization.gguf_blocks import (
    BLOCK_TYPES,
    GgufReader,
    common_format,
)
from ziggurat.models.conversion.quantization.module import Present
from ziggurat.models.loading import pretrained
from ziggurat.models.quantized import formats_of

ROWS, COLUMNS = 6, 512
MIXES = {
    "Q4_K_M": ("Q4_K", "Q6_K"),
    "Q5_K_M": ("Q5_K", "Q6_K"),
    "Q3_K_M": ("Q3_K", "Q5_K", "Q4_K"),
    "Q2_K": ("Q2_K", "Q3_K"),
    "Q4_0 by importance": ("Q4_0", "Q4_1"),
    "without a sign": ("Q5_0", "Q8_0"),
    "eight bits with offsets": ("Q8_0", "Q5_1"),
    "across kinds of scales": ("Q4_K", "Q8_0", "Q5_0"),
    "across kinds of scales, without offsets": ("Q6_K", "Q4_0"),
}
"""Types of the layers of one weight, as llama.cpp's recipes mix them, and by ourselves."""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """One tensor of each type, and its values."""
    path, rng = tmp_path_factory.mktemp("blocks") / "all.gguf", np.random.default_rng(0)
    writer, expected = gguf.GGUFWriter(path, "llama"), {}
    for kind in BLOCK_TYPES:
        type_ = gguf.GGMLQuantizationType[kind]
        blocks = cases.random_blocks(rng, kind, ROWS, COLUMNS)
        writer.add_tensor(kind, blocks, raw_dtype=type_)
        expected[kind] = gguf.dequantize(blocks, type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GgufFile(path), expected


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_every_type_is_repacked_without_loss(kind, file):
    opened, expected = file
    module = GgufReader(opened).module(kind, Present(opened))
    assert module is not None
    assert np.abs(expected[kind]).max() > 0
    found = module.dequantized()
    if BLOCK_TYPES[kind].offset:
        # a product and a sum, which XLA may round once: 1 in 2^24 of either
        bound = 1.2e-7 * _largest(expected[kind])
        np.testing.assert_allclose(found, expected[kind], rtol=0, atol=bound)
    else:
        np.testing.assert_array_equal(found, expected[kind])
    stored = sum(module.read(part).nbytes for part in module.parts)
    assert stored <= 1.2 * opened.blocks(kind).nbytes


def _largest(array):
    return float(np.abs(array).max())


@pytest.mark.parametrize("mix", MIXES)
def test_layers_of_several_types_become_one_format(mix, file):
    opened, expected = file
    reader, present = GgufReader(opened), Present(opened)
    modules = [reader.module(kind, present) for kind in MIXES[mix]]
    alike = reader.alike([module for module in modules if module is not None])
    assert alike is not None
    assert len({module.format for module in alike}) == 1
    for kind, module in zip(MIXES[mix], alike):
        np.testing.assert_allclose(
            module.dequantized(), expected[kind], rtol=0, atol=4e-7 * _largest(expected[kind])
        )


def test_codes_of_a_table_do_not_mix():
    assert common_format([BLOCK_TYPES["IQ4_NL"], BLOCK_TYPES["Q4_0"]]) is None


def logits(loaded):
    tokens = np.random.default_rng(1).integers(0, cases.VOCABULARY, (1, 16))
    return np.asarray(jax.jit(loaded.model.logits)(loaded.params, jnp.asarray(tokens)))


def one_kind(kind):
    return lambda name: kind


def q4_k_m(name):
    """As llama.cpp mixes them: the head, some layers' values and down projections in six bits."""
    wider = ("output.weight", "blk.1.attn_v.weight", "blk.1.ffn_down.weight")
    return "Q6_K" if name in wider else "Q4_K"


def partly_floats(name):
    return "F32" if name in ("blk.0.attn_q.weight", "token_embd.weight") else "Q5_1"


@pytest.mark.parametrize("kinds", ["Q4_1", "Q8_0", "Q6_K", "MXFP4", q4_k_m])
def test_a_file_has_the_logits_of_its_dequantised_weights(kinds, tmp_path):
    kinds = kinds if callable(kinds) else one_kind(kinds)
    packed, plain, stored = cases.write_gguf(tmp_path / "files", kinds)
    loaded, twin = pretrained.load(packed), pretrained.load(plain)
    assert len(formats_of(loaded.params)) == 9
    leaves = jax.tree.leaves(loaded.params, is_leaf=is_quantized)
    # two layers: one of them in six bits is half of a weight, not a fourth as in real files
    bound = 1.3 if kinds is q4_k_m else 1.2
    assert sum(leaf.nbytes for leaf in leaves if is_quantized(leaf)) <= bound * stored
    expected = logits(twin)
    # the same sums in another order
    np.testing.assert_allclose(logits(loaded), expected, atol=1e-5 * _largest(expected), rtol=0)


def test_a_weight_that_is_floats_in_one_layer_is_floats(tmp_path, caplog):
    packed, plain, _ = cases.write_gguf(tmp_path / "files", partly_floats)
    with caplog.at_level(logging.WARNING):
        loaded = pretrained.load(packed)
    formats = formats_of(loaded.params)
    assert "blocks.attention.query.kernel" not in formats
    assert len(formats) == 7
    assert "blocks.attention.query.kernel: float (blk.0.attn_q.weight)" in caplog.text
    expected = logits(pretrained.load(plain))
    np.testing.assert_allclose(logits(loaded), expected, atol=1e-5 * _largest(expected), rtol=0)


def test_expanded_it_is_floats(tmp_path):
    packed, plain, _ = cases.write_gguf(tmp_path / "files", one_kind("Q5_K"))
    found = named_leaves(pretrained.load(packed, expand=True).params)
    expected = named_leaves(pretrained.load(plain).params)
    for name, leaf in found.items():
        np.testing.assert_allclose(
            leaf, expected[name], rtol=0, atol=3e-7 * _largest(expected[name])
        )


def test_the_head_that_repeats_the_embedding_is_left_out(file):
    opened, _ = file
    assert opened.same("Q4_0", "Q4_0")
    assert not opened.same("Q4_0", "Q8_0")
