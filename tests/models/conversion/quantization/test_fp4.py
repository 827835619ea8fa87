"""MXFP4 experts of GPT-OSS: kept in four bits, and the logits of their values."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from tests.models.family_cases import ours
from tests.oracle import families

from ziggurat.core.errors import CheckpointError
from ziggurat.core.pytrees import named_leaves
from ziggurat.formats import write_sharded
from ziggurat.kernels.linear import is_quantized
from ziggurat.models.conversion.quantization.fp4 import Mxfp4Reader
from ziggurat.models.conversion.quantization.module import Present
from ziggurat.models.loading import pretrained
from ziggurat.models.quantized import formats_of

CASE = "gpt_oss/gate-clamped"  # 3 layers, 4 experts, d 32, f 48
VALUES = [0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6]


def packed(rng, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    """Random blocks for ``[*shape]`` and scales around one."""
    *leading, channels = shape
    blocks = rng.integers(0, 256, (*leading, channels // 32, 16), dtype=np.uint8)
    return blocks, rng.integers(120, 124, blocks.shape[:-1], dtype=np.uint8)


def values(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """What they stand for, by the format's definition."""
    codes = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*blocks.shape[:-1], 32)
    wide = np.take(np.array(VALUES, np.float32), codes) * np.exp2(scales[..., None] - 127.0)
    return wide.reshape(*blocks.shape[:-2], -1).astype(np.float32)


def read(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    tensors = families.Tensors({"x_blocks": blocks, "x_scales": scales})
    module = Mxfp4Reader({}).module("x", Present(tensors))
    assert module is not None
    return module.dequantized()


def test_values_of_the_format():
    """By the definition of E2M1 (sign, two bits of exponent with bias 1, one of mantissa) and of
    E8M0, whose greatest byte is no number."""
    blocks = np.arange(16, dtype=np.uint8)[None, None] | np.uint8(0xF0)
    for scale in (126, 4, 250):
        found = read(blocks, np.array([[scale]], np.uint8))[:, 0]
        for code in range(16):
            sign, exponent, mantissa = code >> 3, (code >> 1) & 3, code & 1
            size = (1 + mantissa / 2) * 2.0 ** (exponent - 1) if exponent else mantissa / 2
            assert found[2 * code] == np.float32((-1) ** sign * size * 2.0 ** (scale - 127))
    assert np.isnan(read(blocks, np.array([[255]], np.uint8))).all()


def directories(tmp_path):
    """GPT-OSS in MXFP4 and in floats; experts of [e, f, d] packed along d."""
    rng, tensors = np.random.default_rng(0), dict(ours(CASE).theirs)
    expected, stored = dict(tensors), 0
    for name in [n for n in tensors if n.endswith("experts.gate_up_proj")]:
        e, d, f = tensors.pop(name).shape
        blocks, scales = packed(rng, e, f, d)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        expected[name] = values(blocks, scales).swapaxes(1, 2)
        stored += blocks.nbytes + scales.nbytes
    config = families.load(CASE).config
    settings = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}
    for kind, some, more in (
        ("packed", tensors, {"quantization_config": settings}),
        ("plain", expected, {}),
    ):
        root = tmp_path / kind
        root.mkdir()
        tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, "a")).save(
            str(root / "tokenizer.json")
        )
        (root / "config.json").write_text(json.dumps(config | more))
        write_sharded(root, iter(some.items()), 10**9)
    return tmp_path / "packed", tmp_path / "plain", stored


@pytest.mark.slow
def test_experts_stay_in_four_bits_and_give_the_logits_of_their_values(tmp_path):
    root, twin, stored = directories(tmp_path)
    loaded, plain = pretrained.load(root), pretrained.load(twin)
    leaves = named_leaves(loaded.params, is_leaf=is_quantized)
    nodes = {name: leaf for name, leaf in leaves.items() if is_quantized(leaf)}
    assert {name.rpartition("mlp.")[2] for name in nodes} == {
        "experts.gate.kernel",
        "experts.up.kernel",
    }
    assert sum(node.nbytes for node in nodes.values()) == stored
    floats = named_leaves(plain.params)
    for name, node in nodes.items():
        np.testing.assert_array_equal(node.dequantized(), floats[name], err_msg=name)
    tokens = jnp.asarray(families.tokens(CASE))
    found, expected = (
        np.asarray(jax.jit(m.model.logits)(m.params, tokens)) for m in (loaded, plain)
    )
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


def test_expanded_they_are_floats(tmp_path):
    root, twin, _ = directories(tmp_path)
    loaded = pretrained.load(root, expand=True)
    assert not formats_of(loaded.params)
    expected = named_leaves(pretrained.load(twin).params)
    for name, leaf in named_leaves(loaded.params).items():
        np.testing.assert_array_equal(leaf, expected[name], err_msg=name)


@pytest.mark.slow
def test_blocks_and_scales_that_do_not_fit_are_named():
    blocks, scales = packed(np.random.default_rng(0), 2, 4, 64)
    with pytest.raises(CheckpointError, match=r"tensor x_blocks: found uint8 \[2, 4, 2, 16\]"):
        read(blocks, scales[:1])
    alone = families.Tensors({"y_blocks": blocks})
    assert Mxfp4Reader({}).module("y", Present(alone)) is None


@pytest.mark.parity
def test_transformers_dequantizes_to_the_same():
    torch = pytest.importorskip("torch")
    mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")
    blocks, scales = packed(np.random.default_rng(1), 3, 8, 64)
    theirs = mxfp4.convert_moe_packed_tensors(torch.tensor(blocks), torch.tensor(scales))
    np.testing.assert_array_equal(read(blocks, scales), theirs.float().numpy())
