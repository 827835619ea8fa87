"""WAV files and arrays to waveforms, and what is refused."""

import io
import struct
import wave

import numpy as np
import pytest
from scipy.io import wavfile

from ziggurat.core.errors import DataError
from ziggurat.models import waveforms
from ziggurat.models.waveforms import waveform

TONE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(8000) / 16_000)).astype(np.float32)


def wav(samples, rate=16_000):
    """A WAV file of an array."""
    buffer = io.BytesIO()
    wavfile.write(buffer, rate, samples)
    return buffer.getvalue()


def pcm(width, samples, channels=1, rate=16_000):
    """A WAV file of integers of ``width`` bytes, by the standard library."""
    buffer = io.BytesIO()
    scaled = np.round(np.asarray(samples, np.float64) * (2 ** (8 * width - 1) - 1)).astype(np.int64)
    if width == 1:
        data = (scaled + 128).astype(np.uint8).tobytes()
    else:
        data = scaled.astype("<i8").view(np.uint8).reshape(-1, 8)[:, :width].tobytes()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(data)
    return buffer.getvalue()


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_integers_of_each_width_are_read(width):
    step = 2.0 ** (1 - 8 * width)
    np.testing.assert_allclose(waveform(pcm(width, TONE)), TONE, atol=1.1 * step + 1e-7)


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_floats_are_read_as_they_are(kind):
    found = waveform(wav(TONE.astype(kind)))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, TONE)


def test_channels_are_averaged(tmp_path):
    stereo = np.stack([TONE, -0.5 * TONE], axis=1)
    (tmp_path / "a.wav").write_bytes(wav(stereo))
    for audio in (wav(stereo), tmp_path / "a.wav", str(tmp_path / "a.wav"), stereo):
        np.testing.assert_allclose(waveform(audio), 0.25 * TONE, atol=1e-6)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_another_rate_is_resampled(rate):
    """A tone stays the tone, but for the ends, where there is no sound before or after."""
    seconds = np.arange(rate) / rate
    found = waveform(wav(np.sin(2 * np.pi * 440 * seconds).astype(np.float32), rate))
    assert len(found) == 16_000
    expected = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    np.testing.assert_allclose(found[200:-200], expected[200:-200], atol=5e-3)
    np.testing.assert_allclose(
        waveform(np.sin(2 * np.pi * 440 * seconds), array_rate=rate)[200:-200],
        expected[200:-200],
        atol=5e-3,
    )


def header(rate=16_000, channels=1, bits=16, kind=1):
    """A WAV file of 100 bytes of silence by a header that says so."""
    block = channels * bits // 8
    form = struct.pack("<HHIIHH", kind, channels, rate, (rate * block) % 2**32, block, bits)
    sizes = struct.pack("<4sI4s4sI", b"RIFF", 136, b"WAVE", b"fmt ", 16)
    return sizes + form + struct.pack("<4sI", b"data", 100) + bytes(100)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "no audio known"),
        (b"hello, this is text", "no audio known"),
        (b"ID3\x04" + bytes(100), "a file of MP3"),
        (b"fLaC" + bytes(100), "a file of FLAC"),
        (b"\0\0\0\x20ftypM4A " + bytes(100), "a file of MP4"),
        (wav(TONE)[:20], "damaged or unknown WAV"),
        (wav(TONE)[:44], "damaged or unknown WAV|at least one sample"),
        (wav(np.zeros(0, np.int16)), "at least one sample"),
        (header(channels=0), "damaged or unknown WAV"),
        (header(kind=6), "damaged or unknown WAV"),
        (header(rate=1), "found 1 samples a second"),
        (header(rate=10**9), "found 1,000,000,000 samples a second"),
        (wav(np.array([0, np.nan], np.float32)), "no finite numbers"),
    ],
)
def test_what_is_no_readable_audio_is_refused(content, part):
    with pytest.raises(DataError, match=part) as error:
        waveform(content)
    assert "\n" not in str(error.value)


def test_a_cut_file_gives_the_samples_it_has():
    np.testing.assert_array_equal(waveform(wav(TONE)[: 58 + 4 * 1000])[:900], TONE[:900])


def test_limits_and_missing_files_are_told(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="no such file"):
        waveform(tmp_path / "none.wav")
    with pytest.raises(DataError, match=r"0.5 seconds; expected at most 0"):
        waveform(TONE, most_seconds=0.4)
    monkeypatch.setattr(waveforms, "MOST_BYTES", 1000)
    with pytest.raises(DataError, match="at most 1,000"):
        waveform(wav(TONE))
    for array in (np.zeros(0), np.zeros((2, 2, 2)), np.array(["a"])):
        with pytest.raises(DataError, match="at least one sample"):
            waveform(array)
