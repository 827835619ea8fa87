"""What cannot be read is refused in one line that names the file, key or tensor."""

import json
from pathlib import Path

import numpy as np
import pytest
from tests.models.family_cases import ours
from tests.oracle import families

from ziggurat.core.errors import CheckpointError, ModelError, ShardingError, ZigguratError
from ziggurat.formats import write_sharded
from ziggurat.mesh import MeshConfig, build
from ziggurat.models import LlamaConfig, family_for_architecture
from ziggurat.models.families.llama.gguf import from_gguf
from ziggurat.models.families.llama.hf import from_hf, to_hf
from ziggurat.models.loading import pretrained
from ziggurat.nn.rope import frequencies

CASE = "llama/one-layer"
GGUF = {
    "tokenizer.ggml.tokens": ["a", "b"],
    "llama.embedding_length": 64,
    "llama.block_count": 1,
    "llama.attention.head_count": 1,
    "llama.feed_forward_length": 16,
    "llama.context_length": 32,
    "llama.rope.freq_base": 5e5,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}


def write(directory: Path, config: dict | str, tensors: dict[str, np.ndarray]) -> Path:
    text = config if isinstance(config, str) else json.dumps(config)
    (directory / "config.json").write_text(text)
    if tensors:
        write_sharded(directory, tensors.items(), 10**9)
    return directory


def line(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"architectures": ["LlamaForCausalML"]}, ["LlamaForCausalML", "did you mean LlamaForC"]),
        (
            {"architectures": None, "model_type": None},
            ["model architecture", "found none", "MistralForCausalLM"],
        ),
        ({"architectures": None, "model_type": "phimoe"}, ["found phimoe", "nearest is mixtral"]),
        ({"model_type": "mistral"}, ["model_type", "'mistral'", "'llama'", "LlamaForCausalLM"]),
        ({"architectures": "LlamaForCausalLM"}, ["architectures", "a list of names"]),
        ({"hidden_size": None}, ["config.json: hidden_size", "absent"]),
        ({"hidden_size": "48"}, ["config.json", "d_model", "'48'", "integer"]),
        ({"hidden_size": -48}, ["config.json", "d_model", "-48", ">= 1"]),
        ({"num_key_value_heads": 4}, ["config.json", "n_heads", "6", "4 kv heads"]),
        ({"num_hidden_layers": 1.5}, ["config.json", "n_layers", "1.5"]),
        ({"rms_norm_eps": "small"}, ["config.json", "norm_eps", "'small'"]),
        ({"is_causal": False}, ["config.json: is_causal", "found False", "causal", "modules.json"]),
        ({"hidden_act": "mish"}, ["config.json: hidden_act", "'mish'", "silu"]),
        ({"sliding_window": 8}, ["config.json: sliding_window", "8", "null"]),
        ({"no_such_switch": 3}, ["config.json: no_such_switch", "3"]),
        (
            {"quantization_config": {"bits": 4}},
            ["config.json: quantization_config", "quant_method", "compressed-tensors"],
        ),
        ({"rope_parameters": {"rope_type": "spiral"}}, ["rope_type", "'spiral'", "llama3"]),
        ({"rope_parameters": {"rope_type": "axial", "factor": 2.0}}, ["rope_type", "'axial'"]),
        ({"rope_parameters": {"rope_type": "linear"}}, ["rope settings of type linear", "factor"]),
        ({"rope_parameters": {"rope_type": "llama3"}}, ["rope settings of type llama3", "factor"]),
        (
            {"rope_parameters": {"rope_type": "llama3", "factor": "eight"}},
            ["rope settings of type llama3", "eight"],
        ),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "beta_medium": 3.0}},
            ["rope settings of type yarn", "beta_medium"],
        ),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "x": 1.0}}, ["rope", "'x'"]),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, ["partial_rotary_factor"]),
        ({"rope_theta": "big", "rope_parameters": None}, ["rope", "big"]),
    ],
    ids=lambda value: str(next(iter(value.items()))) if isinstance(value, dict) else "",
)
def test_config_json_is_refused(tmp_path, change, parts):
    values = families.load("llama/plain").config | change
    write(tmp_path, {k: v for k, v in values.items() if v is not None}, {})
    with pytest.raises(ModelError) as caught:
        pretrained.load(tmp_path)
    for part in parts:
        assert part in line(caught), line(caught)


