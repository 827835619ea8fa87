"""Checkpoints written by the compressed-tensors library: kept quantised, the same logits."""

import copy
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.oracle import compressed as oracle
from tests.quick_jit import quick_jit

from ziggurat.checkpoint import write_sharded
from ziggurat.core.errors import CheckpointError, ModelError
from ziggurat.data.tokenizers import byte_level
from ziggurat.kernels.linear import QuantizedWeight, WeightFormat
from ziggurat.models import pretrained
from ziggurat.models.quantized import dequantized, formats_of

FORMATS = {
    "w8a16": WeightFormat("int8"),
    "w8a16-zero-points": WeightFormat("int8", symmetric=False),
    "w8a8": WeightFormat("int8", "int8"),
    "w4a16": WeightFormat("int4", tile_size=16),
    "w4a16-zero-points": WeightFormat("int4", tile_size=16, symmetric=False),
    "w4a8": WeightFormat("int4", "int8", 16),
    "fp8": WeightFormat("fp8_e4m3", "fp8_e4m3"),
}


@pytest.fixture(scope="module")
def stored():
    return oracle.load()


@pytest.fixture(scope="module")
def write(tmp_path_factory, stored):
    """Write a case as a Hugging Face directory, its config and tensors changed as told."""
    tokenizer = tmp_path_factory.mktemp("tokenizer")
    byte_level().save(tokenizer)

    def write(case, change=lambda settings, tensors: None):
        directory = tmp_path_factory.mktemp(case)
        config = copy.deepcopy(stored[case].config)
        tensors = dict(stored[case].tensors)
        change(config["quantization_config"], tensors)
        for file in tokenizer.iterdir():
            (directory / file.name).write_bytes(file.read_bytes())
        (directory / "config.json").write_text(json.dumps(config))
        write_sharded(directory, tensors.items())
        return directory

    return write


def logits(model, params):
    return np.asarray(quick_jit(model.logits)(params, jnp.asarray(oracle.tokens())))


@pytest.mark.parametrize("case", oracle.CASES)
def test_logits_are_the_librarys(case, write, stored):
    """Without quantised activations within 1e-4 of the library's, and those of the dequantised
    model exactly; an activation on the border between two integers may fall to either side, which
    moves a logit by about its step."""
    loaded = pretrained.load(write(case))
    formats = formats_of(loaded.params)
    assert len(formats) == 7
    if case in FORMATS:
        assert set(formats.values()) == {FORMATS[case]}
    else:
        kinds = {name.split(".")[1]: format for name, format in formats.items()}
        assert kinds == {"mlp": FORMATS["w4a16"], "attention": FORMATS["w8a16"]}
    found = logits(loaded.model, loaded.params)
    rounded = any(format.activation for format in formats.values())
    np.testing.assert_allclose(found, stored[case].logits, atol=2e-2 if rounded else 1e-4, rtol=0)
    if not rounded:
        plain = logits(loaded.model, dequantized(loaded.params))
        np.testing.assert_array_equal(found, plain)


def test_kept_quantised_in_memory_and_in_our_checkpoint(write, tmp_path):
    loaded = pretrained.load(write("w4a16-zero-points"))
    down = loaded.params["blocks"]["mlp"]["down"]["kernel"]
    assert isinstance(down, QuantizedWeight)
    assert (down.qvalue.shape, down.qvalue.dtype) == ((2, 24, 32), jnp.uint8)
    assert down.scale.shape == down.zero_point.shape == (2, 3, 32)
    pretrained.save(loaded, tmp_path / "ours")
    again = pretrained.load(tmp_path / "ours")
    assert jax.tree.structure(again.params) == jax.tree.structure(loaded.params)
    jax.tree.map(np.testing.assert_array_equal, again.params, loaded.params)


def weights(**changes):
    def change(settings, tensors):
        settings["config_groups"]["group_0"]["weights"] |= changes

    return change


def settings(**changes):
    return lambda settings, tensors: settings.update(changes)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (settings(quant_method="gptq"), "quant_method: found 'gptq'"),
        (settings(format="nvfp4-pack-quantized"), "format: found nvfp4-pack-quantized"),
        (settings(kv_cache_scheme={"num_bits": 8}), "kv_cache_scheme"),
        (settings(config_groups={}), "config_groups"),
        (weights(num_bits=3), "found 3-bit int"),
        (weights(strategy="block"), "strategy: found block"),
        (weights(actorder="group"), "actorder: found group"),
        (weights(strategy="tensor", symmetric=False), "symmetric: found False"),
    ],
)
def test_what_is_not_implemented_is_named(change, says, write):
    with pytest.raises(ModelError, match=says):
        pretrained.load(write("w8a8", change))


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"dynamic": False}, "dynamic: found False; expected true"),
        ({"strategy": "tensor"}, "strategy: found tensor; expected token"),
        ({"num_bits": 4}, "found 4-bit int"),
        ({"symmetric": False}, "symmetric: found False"),
    ],
)
def test_static_and_other_activations_are_refused(inputs, says, write):
    def change(settings, tensors):
        settings["config_groups"]["group_0"]["input_activations"] |= inputs

    with pytest.raises(ModelError, match=f"input_activations.*{says}"):
        pretrained.load(write("w8a8", change))


def test_layers_of_one_weight_must_be_alike(write):
    def change(settings, tensors):
        module = "model.layers.1.mlp.up_proj"
        for part in ("packed", "scale", "shape"):
            del tensors[f"{module}.weight_{part}"]
        tensors[f"{module}.weight"] = np.zeros((48, 32), np.float32)

    with pytest.raises(CheckpointError, match="layers.1.mlp.up_proj: found float weights"):
        pretrained.load(write("w4a16", change))


def test_words_that_do_not_fit_are_named(write):
    def change(settings, tensors):
        name = "model.layers.0.mlp.up_proj.weight_packed"
        tensors[name] = tensors[name][:, :-1]

    with pytest.raises(CheckpointError, match=r"up_proj.weight_packed: found int32 \[48, 3\]"):
        pretrained.load(write("w4a16", change))


@pytest.mark.parity
@pytest.mark.parametrize("case", oracle.CASES)
def test_stored_files_are_what_the_library_writes(case, stored):
    pytest.importorskip("compressed_tensors")
    oracle.compare(case, oracle.recompute(case), stored[case])
