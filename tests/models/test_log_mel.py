"""Waveforms to spectrograms: equal to transformers', and files that are refused."""

import json

import numpy as np
import pytest
from tests.oracle import whisper

from ziggurat.core.errors import ModelError
from ziggurat.models.log_mel import LogMel, LogMelConfig, from_hf, read_log_mel, to_hf


@pytest.mark.parametrize(("bands", "samples"), [(80, 100_001), (128, 500_000)])
def test_spectrograms_equal_transformers(bands, samples):
    """A short waveform is padded to 30 seconds, a longer one is whole; float32's logarithm of a
    small energy is off by a few 1e-5 there."""
    found = LogMel(LogMelConfig(mel_bins=bands))(whisper.wave(samples))
    assert found.dtype == np.float32
    assert found.shape == (bands, max(3000, samples // 160))
    expected = whisper.load()[f"spectrogram-{bands}"]
    np.testing.assert_allclose(found[:, whisper.FRAMES], expected, atol=1e-4, rtol=0)


def test_silence_is_the_lowest_value_everywhere():
    found = LogMel(LogMelConfig(seconds=1))(np.zeros(100, np.float32))
    np.testing.assert_allclose(found, np.full((80, 100), -1.5, np.float32))


def test_settings_go_to_a_file_and_back():
    settings = LogMelConfig(mel_bins=128, hop=80, n_fft=320, seconds=15)
    assert from_hf(to_hf(settings)) == settings
    assert from_hf({"feature_size": 80, "mel_filters": [[0.0]], "n_samples": 480000}).mel_bins == 80


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"feature_extractor_type": "ClapFeatureExtractor"}, "ClapFeatureExtractor"),
        ({"dither": 0.1}, "dither: found 0.1"),
        ({"do_normalize": True}, "do_normalize: found True"),
        ({"feature_size": "many"}, "mel_bins"),
        ({"sampling_rate": 8000}, "rate: found 8000"),
        ({"hop_length": 7}, "hop: found 7"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(change, part):
    with pytest.raises(ModelError) as error:
        from_hf(to_hf(LogMelConfig()) | change)
    assert part in str(error.value)


def test_a_missing_or_damaged_file_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"preprocessor_config.json: found absent"):
        read_log_mel(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ModelError, match="valid JSON"):
        read_log_mel(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps([1]))
    with pytest.raises(ModelError, match="found list"):
        read_log_mel(tmp_path)
