"""Whisper: logits equal to transformers', conversion both ways, keys that are refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.oracle import families, whisper

from ziggurat.cli.main import main
from ziggurat.core.errors import CheckpointError, ModelError, ShapeError
from ziggurat.formats import SafetensorsDirectory
from ziggurat.models import SpeechModel, family_for_config
from ziggurat.models.loading import pretrained, pretrained_speech, proof


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return whisper.directory(tmp_path_factory.mktemp("whisper") / "tiny")


@pytest.fixture(scope="module")
def tiny(source):
    return pretrained_speech.load(source)


def logits(speech, tokens=whisper.LOGITS_TOKENS):
    spectrogram = speech.log_mel(whisper.wave(9_000))[None]
    return jax.jit(speech.model.logits)(speech.params, spectrogram, tokens.astype(np.int32))


def test_logits_equal_transformers(tiny):
    expected = whisper.load()["logits"]
    np.testing.assert_allclose(logits(tiny), expected, atol=1e-4, rtol=0)
    assert np.abs(expected).max() > 1


def test_cached_decoding_equals_all_tokens_at_once(tiny):
    """The prompt at once, padded, then token after token."""
    model, params = tiny.model, tiny.params
    tokens = whisper.LOGITS_TOKENS.astype(np.int32)
    spectrogram = tiny.log_mel(whisper.wave(9_000))[None]
    memory = jax.jit(model.memory)(params, spectrogram)

    @jax.jit
    def feed(tokens, cache):
        positions = cache.lengths[:, None] + np.arange(tokens.shape[1], dtype=np.int32)[None]
        states, cache = model.decode(params, tokens, positions, cache, memory)
        return model.project(params, states), cache

    first, cache = feed(tokens[:, :4], model.cache(1))
    found = [first]
    for i in range(4, tokens.shape[1]):
        more, cache = feed(tokens[:, i : i + 1], cache)
        found.append(more)
    np.testing.assert_allclose(np.concatenate(found, axis=1), logits(tiny), atol=1e-4)


def test_import_and_export_keep_everything(source, tiny, tmp_path, capsys):
    made, out = tmp_path / "made", tmp_path / "out"
    assert main(["import", "hf", str(source), "--output", str(made), "--verify", "never"]) == 0
    assert "2 languages, 8 mel bands, windows of 1 s" in capsys.readouterr().out
    assert main(["export", "hf", str(made), "--output", str(out)]) == 0
    for path in (made, out):
        assert pretrained_speech.is_speech(path)
        again = pretrained_speech.load(path)
        assert again.model.config == tiny.model.config
        assert again.log_mel.config == tiny.log_mel.config
        assert (again.generation, again.tokens) == (tiny.generation, tiny.tokens)
        jax.tree.map(np.testing.assert_array_equal, again.params, tiny.params)
        with pytest.raises(ModelError, match=r"ziggurat\.transcribe"):
            pretrained.load(path)
    written = SafetensorsDirectory(out)
    assert set(written) == set(SafetensorsDirectory(source))
    config = json.loads((out / "config.json").read_text())
    assert config["decoder_start_token_id"] == 41
    assert not pretrained_speech.is_speech(tmp_path)


@pytest.mark.parity
def test_transformers_reads_what_is_exported(source, tmp_path):
    import torch
    import transformers

    out = tmp_path / "out"
    pretrained_speech.export_hf(pretrained_speech.load(source), out)
    cls = transformers.WhisperForConditionalGeneration
    model, report = cls.from_pretrained(out, output_loading_info=True)
    assert not any(report.values()), report
    speech = pretrained_speech.load(out)
    given = torch.tensor(speech.log_mel(whisper.wave(9_000))[None])
    kept = model.generate(given, language="en", task="transcribe")[0].tolist()
    assert kept == whisper.load()["plain-tokens"].tolist()
    found = proof.speech_against_transformers(out, speech)
    assert found["max_logit_difference"] <= found["tolerance"]
    assert found["tokens"] == 32


@pytest.mark.parity
def test_the_oracle_is_what_transformers_says():
    whisper.compare(whisper.recompute())


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"tie_word_embeddings": False}, "tie_word_embeddings"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder"),
        ({"activation_function": "swishy"}, "swishy"),
        ({"encoder_attention_heads": 5}, "a multiple of 5 heads"),
        ({"decoder_layers": 0}, "n_decoder_layers: found 0"),
        ({"conv_bias": "odd"}, "conv_bias"),
        ({"architectures": ["WhisperForAudioClassification"]}, "WhisperForAudioClassification"),
        ({"architectures": ["WhisperForCausalLM"]}, "WhisperForConditionalGeneration"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(change, part):
    values = whisper.load()["config"] | change

    def read():
        return family_for_config(values).from_hf(values)

    with pytest.raises(ModelError) as error:
        read()
    assert part in str(error.value)


def test_published_configs_are_read():
    """Keys and values of openai/whisper-large-v3-turbo and distil-whisper, which differ from
    Whisper's in sizes alone."""
    turbo = {
        "architectures": ["WhisperForConditionalGeneration"], "model_type": "whisper",
        "activation_dropout": 0.0, "activation_function": "gelu", "apply_spec_augment": False,
        "attention_dropout": 0.0, "begin_suppress_tokens": [220, 50256], "bos_token_id": 50257,
        "classifier_proj_size": 256, "d_model": 1280, "decoder_attention_heads": 20,
        "decoder_ffn_dim": 5120, "decoder_layerdrop": 0.0, "decoder_layers": 4,
        "decoder_start_token_id": 50258, "dropout": 0.0, "encoder_attention_heads": 20,
        "encoder_ffn_dim": 5120, "encoder_layerdrop": 0.0, "encoder_layers": 32,
        "eos_token_id": 50257, "init_std": 0.02, "is_encoder_decoder": True,
        "mask_feature_length": 10, "mask_feature_min_masks": 0, "mask_feature_prob": 0.0,
        "mask_time_length": 10, "mask_time_min_masks": 2, "mask_time_prob": 0.05,
        "max_source_positions": 1500, "max_target_positions": 448, "median_filter_width": 7,
        "num_hidden_layers": 32, "num_mel_bins": 128, "pad_token_id": 50257,
        "scale_embedding": False, "torch_dtype": "float16", "transformers_version": "4.46.0",
        "use_cache": True, "use_weighted_layer_sum": False, "vocab_size": 51866,
    }  # fmt: skip
    family = family_for_config(turbo)
    model = SpeechModel.build(family.from_hf(turbo))
    assert model.parameter_count == 808_878_080
    distil = turbo | {"decoder_layers": 2, "forced_decoder_ids": [[1, 50259]], "max_length": 448}
    assert SpeechModel.build(family.from_hf(distil)).parameter_count == 756_405_760


