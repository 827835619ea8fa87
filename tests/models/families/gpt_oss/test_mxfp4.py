"""MXFP4 experts of GPT-OSS: the format's values, and a checkpoint in it."""

import json

import numpy as np
import pytest
import tokenizers
from tests.models.family_cases import ours
from tests.oracle import families

from ziggurat.core.errors import CheckpointError, ModelError
from ziggurat.core.pytrees import named_leaves
from ziggurat.formats import write_sharded
from ziggurat.formats.mxfp4 import dequantize
from ziggurat.models.families.gpt_oss.hf import from_hf
from ziggurat.models.families.gpt_oss.mxfp4 import DequantizedExperts
from ziggurat.models.loading import pretrained

CASE = "gpt_oss/gate-clamped"  # 3 layers, 4 experts, d 32, f 48


def packed(rng, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    """Random blocks for ``[*shape]`` and scales around one."""
    *leading, channels = shape
    blocks = rng.integers(0, 256, (*leading, channels // 32, 16), dtype=np.uint8)
    return blocks, rng.integers(124, 129, blocks.shape[:-1], dtype=np.uint8)


def test_values_of_the_format():
    """By the definition of E2M1: sign, two bits of exponent with bias 1, one of mantissa."""
    blocks = np.arange(16, dtype=np.uint8)[None, None] | np.uint8(0xF0)
    found = dequantize(blocks, np.array([[126]], np.uint8))[0]
    for code in range(16):
        sign, exponent, mantissa = code >> 3, (code >> 1) & 3, code & 1
        size = (1 + mantissa / 2) * 2.0 ** (exponent - 1) if exponent else mantissa / 2
        assert found[2 * code] == (-1) ** sign * size / 2
    assert (found[1::2] == -3.0).all()
    assert np.isnan(dequantize(blocks, np.array([[255]], np.uint8))).all()


def test_a_checkpoint_in_mxfp4_is_the_one_with_its_values(tmp_path):
    """Experts of [e, f, d] packed along d, everything else plain."""
    rng, tensors = np.random.default_rng(0), dict(ours(CASE).theirs)
    expected = dict(tensors)
    for name in [n for n in tensors if n.endswith("experts.gate_up_proj")]:
        e, d, f = tensors.pop(name).shape
        tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = packed(rng, e, f, d)
        whole = dequantize(tensors[f"{name}_blocks"], tensors[f"{name}_scales"])
        expected[name] = whole.swapaxes(1, 2)
    values = families.load(CASE).config | {"quantization_config": {"quant_method": "mxfp4"}}
    roots = []
    for kind, some in (("packed", tensors), ("plain", expected)):
        root = tmp_path / kind
        root.mkdir()
        tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, "a")).save(
            str(root / "tokenizer.json")
        )
        (root / "config.json").write_text(json.dumps(values))
        write_sharded(root, iter(some.items()), 10**9)
        roots.append(root)
    found, wanted = (named_leaves(pretrained.load(root).params) for root in roots)
    for name, leaf in wanted.items():
        np.testing.assert_array_equal(found[name], leaf, err_msg=name)


def test_what_is_refused():
    values = families.load(CASE).config
    with pytest.raises(ModelError, match=r"quantization_config: found 'fp8'; expected 'mxfp4'"):
        from_hf(values | {"quantization_config": {"quant_method": "fp8"}})
    blocks, scales = packed(np.random.default_rng(0), 2, 4, 64)
    odd = families.Tensors({"x_blocks": blocks, "x_scales": scales[:1], "y_blocks": blocks})
    view = DequantizedExperts(odd)
    assert list(view) == ["x", "y_blocks"]
    with pytest.raises(CheckpointError, match=r"tensor x_blocks: found uint8 \[2, 4, 2, 16\]"):
        view.read("x")


@pytest.mark.parity
def test_transformers_dequantizes_to_the_same():
    torch = pytest.importorskip("torch")
    mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")
    blocks, scales = packed(np.random.default_rng(1), 3, 8, 64)
    theirs = mxfp4.convert_moe_packed_tensors(torch.tensor(blocks), torch.tensor(scales))
    view = DequantizedExperts(families.Tensors({"x_blocks": blocks, "x_scales": scales}))
    np.testing.assert_array_equal(view.read("x"), theirs.float().numpy())
