"""Waveforms to log-mel spectrograms, which encoders of speech read.

The settings are those of transformers' ``WhisperFeatureExtractor``, and so are the spectrograms.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from ziggurat.core import config
from ziggurat.core.errors import ModelError
from ziggurat.models.conversion.hf_config import checked

FILE = "preprocessor_config.json"
_LEAST = 1e-10
"""Smallest energy, so that silence has a logarithm."""
_RANGE = 8.0
"""Decades below the loudest band that are kept."""
_PIECE = 3000
"""Frames whose transform is in memory at once."""
_HARMLESS = {"processor_class", "return_attention_mask", "padding_side", "nb_max_frames"}
"""Keys of the file that change no spectrogram, or repeat another."""
_FIXED = {"feature_extractor_type": "WhisperFeatureExtractor", "padding_value": 0.0, "dither": 0.0}
"""Keys of the file that must have these values where they are there."""


@config.node
class LogMelConfig:
    """Steps from a waveform to a log-mel spectrogram."""

    mel_bins: int = 80
    """Mel bands."""
    rate: int = 16_000
    """Samples per second."""
    n_fft: int = 400
    """Samples under one window of the Fourier transform."""
    hop: int = 160
    """Samples from one frame to the next."""
    seconds: int = 30
    """Length of a window of the model."""

    def __post_init__(self):
        for name, value in vars(self).items():
            config.require(value >= 1, name, value, "a number >= 1")
        config.require(self.rate >= 16_000, "rate", self.rate, "16000 or more: bands end at 8 kHz")
        whole = self.seconds * self.rate % self.hop == 0
        config.require(whole, "hop", self.hop, "a divisor of the samples of a window")

    @property
    def samples(self) -> int:
        """Samples of a window of the model."""
        return self.seconds * self.rate

    @property
    def frames(self) -> int:
        """Frames of a window of the model."""
        return self.samples // self.hop


class LogMel:
    r"""Log-mel spectrogram :math:`(\max(\log_{10} E,\ \max \log_{10} E - 8) + 4) / 4` of the
    energies :math:`E` in mel bands of a Hann-windowed Fourier transform.

    Args:
        settings: the steps.
    """

    def __init__(self, settings: LogMelConfig):
        self.config = settings
        c = settings
        self._filters = mel_filters(c.mel_bins, c.n_fft // 2 + 1, c.rate)
        self._window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(c.n_fft) / c.n_fft)).astype("f8")

    def __call__(self, wave: Float[np.ndarray, "n"]) -> Float[np.ndarray, "m f"]:
        """Spectrogram of a waveform: one that is shorter than the model's window is padded with
        silence to it, a longer one has ``n // hop`` frames."""
        c = self.config
        if len(wave) < c.samples:
            wave = np.pad(wave, (0, c.samples - len(wave)))
        padded = np.pad(wave, c.n_fft // 2, mode="reflect")
        frames = np.lib.stride_tricks.sliding_window_view(padded, c.n_fft)[:: c.hop]
        frames = frames[: len(wave) // c.hop]  # transformers drops the frame behind the end
        found = np.empty((c.mel_bins, len(frames)), np.float32)
        for start in range(0, len(frames), _PIECE):
            spectrum = np.fft.rfft(frames[start : start + _PIECE] * self._window)
            energies = (np.abs(spectrum) ** 2) @ self._filters
            found[:, start : start + _PIECE] = np.log10(np.maximum(energies, _LEAST)).T
        found = np.maximum(found, found.max() - np.float32(_RANGE))
        return (found + np.float32(4)) / np.float32(4)


def mel_filters(bands: int, bins: int, rate: int) -> Float[np.ndarray, "f m"]:
    """Weight of each of ``bins`` frequencies in each mel band: triangles of equal area (Slaney)
    between 0 and 8 kHz.

    Slaney's scale is linear to 1 kHz and logarithmic above: Auditory Toolbox, 1998, technical
    report 1998-010 of Interval Research.
    """
    edges = _hertz(np.linspace(0.0, _mels(8000.0), bands + 2))
    frequencies = np.linspace(0, rate // 2, bins)
    low, centre, high = (part[None] for part in (edges[:-2], edges[1:-1], edges[2:]))
    rising = (frequencies[:, None] - low) / (centre - low)
    falling = (high - frequencies[:, None]) / (high - centre)
    triangles = np.maximum(0, np.minimum(rising, falling))
    return triangles * (2.0 / (high - low))


_LOG_FROM, _LINEAR, _STEP = 1000.0, 3 / 200, math.log(6.4) / 27
"""Where Slaney's scale becomes logarithmic (Hz), mels per Hz below, and log Hz per mel above."""


def _mels(hertz: float) -> float:
    if hertz < _LOG_FROM:
        return hertz * _LINEAR
    return _LOG_FROM * _LINEAR + math.log(hertz / _LOG_FROM) / _STEP


def _hertz(mels: np.ndarray) -> np.ndarray:
    above = _LOG_FROM * np.exp(_STEP * (mels - _LOG_FROM * _LINEAR))
    return np.where(mels < _LOG_FROM * _LINEAR, mels / _LINEAR, above)


def read_log_mel(path: Path) -> LogMel:
    """The steps that a Hugging Face directory's ``preprocessor_config.json`` describes.

    Raises:
        ModelError: the file is missing or damaged, or asks for something that is not implemented.
    """
    file = path / FILE
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise ModelError(str(file), found="absent", expected="the audio's file") from None
    except ValueError as error:
        raise ModelError(str(file), found=error, expected="valid JSON") from None
    if not isinstance(values, dict):
        raise ModelError(str(file), found=type(values).__name__, expected="a JSON object")
    return LogMel(from_hf(values))


def from_hf(values: Mapping[str, Any]) -> LogMelConfig:
    """Content of ``preprocessor_config.json`` to config.

    Raises:
        ModelError: a class or a key that is not implemented.
    """
    keys = {
        "feature_size": "mel_bins",
        "sampling_rate": "rate",
        "n_fft": "n_fft",
        "hop_length": "hop",
        "chunk_length": "seconds",
    }
    settings = {ours: values[key] for key, ours in keys.items() if values.get(key) is not None}
    for key, value in values.items():
        if key in _FIXED and value != _FIXED[key]:
            raise ModelError(f"{FILE}: {key}", found=repr(value), expected=repr(_FIXED[key]))
        # files of 2022 hold the filters themselves; they follow from the other keys
        known = key in keys or key in _FIXED or key in _HARMLESS | {"mel_filters", "n_samples"}
        if not known and value not in (None, False):
            raise ModelError(f"{FILE}: {key}", found=repr(value), expected="absent")
    return checked(LogMelConfig, settings, FILE)


def to_hf(settings: LogMelConfig) -> dict[str, Any]:
    """Config to the content of ``preprocessor_config.json``."""
    return {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "processor_class": "WhisperProcessor",
        "feature_size": settings.mel_bins,
        "sampling_rate": settings.rate,
        "n_fft": settings.n_fft,
        "hop_length": settings.hop,
        "chunk_length": settings.seconds,
        "n_samples": settings.samples,
        "nb_max_frames": settings.frames,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
    }
