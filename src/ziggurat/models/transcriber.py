"""Speech to text: windows of audio one after another, with segments and their times.

Decoding is greedy. As in transformers, the next window begins at the last pair of timestamps, or
behind this window where there is none. Not done: the fallback to higher temperatures, skipping of
silence by its probability, and conditioning on the text of earlier windows.
"""

import dataclasses
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ziggurat.core.errors import DataError, did_you_mean
from ziggurat.mesh import Layout
from ziggurat.models.loading import pretrained_speech
from ziggurat.models.loading.pretrained_speech import PretrainedSpeech
from ziggurat.models.speech_decoding import DecodedWindow, WindowDecoder
from ziggurat.models.waveforms import MOST_SECONDS, waveform
from ziggurat.nn.precision import Precision

TIME_STEP = 0.02
"""Seconds between two timestamps."""
START_OF_PROMPT = "<|startofprev|>"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TranscriptionOptions:
    """Options of a transcription."""

    language: str | None = None
    """Language spoken, as ``en``; ``None``: it is detected in the first window."""
    task: str | None = None
    """Write what is said (``transcribe``) or its translation into English (``translate``); default
    what the model's files say, or to transcribe."""
    timestamps: bool = False
    """Segments by the model's timestamps, rather than one for each window."""
    prompt: str | None = None
    """Text that stands before the audio's, for names and style; its end where it is too long."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segment:
    """A stretch of speech."""

    start: float
    """Seconds from the beginning of the audio."""
    end: float
    text: str
    tokens: tuple[int, ...]
    """Token ids, timestamps among them."""
    window: float
    """Seconds at which the window begins that it was heard in."""
    avg_logprob: float
    """Mean of the logarithms of the probabilities of the window's tokens."""
    compression_ratio: float
    """Bytes of the text over bytes of the text compressed; high where text repeats itself."""
    no_speech_prob: float
    """Probability that the window holds no speech."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transcription:
    """Text of an audio."""

    text: str
    language: str
    """Code of the language spoken."""
    duration: float
    """Length of the audio in seconds."""
    segments: tuple[Segment, ...]


class Transcriber:
    """Writes what is said.

    Args:
        speech: what :func:`ziggurat.models.loading.pretrained_speech.load` gives.
    """

    def __init__(self, speech: PretrainedSpeech):
        self.speech, self.tokens = speech, speech.tokens
        self.decoder = WindowDecoder(speech.model, speech.params, speech.tokens)

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        precision: Precision | None = None,
        layout: Layout | None = None,
    ) -> "Transcriber":
        """From a directory, see :func:`ziggurat.models.loading.pretrained_speech.load`."""
        return cls(pretrained_speech.load(path, precision=precision, layout=layout))

    def transcribe(
        self,
        audio: bytes | Path | str | np.ndarray,
        *,
        language: str | None = None,
        task: str | None = None,
        timestamps: bool = False,
        prompt: str | None = None,
    ) -> Transcription:
        """The text of an audio.

        Args:
            audio: content of a WAV file, its path, or samples at 16 kHz (``[n]``).
            language: language spoken, as ``en``; default: detected in the first window.
            task: write what is said (``transcribe``), or its translation into English
                (``translate``).
            timestamps: segments by the model's timestamps.
            prompt: text that stands before the audio's, for names and style.

        Raises:
            DataError: the audio cannot be read, is too long, or the model does not know the
                language or task.
        """
        options = TranscriptionOptions(
            language=language, task=task, timestamps=timestamps, prompt=prompt
        )
        job = self.begin(audio, options)
        while job.advance():
            pass
        return job.result()

    def begin(
        self,
        audio: bytes | Path | str | np.ndarray,
        options: TranscriptionOptions,
        most_seconds: float = MOST_SECONDS,
    ) -> "TranscriptionJob":
        """A transcription that is advanced window by window; the audio is read.

        Raises:
            DataError: see :meth:`transcribe`.
        """
        self.check(options)
        wave = waveform(audio, self.speech.log_mel.config.rate, most_seconds=most_seconds)
        return TranscriptionJob(self, wave, options)

    def check(self, options: TranscriptionOptions) -> None:
        """Refuse options that the model cannot follow.

        Raises:
            DataError: the language or the task is unknown, or the prompt cannot be read.
        """
        self.language_id(options.language)
        self.task_id(options.task)
        self.prompt_ids(options.prompt)

    def language_id(self, language: str | None) -> int | None:
        """The token of a language; ``None``: it is to be detected, or the model has none."""
        asked, tokens = language or self.tokens.language, self.tokens
        code = (asked or "").lower().removeprefix("<|").removesuffix("|>")
        if not tokens.multilingual:
            if code not in ("", "en"):
                raise DataError("language", found=repr(asked), expected="en, the model's only one")
            return None
        if not code:
            return None
        if f"<|{code}|>" not in tokens.languages:
            known = [name.strip("<|>") for name in tokens.languages]
            raise DataError(
                "language",
                found=repr(asked),
                expected="a code such as " + ", ".join(known[:3]),
                fix=did_you_mean(code, known),
            )
        return tokens.languages[f"<|{code}|>"]

    def task_id(self, task: str | None) -> int | None:
        """The token of a task; ``None``: the model has none."""
        asked, tokens = task or self.tokens.task or "transcribe", self.tokens
        if not tokens.multilingual:
            if asked != "transcribe":
                raise DataError("task", found=repr(asked), expected="transcribe: it knows English")
            return None
        if asked not in tokens.tasks:
            raise DataError("task", found=repr(asked), expected=" or ".join(tokens.tasks))
        return tokens.tasks[asked]

    def prompt_ids(self, prompt: str | None) -> list[int]:
        """Tokens that stand before the start token."""
        text = (prompt or "").strip()
        if not text:
            return []
        backend = self.speech.tokenizer.backend
        begin = self.tokens.previous
        begin = backend.token_to_id(START_OF_PROMPT) if begin is None else begin
        if begin is None:
            raise DataError("prompt", found="a text", expected="none: the model takes no prompts")
        ids = self.speech.tokenizer.encode(" " + text)
        if any(i >= self.tokens.end for i in ids):
            raise DataError("prompt", found="a special token", expected="plain text")
        return [begin, *ids[-(self.decoder.longest // 2 - 1) :]]

    def text(self, ids: Sequence[int]) -> str:
        """Text of tokens, without special tokens and timestamps."""
        plain = [int(i) for i in ids if i < self.tokens.end]
        return self.speech.tokenizer.decode(plain)

    def warm_up(self) -> None:
        """Compile every program."""
        memory = self.decoder.memory(np.zeros(self.speech.window, np.float32))
        if self.tokens.multilingual:
            self.decoder.language(memory)
        longer = [self.tokens.end] * self.decoder.longest
        for prompt in ([self.tokens.start], [*longer[2:], self.tokens.start]):
            self.decoder.decode(memory, prompt, timestamps=False)


class TranscriptionJob:
    """A transcription under way; made by :meth:`Transcriber.begin`.

    Args:
        transcriber: decodes.
        wave: the audio, float32 of one channel.
        options: what is asked.
    """

    def __init__(self, transcriber: Transcriber, wave: np.ndarray, options: TranscriptionOptions):
        self._by, self._options = transcriber, options
        log_mel = transcriber.speech.log_mel
        self.duration = len(wave) / log_mel.config.rate
        self._spectrogram, self._frames = log_mel(wave), log_mel.config.frames
        self._seek, self.segments = 0, list[Segment]()
        self._language = transcriber.language_id(options.language)
        self._task = transcriber.task_id(options.task)
        self._previous = transcriber.prompt_ids(options.prompt)

    @property
    def size(self) -> int:
        """Bytes of the spectrogram, which is held until the end."""
        return self._spectrogram.nbytes

    def advance(self) -> bool:
        """Decode the next window.

        Returns:
            Whether there is another one.
        """
        by, total = self._by, self._spectrogram.shape[1]
        frames = min(total - self._seek, self._frames)
        window = np.zeros((self._spectrogram.shape[0], self._frames), np.float32)
        window[:, :frames] = self._spectrogram[:, self._seek : self._seek + frames]
        memory = by.decoder.memory(window)
        if self._language is None and by.tokens.multilingual:
            self._language = by.decoder.language(memory)
        timestamps = self._options.timestamps
        decoded = by.decoder.decode(memory, self._prompt(), timestamps)
        self._seek += self._add(decoded, frames)
        return self._seek < total

    def result(self) -> Transcription:
        """The text of the windows decoded so far."""
        ids = [i for segment in self.segments for i in segment.tokens]
        return Transcription(
            text=self._by.text(ids).strip(),
            language=self._code(),
            duration=self.duration,
            segments=tuple(self.segments),
        )

    def _code(self) -> str:
        names = {i: name for name, i in self._by.tokens.languages.items()}
        return names.get(self._language or 0, "en").strip("<|>")

    def _prompt(self) -> list[int]:
        tokens = self._by.tokens
        asked = [tokens.start, self._language, self._task]
        if not self._options.timestamps:
            asked.append(tokens.no_timestamps)
        return self._previous + [i for i in asked if i is not None]

    def _add(self, decoded: DecodedWindow, frames: int) -> int:
        """Add a window's segments; returns by how many frames the next window begins later."""
        tokens, step = self._by.tokens, self._by.speech.frame_seconds
        ids = decoded.tokens[: int(decoded.count)].tolist()
        mean = float(decoded.log_probability) / max(1, len(ids))
        ids = ids[:-1] if ids and ids[-1] == tokens.end else ids
        parts, skip = split_by_timestamps(ids, tokens.first_timestamp, frames * step)
        offset = self._seek * step
        for part in parts:
            text = self._by.text(part.tokens)
            raw = text.encode("utf-8", "replace")
            segment = Segment(
                start=min(offset + part.start, self.duration),
                end=min(offset + part.end, self.duration),
                text=text,
                tokens=tuple(part.tokens),
                window=offset,
                avg_logprob=mean,
                compression_ratio=len(raw) / len(zlib.compress(raw)),
                no_speech_prob=float(decoded.no_speech),
            )
            self.segments.append(segment)
        # a pair at 0.00 would decode this window again, for ever
        return round(skip / step) or frames


