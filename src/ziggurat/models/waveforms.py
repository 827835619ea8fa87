"""Audio to waveforms: WAV files, of any rate and number of channels, to one channel at one rate."""

import io
import math
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import Float

from ziggurat.core.errors import DataError

MOST_BYTES = 2**30
"""Largest file."""
MOST_SECONDS = 4 * 3600.0
"""Longest audio in seconds."""
RATES = (1000, 768_000)
"""Lowest and highest rate of a file, in samples per second."""
FORMATS = "WAV of 8, 16, 24 or 32-bit integers or of floats"
_SIGNATURES = {
    b"ID3": "MP3",
    b"\xff\xfb": "MP3",
    b"\xff\xf3": "MP3",
    b"\xff\xf2": "MP3",
    b"fLaC": "FLAC",
    b"OggS": "Ogg",
    b"\x1aE\xdf\xa3": "WebM or Matroska",
}
"""Beginnings of files of audio that is not decoded here."""


def waveform(
    audio: "bytes | Path | str | np.ndarray",
    rate: int = 16_000,
    *,
    array_rate: int | None = None,
    most_seconds: float = MOST_SECONDS,
) -> Float[np.ndarray, "n"]:
    """Samples of one channel at ``rate``, float32 in -1 to 1.

    Channels are averaged. Another rate is resampled by a polyphase filter
    (``scipy.signal.resample_poly``).

    Args:
        audio: content of a WAV file, its path, or samples ``[n]`` or ``[n, channels]``.
        rate: samples per second of the result.
        array_rate: samples per second of an array; default ``rate``.
        most_seconds: longest audio.

    Raises:
        DataError: the file is missing, no WAV, too large, too long, empty or damaged, or the
            samples are no finite numbers.
    """
    what = "audio" if isinstance(audio, bytes | np.ndarray) else f"audio {audio}"
    if isinstance(audio, np.ndarray):
        found, samples = array_rate or rate, audio
    else:
        found, samples = _read(what, _content(what, audio))
    low, high = RATES
    if not low <= found <= high:
        raise DataError(what, found=f"{found:,} samples a second", expected=f"{low:,} to {high:,}")
    seconds = len(samples) / found
    if seconds > most_seconds:
        raise DataError(
            what,
            found=f"{seconds:,.1f} seconds",
            expected=f"at most {most_seconds:,.0f}",
            fix="cut it into parts",
        )
    mono = _mono(what, samples)
    if found == rate:
        return mono
    from scipy.signal import resample_poly

    divisor = math.gcd(rate, found)
    return resample_poly(mono, rate // divisor, found // divisor).astype(np.float32)


def _content(what: str, audio: bytes | Path | str) -> bytes:
    """Content of a file that is not too large."""
    if isinstance(audio, bytes):
        size = len(audio)
    else:
        path = Path(audio)
        if not path.is_file():
            raise DataError(what, found="no such file", expected=FORMATS)
        size = path.stat().st_size
    if size > MOST_BYTES:
        raise DataError(
            what, found=f"{size:,} bytes", expected=f"at most {MOST_BYTES:,}", fix="shorten it"
        )
    return audio if isinstance(audio, bytes) else Path(audio).read_bytes()


def _read(what: str, content: bytes) -> tuple[int, np.ndarray]:
    """Rate and samples of a WAV file, as it holds them."""
    if content[:4] not in (b"RIFF", b"RIFX", b"RF64") or content[8:12] != b"WAVE":
        kind = next((k for start, k in _SIGNATURES.items() if content.startswith(start)), None)
        kind = "MP4" if content[4:8] == b"ftyp" else kind
        raise DataError(
            what,
            found=f"a file of {kind}" if kind else "a file that is no audio known",
            expected=FORMATS,
            fix="convert it: ffmpeg -i INPUT -ac 1 -ar 16000 OUTPUT.wav" if kind else "",
        )
    from scipy.io import wavfile

    try:
        with warnings.catch_warnings():
            # chunks of other data (tags), and a header that tells more samples than there are
            warnings.simplefilter("ignore", wavfile.WavFileWarning)
            rate, samples = wavfile.read(io.BytesIO(content))
    except Exception as error:  # whatever a damaged header makes of it
        line = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            what, found=f"a damaged or unknown WAV ({line})", expected=FORMATS
        ) from None
    return int(rate), samples


def _mono(what: str, samples: np.ndarray) -> Float[np.ndarray, "n"]:
    """Samples of all channels averaged, in -1 to 1."""
    kind = samples.dtype
    if samples.ndim not in (1, 2) or samples.size == 0 or kind.kind not in "iuf":
        raise DataError(
            what,
            found=f"samples of shape {list(samples.shape)} and type {kind}",
            expected="at least one sample, [n] or [n, channels]",
        )
    if kind == np.uint8:  # 8-bit WAV is unsigned
        mono = (samples.astype(np.float32) - 128) / 128
    elif kind.kind == "f":
        mono = samples.astype(np.float32)
    else:
        mono = (samples / np.float64(-np.iinfo(kind).min)).astype(np.float32)
    if mono.ndim == 2:
        mono = mono.mean(axis=1, dtype=np.float32)
    if not np.isfinite(mono).all():
        raise DataError(what, found="samples that are no finite numbers", expected="numbers")
    return mono