@pytest.mark.parametrize(
    ("text", "part"),
    [("{", "valid JSON"), ("", "valid JSON"), ("[1]", "a JSON object"), ("\ud800", "valid JSON")],
)
def test_broken_config_json(tmp_path, text, part):
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ModelError, match=r"config\.json") as caught:
        pretrained.load(tmp_path)
    assert part in line(caught)


def test_mistral_with_layers_of_several_kinds():
    values = families.load("llama/mistral").config
    kinds = ["full_attention"] + ["sliding_attention"] * (values["num_hidden_layers"] - 1)
    with pytest.raises(ModelError, match="layer_types"):
        from_hf(values | {"layer_types": kinds})


def test_harmless_keys_are_accepted():
    values = families.load("llama/plain").config
    extra = {
        "torch_dtype": "bfloat16",
        "use_cache": False,
        "pretraining_tp": 2,
        "_name_or_path": "somewhere",
        "rope_interleaved": False,
        "is_llama_config": True,
        "transformers.js_config": {"kv_cache_dtype": {"fp16": "float16"}},
    }
    assert from_hf(values | extra) == from_hf(values)


def test_no_counterpart_for_a_window_with_biases():
    config = LlamaConfig(
        vocab_size=8, d_model=8, n_layers=1, n_heads=2, window=4, attention_bias=True
    )
    with pytest.raises(ModelError, match="a sliding window together with biases"):
        to_hf(config)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda t: t.pop("model.norm.weight"), ["tensor model.norm.weight", "absent"]),
        (
            lambda t: t.update({"model.normm.weight": t.pop("model.norm.weight")}),
            ["tensor model.norm.weight", "absent", "did you mean model.normm.weight?"],
        ),
        (
            lambda t: [t.pop(n) for n in list(t) if "mlp" in n],
            ["model.layers.0.mlp.down_proj.weight", "and 2 more"],
        ),
        (
            lambda t: t.update({"model.layers.1.mlp.up_proj.weight": np.zeros((80, 48), "f4")}),
            ["tensor model.layers.1.mlp.up_proj.weight", "no place"],
        ),
        (
            lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": np.zeros(48, "f4")}),
            ["tensor model.layers.0.self_attn.q_proj.bias", "no place"],
        ),
        (
            lambda t: t.update({"model.layers.0.mlp.up_proj.weight": np.zeros((48, 80), "f4")}),
            ["model.layers.0.mlp.up_proj.weight", "[48, 80]", "[80, 48]"],
        ),
        (
            lambda t: t.update({"model.embed_tokens.weight": np.zeros((95, 48), "f4")}),
            ["model.embed_tokens.weight", "[95, 48]", "[96, 48]"],
        ),
    ],
    ids=["missing", "misspelt", "several", "extra layer", "extra bias", "transposed", "vocabulary"],
)
def test_tensors_that_do_not_fit(tmp_path, change, parts):
    tensors = dict(ours(CASE).theirs)
    change(tensors)
    write(tmp_path, families.load(CASE).config, tensors)
    with pytest.raises(CheckpointError) as caught:
        pretrained.load(tmp_path)
    for part in parts:
        assert part in line(caught), line(caught)


def inverse_wavelengths(config):
    return frequencies(config.rope, config.channels_per_head)[0]


def test_buffers_and_tied_copies_are_passed_over(tmp_path):
    from ziggurat.models.conversion.weight_names import import_weights

    case = ours("llama/tied")
    extra = {
        "lm_head.weight": case.theirs["model.embed_tokens.weight"],
        "model.layers.0.self_attn.rotary_emb.inv_freq": inverse_wavelengths(case.config),
    }
    write(tmp_path, families.load("llama/tied").config, dict(case.theirs) | extra)
    with pytest.raises(ZigguratError, match="tokenizer"):  # all that is missing now
        pretrained.load(tmp_path)
    untied = ours(CASE)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        import_weights(
            case.family.hf_names(case.config),
            type(untied.theirs)(case.theirs | extra),
            case.model.abstract,
            layers=case.config.n_layers,
        )