@dataclasses.dataclass(frozen=True)
class TimedTokens:
    """Tokens of a segment, with its times in seconds from the beginning of its window."""

    start: float
    end: float
    tokens: Sequence[int]


def split_by_timestamps(
    ids: Sequence[int], first: int, seconds: float
) -> tuple[list[TimedTokens], float]:
    """Segments of a window's tokens, and the seconds after which the next window begins.

    Two timestamps side by side end a segment and begin another. What follows the last such pair is
    heard again in the next window, unless a single timestamp ends it: then nothing is said after
    it, and the next window begins behind this one.

    Args:
        ids: the tokens, without the end token.
        first: ids from this one on are timestamps.
        seconds: length of the window.

    >>> split_by_timestamps([100, 7, 110, 110, 8], first=100, seconds=1.0)[1]
    0.2
    """
    stamps = [i >= first for i in ids]

    def time(i: int) -> float:
        return (ids[i] - first) * TIME_STEP

    pairs = [i + 1 for i in range(len(ids) - 1) if stamps[i] and stamps[i + 1]]
    single = stamps[-2:] == [False, True]
    if not pairs:
        found = [i for i, stamp in enumerate(stamps) if stamp]
        end = time(found[-1]) if found and ids[found[-1]] != first else seconds
        return [TimedTokens(0.0, end, ids)], seconds
    # where no single timestamp ends the window, the second of the last pair goes with the last
    # segment, as transformers has it
    ends = [*pairs, len(ids)] if single else [*pairs[:-1], pairs[-1] + 1]
    parts, begin = [], 0
    for stop in ends:
        last = stop - 1 if single or stop != ends[-1] else stop - 2
        start = time(begin) if stamps[begin] else 0.0
        parts.append(TimedTokens(start, time(last), ids[begin:stop]))
        begin = stop
    return parts, seconds if single else time(ends[-1] - 2)
