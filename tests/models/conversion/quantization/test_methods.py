"""Every layout of quantised checkpoints: kept so, the logits of its dequantised weights."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.models import quantised_cases as cases

from ziggurat.core.errors import CheckpointError, ModelError
from ziggurat.core.pytrees import named_leaves
from ziggurat.formats import SafetensorsDirectory, write_sharded
from ziggurat.kernels.linear import QuantizedWeight, is_quantized
from ziggurat.models.conversion.quantization.methods import METHODS, method_reader
from ziggurat.models.loading import pretrained
from ziggurat.models.quantized import dequantized, formats_of
from ziggurat.nn.precision import Precision

TOKENS = np.random.default_rng(1).integers(0, cases.VOCABULARY, (1, 16))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    made = {}

    def get(name):
        if name not in made:
            made[name] = cases.write(tmp_path_factory.mktemp(name), name)
        return made[name]

    return get


@pytest.fixture(scope="module")
def plain_logits():
    """Logits of float models, which are one program."""
    compiled = []

    def run(loaded):
        if not compiled:
            compiled.append(jax.jit(loaded.model.logits))
        return np.asarray(compiled[0](loaded.params, jnp.asarray(TOKENS)))

    return run


def logits(loaded):
    return np.asarray(jax.jit(loaded.model.logits)(loaded.params, jnp.asarray(TOKENS)))


def close(found, expected):
    """Both sum the same products in float32 in another order: 1e-5 of the largest logit."""
    assert np.isfinite(expected).all()
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


def nodes(params):
    leaves = named_leaves(params, is_leaf=is_quantized)
    return {name: leaf for name, leaf in leaves.items() if is_quantized(leaf)}


def test_every_method_has_a_case():
    found = {case.settings["quant_method"] for case in cases.CASES.values()}
    assert METHODS.keys() - found == {"mxfp4", "modelopt_fp4"}  # GPT-OSS's; another name


@pytest.mark.slow
@pytest.mark.parametrize("name", cases.CASES)
def test_logits_are_those_of_the_dequantised_weights(name, written, plain_logits):
    files = written(name)
    plain, loaded = pretrained.load(files.plain), pretrained.load(files.packed)
    quantised = nodes(loaded.params)
    assert len(quantised) == 7
    kept = sum(node.nbytes for node in quantised.values())
    assert kept <= 1.2 * files.module_bytes
    floats = named_leaves(plain.params)
    for home, node in quantised.items():
        whole = np.asarray(node.dequantized())
        # a product of two float32 factors, one of them rounded: 1 in 2^23
        np.testing.assert_allclose(whole, floats[home], rtol=3e-7, atol=1e-8, err_msg=home)
    close(logits(loaded), plain_logits(plain))


@pytest.mark.parametrize("name", ["gptq-4bit-ordered", "modelopt-nvfp4", "bitsandbytes-fp4"])
def test_our_checkpoint_holds_the_same_parts(name, written, tmp_path):
    loaded = pretrained.load(written(name).packed, precision=Precision(as_stored=True))
    pretrained.save(loaded, tmp_path / "ours")
    again = pretrained.load(tmp_path / "ours", precision=Precision(as_stored=True))
    assert jax.tree.structure(again.params) == jax.tree.structure(loaded.params)
    jax.tree.map(np.testing.assert_array_equal, again.params, loaded.params)


@pytest.mark.parametrize("name", ["gptq-8bit-ordered", "fp8-blocks", "compressed-nvfp4"])
def test_expanded_they_are_floats(name, written):
    files = written(name)
    loaded = pretrained.load(files.packed, expand=True)
    assert not formats_of(loaded.params)
    expected = named_leaves(pretrained.load(files.plain).params)
    for home, leaf in named_leaves(loaded.params).items():
        np.testing.assert_allclose(leaf, expected[home], rtol=3e-7, atol=1e-8, err_msg=home)


def test_exported_they_are_floats_in_full(written, tmp_path):
    files = written("gptq-4bit-ordered")
    loaded = pretrained.load(files.packed, precision=Precision(as_stored=True))
    pretrained.export_hf(loaded, tmp_path / "out")
    found, expected = SafetensorsDirectory(tmp_path / "out"), SafetensorsDirectory(files.plain)
    for name in expected:
        assert found.dtype_of(name) == np.float32
        np.testing.assert_array_equal(found.read(name), expected.read(name), err_msg=name)


@pytest.mark.parametrize("name", ["awq", "bitsandbytes-nf4-nested", "fp8-blocks"])
def test_a_module_that_one_layer_leaves_as_floats_is_floats_in_all(
    name, tmp_path, plain_logits, caplog
):
    """A stack of layers is one array; the larger form is told."""
    files = cases.write(tmp_path, name, left_out=("model.layers.1.mlp.down_proj",))
    with caplog.at_level(logging.WARNING):
        loaded = pretrained.load(files.packed)
    assert len(formats_of(loaded.params)) == 6
    assert "blocks.mlp.down.kernel" in caplog.text
    assert "its layers become floats" in caplog.text
    close(logits(loaded), plain_logits(pretrained.load(files.plain)))


@pytest.mark.parametrize("name", ["gptq-4bit", "compressed-mxfp4"])
def test_rows_of_a_quantised_table(name, written):
    """A head that is quantised too, and rows of it."""
    node = nodes(pretrained.load(written(name).packed).params)["blocks.mlp.up.kernel"][0]
    table = QuantizedWeight(
        **{
            part: None if getattr(node, part) is None else getattr(node, part).T
            for part in ("qvalue", "scale", "zero_point", "high", "super_scale", "offset")
        },
        format=node.format,
        axis=-1,
        float_type=node.float_type,
    )
    whole = np.asarray(node.dequantized()).T
    np.testing.assert_array_equal(table.dequantized(), whole)
    ids = jnp.array([[3, 0], [7, 7]])
    np.testing.assert_array_equal(table.rows(ids), whole[np.asarray(ids)])


def changed(tmp_path, name, change):
    """A case whose settings and tensors are changed."""
    case = cases.CASES[name]
    tensors = cases.tensors_of(case)[0]
    settings = json.loads(json.dumps(case.settings))
    change(settings, tensors)
    return cases.write_directory(tmp_path / "changed", tensors, settings)


HOME = "model.layers.1.mlp.up_proj"


def cut(end):
    return lambda settings, tensors: tensors.pop(f"{HOME}.{end}")


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("gptq-4bit", "qzeros"),
        ("awq", "scales"),
        ("fp8-blocks", "weight_scale_inv"),
        ("compressed-nvfp4", "weight_global_scale"),
        ("bitsandbytes-nf4", "weight.absmax"),
        ("bitsandbytes-nf4-nested", "weight.nested_quant_map"),
    ],
)
def test_a_part_that_is_missing_is_named(name, end, tmp_path):
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.") as caught:
        pretrained.load(changed(tmp_path, name, cut(end)))
    assert "\n" not in str(caught.value)


def unequal_groups(settings, tensors):
    tensors[f"{HOME}.g_idx"] = np.zeros_like(tensors[f"{HOME}.g_idx"])


def other_table(settings, tensors):
    tensors[f"{HOME}.weight.quant_map"] = np.linspace(-1, 1, 16, dtype=np.float32)


def by_tiles(settings, tensors):
    tensors[f"{HOME}.weight_format"] = np.array(2, np.uint8)


def short(end):
    def change(settings, tensors):
        tensors[f"{HOME}.{end}"] = tensors[f"{HOME}.{end}"][:-1]

    return change


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("gptq-4bit-ordered", unequal_groups, "found groups of unequal size"),
        ("gptq-4bit", short("scales"), "found 1 groups; expected 2"),
        ("gptq-4bit", short("qzeros"), r"qzeros: found int32 \[1, 24\]"),
        ("awq", short("qzeros"), r"qzeros: found int32 \[1, 24\]"),
        ("fp8-blocks", short("weight_scale_inv"), r"weight_scale_inv: found shape \[1, 1\]"),
        ("modelopt-nvfp4", short("weight_scale"), "weight_scale: found float8_e4m3fn"),
        ("bitsandbytes-nf4", other_table, "quant_map: found other values"),
        ("bitsandbytes-nf4", short("weight.absmax"), "absmax: found float32"),
        ("bitsandbytes-int8", by_tiles, "in the order of a GPU's kernels"),
    ],
)
def test_parts_that_do_not_fit_are_named(name, change, says, tmp_path):
    with pytest.raises(CheckpointError, match=says) as caught:
        pretrained.load(changed(tmp_path, name, change))
    assert HOME in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"quant_method": "hqq"}, r"quant_method: found 'hqq'; expected one of awq, bitsandbytes"),
        ({"quant_method": "gptqq"}, "did you mean gptq"),
        ({}, "quant_method: found None"),
        ({"quant_method": "gptq", "bits": 3}, "bits: found 3; expected 4 or 8"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "found marlin"),
        ({"quant_method": "awq", "version": "gemv"}, "version: found gemv; expected gemm"),
        ({"quant_method": "awq", "bits": 8}, "bits: found 8"),
        ({"quant_method": "fp8", "fmt": "e3m4"}, "fmt: found e3m4"),
        ({"quant_method": "fp8", "expert_dtype": "fp4"}, "expert_dtype: found fp4"),
        ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "quant_algo: found W4A8_AWQ"),
        (
            {"quant_method": "bitsandbytes", "bnb_4bit_quant_type": "nf3"},
            "bnb_4bit_quant_type: found nf3",
        ),
        ({"quant_method": "auto-round", "packing_format": "x"}, "packing_format: found 'x'"),
        (cases.compressed("marlin-24", {}), "format: found marlin-24"),
    ],
)
def test_what_is_not_read_is_refused_by_name(settings, says):
    with pytest.raises(ModelError, match=says) as caught:
        method_reader(settings)
    assert "\n" not in str(caught.value)


def test_other_ways_to_name_a_method(written, tmp_path):
    """AutoRound's directories are in GPTQ's layout; ModelOpt's may say so in a file of its own."""
    tensors = cases.tensors_of(cases.CASES["gptq-4bit"])[0]
    settings = {"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq"}
    directory = cases.write_directory(
        tmp_path / "round", tensors, settings | {"bits": 4, "group_size": 64}
    )
    assert len(formats_of(pretrained.load(directory).params)) == 7
    tensors = cases.tensors_of(cases.CASES["modelopt-nvfp4"])[0]
    directory = cases.write_directory(tmp_path / "nvidia", tensors, None)
    beside = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4"}}
    (directory / "hf_quant_config.json").write_text(json.dumps(beside))
    assert len(formats_of(pretrained.load(directory).params)) == 7


