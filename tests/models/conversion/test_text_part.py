"""The language model of checkpoints of images and text."""

import dataclasses
import json
import logging

import jax
import numpy as np
import pytest
from tests.oracle import multimodal

from ziggurat.core.errors import ModelError
from ziggurat.data import HuggingFaceTokenizer
from ziggurat.formats import SafetensorsDirectory, write_sharded
from ziggurat.models import FAMILIES, LanguageModel, LlamaConfig, family_for_config
from ziggurat.models.conversion.text_part import PartTensors, language_values, text_part
from ziggurat.models.loading import pretrained

GEMMA = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 255999,
    "eoi_token_index": 256000,
    "eos_token_id": [1, 106],
    "image_token_index": 262144,
    "initializer_range": 0.02,
    "mm_tokens_per_image": 256,
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "vision_config": {"model_type": "siglip_vision_model", "image_size": 896},
}
"""``config.json`` as of Gemma 3 4B."""
QWEN = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "image_token_id": 151655,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 128000,
    "max_window_layers": 70,
    "model_type": "qwen2_5_vl",
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {"mrope_section": [16, 24, 24], "type": "mrope"},
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.41.2",
    "use_cache": True,
    "use_sliding_window": False,
    "video_token_id": 151656,
    "vision_config": {"depth": 32},
    "vision_end_token_id": 151653,
    "vision_start_token_id": 151652,
    "vision_token_id": 151654,
    "vocab_size": 151936,
}
"""``config.json`` as of Qwen2.5-VL 3B, with the text's settings at the top."""


def test_settings_of_a_text_in_a_table_of_its_own():
    values = language_values(GEMMA)
    config = family_for_config(values).from_hf(values)
    assert (config.kind, config.n_layers, config.vocab_size) == ("gemma3", 34, 262208)
    assert config.tie_embeddings
    assert values["eos_token_id"] == [1, 106]


def test_settings_of_a_text_at_the_top():
    values = language_values(QWEN)
    config = family_for_config(values).from_hf(values)
    assert (config.kind, config.n_layers, config.d_ff) == ("qwen2", 36, 11008)
    assert (config.tie_embeddings, config.window) == (True, None)
    assert config.rope.theta == 1e6
    assert (config.rope.sections, config.rope.interleaved) == ((16, 24, 24), False)
    plain = family_for_config(values).from_hf(values | {"rope_scaling": None})
    rope = dataclasses.replace(config.rope, sections=())
    assert plain == dataclasses.replace(config, rope=rope)


def test_defaults_are_those_of_the_type_in_the_file():
    text = {"model_type": "qwen3_vl_text", "hidden_size": 64, "num_hidden_layers": 1}
    values = {"architectures": ["Qwen3VLForConditionalGeneration"], "text_config": text}
    made = language_values(values)
    config = family_for_config(made).from_hf(made)
    assert (config.max_sequence_length, config.d_ff) == (128000, 22016)  # Qwen 3: 32768 both


def test_a_model_of_text_alone_stays_as_it_is():
    values = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    assert text_part(values) is None
    assert language_values(values) is values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_config": None}, "text_config: found None; expected a table"),
        ({"text_config": {"model_type": "mamba"}}, "found 'mamba'; expected gemma3_text"),
        ({"fusion_layers": 3}, "fusion_layers: found 3; expected only keys of Gemma3For"),
        ({"model_type": "llava"}, "model_type: found 'llava'; expected 'gemma3'"),
    ],
)
def test_a_text_that_is_not_read(change, message):
    with pytest.raises(ModelError, match=message):
        text_part(GEMMA | change)


def test_modules_of_a_quantised_text_are_named_as_there():
    ignored = ["model.vision_tower.a", "language_model.lm_head", "model.language_model.layers.0.up"]
    values = GEMMA | {"quantization_config": {"quant_method": "fp8", "ignore": ignored}}
    found = language_values(values)["quantization_config"]
    assert found["ignore"] == ["vision_tower.a", "lm_head", "model.layers.0.up"]


@pytest.fixture
def published(tmp_path):
    """A checkpoint of LLaVA's names around a Llama."""
    multimodal.save_tokenizer(tmp_path)
    tokenizer = HuggingFaceTokenizer.load(tmp_path)
    config = LlamaConfig(vocab_size=64, d_model=16, n_layers=2, n_heads=2, tie_embeddings=False)
    model = LanguageModel.build(config)
    params = model.init(jax.random.key(0))
    text = pretrained.Pretrained(model, params, tokenizer, "text", "test")
    pretrained.export_hf(text, tmp_path / "text")
    path = tmp_path / "whole"
    path.mkdir()
    multimodal.save_tokenizer(path)
    source = SafetensorsDirectory(tmp_path / "text")
    tensors = [(f"language_model.{name}", np.array(source.read(name))) for name in source]
    tensors.append(("vision_tower.vision_model.norm", np.ones(4, np.float32)))
    tensors.append(("multi_modal_projector.linear_1.weight", np.ones((4, 4), np.float32)))
    write_sharded(path, iter(tensors), 10**9)
    values = json.loads((tmp_path / "text" / "config.json").read_text())
    whole = {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "text_config": values,
        "vision_config": {"model_type": "clip_vision_model"},
    }
    (path / "config.json").write_text(json.dumps(whole))
    return text, path


def test_one_line_says_what_is_left_out(published, caplog):
    text, path = published
    with caplog.at_level(logging.WARNING):
        loaded = pretrained.load(path)
    [record] = caplog.records
    assert record.message == (
        "LlavaForConditionalGeneration: only its language model is read; 1 tensors of "
        "multi_modal_projector and 1 tensors of vision_tower are left out, and images are refused"
    )
    assert loaded.model.config.decoder() == text.model.config.decoder()
    jax.tree.map(np.testing.assert_array_equal, loaded.params, text.params)


def test_two_tensors_of_one_name():
    class Two(dict):
        def read(self, name):
            return self[name]

        def dtype_of(self, name):
            return self[name].dtype

    norm = np.ones(2)
    both = {"language_model.model.norm": norm, "model.language_model.norm": norm}
    with pytest.raises(ModelError, match=r"also language_model\.model\.norm"):
        PartTensors(Two(both), "text")


@pytest.mark.parity
@pytest.mark.parametrize("kind", multimodal.CONFIGS)
def test_text_alone_against_transformers(kind, tmp_path):
    torch = pytest.importorskip("torch")
    model = multimodal.torch_model(kind)
    model.save_pretrained(tmp_path)
    multimodal.save_tokenizer(tmp_path)
    tokens = np.random.default_rng(0).integers(3, 57, (2, 17)).astype(np.int32)
    with torch.no_grad():
        expected = model(input_ids=torch.from_numpy(tokens).long()).logits.numpy()
    loaded = pretrained.load(tmp_path)
    found = np.asarray(jax.jit(loaded.model.logits)(loaded.params, tokens))
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    assert loaded.model.config.kind in FAMILIES