def test_weights_that_contradict_are_named(source, tmp_path):
    from safetensors.numpy import save_file

    path = whisper.directory(tmp_path / "a")
    tensors = dict(whisper.tensors())
    embedding = tensors["model.decoder.embed_tokens.weight"]
    tensors["proj_out.weight"] = embedding.copy()
    save_file(tensors, path / "model.safetensors")
    pretrained_speech.load(path)
    tensors["proj_out.weight"] = embedding + 1
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"proj_out\.weight"):
        pretrained_speech.load(path)
    del tensors["proj_out.weight"], tensors["model.encoder.conv2.bias"]
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.encoder\.conv2\.bias"):
        pretrained_speech.load(path)


def test_files_that_disagree_are_named(tmp_path):
    path = whisper.directory(tmp_path / "a")
    steps = json.loads((path / "preprocessor_config.json").read_text())
    (path / "preprocessor_config.json").write_text(json.dumps(steps | {"feature_size": 80}))
    with pytest.raises(ModelError, match="expected 8 mel bands"):
        pretrained_speech.load(path)
    (path / "preprocessor_config.json").write_text(json.dumps(steps))
    (path / "generation_config.json").unlink()
    with pytest.raises(ModelError, match=r"generation_config.json: found absent"):
        pretrained_speech.load(path)


def test_a_spectrogram_of_another_shape_is_refused(tiny):
    for shape, tokens, part in (
        ((1, 8, 90), 2, "8 mel bands, 100 frames"),
        ((1, 7, 100), 2, "8 mel bands, 100 frames"),
        ((1, 8, 100), 41, "at most 40"),
    ):
        with pytest.raises(ShapeError, match=part):
            tiny.model.logits(tiny.params, jnp.zeros(shape), jnp.zeros((1, tokens), jnp.int32))


def test_drawn_weights_are_those_of_the_oracle(tiny):
    name = "model.decoder.layers.1.encoder_attn.q_proj.weight"
    expected = families.drawn("whisper", name, (32, 32), whisper.SCALE)
    kernel = tiny.params["blocks"]["cross_attention"]["query"]["kernel"][1]
    np.testing.assert_array_equal(kernel, expected.T)