def test_a_module_with_other_settings(tmp_path, plain_logits):
    """GPTQModel's exceptions by pattern; here layer 1's output projections, of 8 bits."""
    rng = np.random.default_rng(3)
    four, eight = cases.gptq(4, 64), cases.gptq(8, 64)
    packed, plain, _ = cases.tensors_of(four)
    for layer in range(cases.LAYERS):
        home = f"model.layers.{layer}.self_attn.o_proj"
        parts, floats = eight.packer(rng, *cases.MODULES["self_attn.o_proj"])
        packed |= {f"{home}.{end}": np.ascontiguousarray(x) for end, x in parts.items()}
        plain[f"{home}.weight"] = np.ascontiguousarray(floats)
    settings = four.settings | {"dynamic": {r"+:.*o_proj": {"bits": 8}, r"-:lm_head": {}}}
    loaded = pretrained.load(cases.write_directory(tmp_path / "packed", packed, settings))
    found = {name: format.weight for name, format in formats_of(loaded.params).items()}
    assert found.pop("blocks.attention.out.kernel") == "int8"
    assert set(found.values()) == {"int4"}
    twin = pretrained.load(cases.write_directory(tmp_path / "plain", plain, None))
    close(logits(loaded), plain_logits(twin))


def test_a_dequantised_copy_is_what_was_kept(written):
    loaded = pretrained.load(written("compressed-mxfp4").packed)
    whole = dequantized(loaded.params)
    for home, node in nodes(loaded.params).items():
        np.testing.assert_array_equal(named_leaves(whole)[home], node.dequantized())


def test_the_files_are_sharded_like_others(written, tmp_path):
    files = written("awq")
    tensors = SafetensorsDirectory(files.packed)
    for file in files.packed.iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    write_sharded(tmp_path, ((name, tensors.read(name)) for name in tensors), 100_000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = pretrained.load(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, again.params, pretrained.load(files.packed).params)