def test_nothing_there(tmp_path):
    with pytest.raises(ModelError, match="no such file or directory"):
        pretrained.load(tmp_path / "none")
    with pytest.raises(ModelError, match=r"neither checkpoints nor config\.json"):
        pretrained.load(tmp_path)
    (tmp_path / "model.gguf").write_bytes(b"GGUF no")
    with pytest.raises(CheckpointError, match="damaged"):
        pretrained.load(tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"llama.embedding_length": None}, ["llama.embedding_length", "absent"]),
        ({"tokenizer.ggml.tokens": None}, ["tokenizer.ggml.tokens", "absent"]),
        ({"llama.rope.scaling.type": "yarn"}, ["llama.rope.scaling.type", "yarn"]),
        ({"llama.expert_count": 8}, ["llama.expert_count"]),
        ({"llama.rope.dimension_count": 32}, ["llama.rope.dimension_count", "32", "64"]),
        ({"llama.attention.head_count": [1, 2]}, ["llama.attention.head_count", "[1, 2]"]),
        ({"llama.attention.head_count_kv": 3}, ["GGUF metadata", "n_heads", "3 kv heads"]),
    ],
    ids=str,
)
def test_gguf_metadata_is_refused(change, parts):
    values = {k: v for k, v in (GGUF | change).items() if v is not None}
    with pytest.raises(ModelError) as caught:
        from_gguf(values)
    for part in parts:
        assert part in line(caught), line(caught)


def llama3_divisors(factor: float, theta: float, dim: int, low: float = 1.0) -> np.ndarray:
    """``rope_freqs.weight`` as llama.cpp's converter computes it."""
    divisors = []
    for omega in theta ** (-np.arange(0, dim, 2, dtype=np.float64) / dim):
        wavelength = 2 * np.pi / omega
        smooth = (8192 / wavelength - low) / (4 - low)
        if wavelength < 8192 / 4:
            divisors.append(1.0)
        elif wavelength > 8192 / low:
            divisors.append(factor)
        else:
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, np.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_gguf_rope_divisors_are_the_scaling_of_llama_3(factor):
    config = from_gguf(GGUF, llama3_divisors(factor, 5e5, 64))
    assert config.rope.scaling.kind == "llama3"
    assert config.rope.scaling.factor == factor
    assert config.rope.scaling.original_length == 8192
    assert from_gguf(GGUF, np.ones(32, np.float32)).rope.scaling.kind == "none"
    assert from_gguf(GGUF).rope.scaling.kind == "none"


@pytest.mark.parametrize(
    "divisors", [llama3_divisors(8.0, 5e5, 64, low=2.0), np.ones(16, "f4"), np.full(32, 3.0, "f4")]
)
def test_gguf_rope_divisors_of_another_scaling_are_refused(divisors):
    with pytest.raises(ModelError, match=r"rope_freqs\.weight"):
        from_gguf(GGUF, divisors)


@pytest.mark.parametrize(
    ("mesh", "parts"),
    [
        (MeshConfig(tensor=4, fsdp=2), ["the heads", "heads = 6", "tensor=4"]),
        (MeshConfig(tensor=2), ["kv_heads = 3", "mesh.rules.kv_heads"]),
        (MeshConfig(pipeline=2, fsdp=4), ["blocks.", "layers = 3", "pipeline=2"]),
    ],
    ids=["heads", "kv_heads", "layers"],
)
def test_dimensions_that_do_not_divide_over_the_mesh(mesh, parts):
    with pytest.raises(ShardingError) as caught:
        ours("llama/gqa-3").model.shardings(build(mesh))
    for part in parts:
        assert part in line(caught), line(caught)


def test_unknown_gguf_architecture():
    with pytest.raises(ModelError, match="found lama"):
        family_for_architecture("lama", gguf=True)
