"""Names, metadata and tensors of GGUF's decoders, against the tables of the package gguf."""

import dataclasses

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ziggurat.core.errors import ModelError
from ziggurat.data.tokenizers import byte_level
from ziggurat.formats import GgufFile
from ziggurat.kernels.linear import QuantizedWeight, dense
from ziggurat.models import (
    FAMILIES,
    LanguageModel,
    LlamaConfig,
    MixtralConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    family_of,
)
from ziggurat.models.conversion.gguf_records import RECORDS
from ziggurat.models.families.family import family_for_gguf
from ziggurat.models.loading import pretrained
from ziggurat.models.loading.gguf_output import export_gguf
from ziggurat.models.loading.pretrained import Pretrained
from ziggurat.models.quantized import dequantized, quantized, summed_axes
from ziggurat.quantize import Recipe, Rule
from ziggurat.quantize.weights import quantize

SIZES = {
    "vocab_size": 257, "d_model": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_ff": 96,
    "max_sequence_length": 64, "norm_eps": 2.0**-20, "tie_embeddings": False,
}  # fmt: skip
EXPERTS = {"n_experts": 4, "experts_per_token": 2}
SPARSE = EXPERTS | {"d_ff_expert": 32, "normalise_weights": True}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "mixtral": MixtralConfig(**SIZES, **EXPERTS),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=32),
    "qwen3_moe": Qwen3MoeConfig(**SIZES, **SPARSE, head_dim=32),
}
ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mixtral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "qwen3_moe": gguf.MODEL_ARCH.QWEN3MOE,
}
"""llama.cpp's architecture of each family."""


def written_file(config, directory):
    """A model with weights that float16 holds, and its GGUF file."""
    model, draw = LanguageModel.build(config), np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: draw.normal(size=leaf.shape).astype(np.float16).astype(np.float32),
        model.abstract,
    )
    made = Pretrained(model, params, byte_level({}), "small", "small")
    return made, export_gguf(made, directory / "small.gguf")


def test_every_family_with_a_form_there_is_tried():
    able = {name for name in FAMILIES if FAMILIES[name].to_gguf is not None}
    assert able == CONFIGS.keys() | RECORDS.keys()


@pytest.mark.parametrize("name", CONFIGS)
def test_names_are_those_of_the_gguf_package(name):
    """Its map goes from Hugging Face's names; it merges experts first, as its converter does."""
    config, architecture = CONFIGS[name], ARCHITECTURES[name]
    family = FAMILIES[name]
    assert family.gguf_architectures == (gguf.MODEL_ARCH_NAMES[architecture],)
    table = gguf.get_tensor_name_map(architecture, config.n_layers)
    ours = {weight.ours: weight for weight in family.gguf_names(config)}
    for weight in family.hf_names(config):
        module, _, suffix = weight.theirs.format(layer=1, expert="").rpartition(".")
        merged = module.replace("experts..", "experts.")
        old, new = "model.layers.1.block_sparse_moe.experts", "layers.1.feed_forward.experts"
        merged = merged.replace(old, new)
        expected = f"{table.get_name(merged)}.{suffix}"
        assert ours.pop(weight.ours).theirs.format(layer=1) == expected, weight.theirs
    assert not ours


@pytest.mark.parametrize("name", CONFIGS)
def test_a_file_is_read_back_as_the_same_model(name, tmp_path):
    made, file = written_file(CONFIGS[name], tmp_path)
    assert family_for_gguf(GgufFile(file).metadata).name == name
    again = pretrained.load(file)
    unsaid = {"init_std": made.model.config.init_std, "head_dim": made.model.config.head_dim}
    assert dataclasses.replace(again.model.config, **unsaid) == made.model.config
    jax.tree.map(np.testing.assert_array_equal, again.params, made.params)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    if family_of(made.model.config).name in ("mixtral", "qwen3_moe"):
        there = tensors["blk.1.ffn_up_exps.weight"].data
        kernel = made.params["blocks"]["mlp"]["experts"]["up"]["kernel"][1]
        np.testing.assert_array_equal(there, kernel.swapaxes(1, 2).astype(np.float16))


def test_experts_go_in_blocks_and_stay_so(tmp_path):
    """Written as int8, read by the package's own dequantiser, and packed again when loaded."""
    made, _ = written_file(CONFIGS["qwen3_moe"], tmp_path)
    recipe = Recipe(rules=(Rule(module_path="blocks/mlp/experts/.*", weight="int8", tile_size=32),))
    params = jax.tree.map(jnp.asarray, made.params)
    done = quantize(params, recipe, summed_axes(made.model))
    model = quantized(made.model, done.formats)
    file = export_gguf(dataclasses.replace(made, model=model, params=done.params), tmp_path / "q")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    found = tensors["blk.1.ffn_down_exps.weight"]
    assert found.tensor_type.name == "Q8_0"
    kernel = dequantized(done.params)["blocks"]["mlp"]["experts"]["down"]["kernel"][1]
    values = gguf.dequantize(found.data, found.tensor_type)
    np.testing.assert_allclose(values, np.asarray(kernel).swapaxes(1, 2), atol=0.01, rtol=1e-3)
    again = pretrained.load(file).params["blocks"]["mlp"]["experts"]["down"]["kernel"]
    assert isinstance(again, QuantizedWeight)
    np.testing.assert_allclose(dense(again)[1], values.swapaxes(1, 2), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("qwen2", {"window": 16, "pattern": ("local",)}, "window: found 16"),
        ("qwen3_moe", {"normalise_weights": False}, "normalise_weights: found False"),
        ("mixtral", {"window": 16}, "window: found 16"),
    ],
)
def test_what_has_no_form_there_is_refused(name, change, message):
    config = dataclasses.replace(CONFIGS[name], **change)
    with pytest.raises(ModelError, match=f"export gguf: {message}"):
        FAMILIES[name].to_gguf(config)
