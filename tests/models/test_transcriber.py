"""Speech to text: tokens and segments equal to transformers' ``generate``, options, limits."""

import dataclasses
import io

import numpy as np
import pytest
from scipy.io import wavfile
from tests.oracle import whisper

from ziggurat.core.errors import DataError
from ziggurat.models.transcriber import Transcriber, TranscriptionOptions, split_by_timestamps


@pytest.fixture(scope="module")
def transcriber(tmp_path_factory):
    return Transcriber.load(whisper.directory(tmp_path_factory.mktemp("whisper") / "tiny"))


def words(ids):
    return " ".join(f"w{i}" for i in ids)


@pytest.mark.parametrize("name", whisper.CASES)
def test_tokens_and_segments_equal_transformers(transcriber, name):
    """With and without timestamps, a prompt, a language that is detected, and several windows."""
    case, stored = whisper.CASES[name], whisper.load()
    found = transcriber.transcribe(
        whisper.wave(case["samples"]),
        language=case.get("language"),
        task=case["task"],
        timestamps=case.get("timestamps", False),
        prompt=words(case.get("prompt", [])),
    )
    tokens = [i for segment in found.segments for i in segment.tokens]
    assert tokens == stored[f"{name}-tokens"].tolist()
    assert found.text == words(i for i in tokens if i < 40)
    times = np.array([(s.start, s.end, len(s.tokens)) for s in found.segments])
    expected = np.minimum(stored[f"{name}-segments"], [found.duration, found.duration, np.inf])
    np.testing.assert_allclose(times, expected, atol=1e-6)
    assert found.duration == pytest.approx(case["samples"] / 16_000)
    assert found.language in ("en", "fr")
    for segment in found.segments:
        assert segment.avg_logprob < 0 <= segment.no_speech_prob < 1
        assert (segment.compression_ratio > 0) == bool(segment.text)


def test_a_file_and_its_samples_give_the_same(transcriber, tmp_path):
    samples, buffer = whisper.wave(9_000), io.BytesIO()
    wavfile.write(buffer, 16_000, samples)
    (tmp_path / "a.wav").write_bytes(buffer.getvalue())
    options = {"language": "<|EN|>", "timestamps": True}
    expected = transcriber.transcribe(samples, **options)
    for audio in (buffer.getvalue(), tmp_path / "a.wav", str(tmp_path / "a.wav")):
        assert transcriber.transcribe(audio, **options) == expected


def test_a_job_goes_window_by_window(transcriber):
    options = TranscriptionOptions(language="fr", timestamps=True)
    job, counts = transcriber.begin(whisper.wave(57_123), options), []
    while job.advance():
        counts.append(len(job.segments))
    assert counts == sorted(counts)
    assert len(counts) >= 3
    assert job.result() == transcriber.transcribe(
        whisper.wave(57_123), language="fr", timestamps=True
    )


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"language": "de"}, "language: found 'de'; expected a code such as en, fr"),
        ({"task": "summarise"}, "task: found 'summarise'"),
        ({"prompt": "w1 <|nospeech|>"}, "prompt: found a special token"),
    ],
)
def test_what_the_model_does_not_know_is_refused(transcriber, options, part):
    with pytest.raises(DataError) as error:
        transcriber.transcribe(whisper.wave(100), **options)
    assert part in str(error.value)


def test_a_long_prompt_keeps_its_end(transcriber):
    assert transcriber.prompt_ids(words([1] * 50 + [2])) == [46, *[1] * 18, 2]
    assert transcriber.prompt_ids("  ") == []


def test_a_model_of_english_alone_takes_no_other_language(transcriber):
    speech = transcriber.speech
    generation = {
        key: value
        for key, value in speech.generation.items()
        if key not in ("lang_to_id", "task_to_id", "is_multilingual")
    }
    english = Transcriber(dataclasses.replace(speech, generation=generation))
    assert english.language_id("en") is english.task_id("transcribe") is None
    found = english.transcribe(whisper.wave(9_000))
    assert found.language == "en"
    with pytest.raises(DataError, match="the model's only one"):
        english.transcribe(whisper.wave(9_000), language="fr")
    with pytest.raises(DataError, match="task: found 'translate'"):
        english.transcribe(whisper.wave(9_000), task="translate")


def test_a_pair_at_the_beginning_does_not_decode_a_window_for_ever(transcriber, monkeypatch):
    """Tokens whose last pair of timestamps is at 0.00: transformers would never end."""
    decode = transcriber.decoder.decode

    def stuck(memory, prompt, timestamps):
        found = decode(memory, prompt, timestamps)
        tokens = np.full_like(found.tokens, 40)
        tokens[:5] = [49, 1, 49, 49, 40]
        return found._replace(tokens=tokens, count=np.int32(5))

    monkeypatch.setattr(transcriber.decoder, "decode", stuck)
    found = transcriber.transcribe(whisper.wave(32_001), language="en", timestamps=True)
    assert [s.start for s in found.segments] == [0.0, 1.0]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        # text alone; one timestamp; the window's text ends at a timestamp
        ([7, 8], ([(0.0, 1.0, 2)], 1.0)),
        ([100, 7, 8], ([(0.0, 1.0, 3)], 1.0)),
        ([105, 7, 120], ([(0.0, 0.4, 3)], 1.0)),
        # a pair and an unfinished segment, which is heard again
        ([100, 7, 110, 110, 8], ([(0.0, 0.2, 4)], 0.2)),
        # two pairs, and nothing after the second
        ([100, 7, 110, 112, 8, 120, 120], ([(0.0, 0.2, 3), (0.24, 0.4, 4)], 0.4)),
        # a pair, and a single timestamp at the end
        ([100, 7, 110, 112, 8, 120], ([(0.0, 0.2, 3), (0.24, 0.4, 3)], 1.0)),
    ],
)
def test_timestamps_split_a_window(ids, expected):
    parts, skip = split_by_timestamps(ids, first=100, seconds=1.0)
    found = [(round(p.start, 6), round(p.end, 6), len(p.tokens)) for p in parts]
    assert (found, round(skip, 6)) == expected


def test_every_program_is_compiled_in_warm_up(transcriber):
    transcriber.warm_up()
    programs = transcriber.decoder
    sizes = [p._cache_size() for p in (programs._memory, programs._detect, programs._decode)]
    assert sizes == [1, 1, 2]
    transcriber.transcribe(whisper.wave(9_000), timestamps=True, prompt=words([1] * 9))
    after = [p._cache_size() for p in (programs._memory, programs._detect, programs._decode)]
    assert after == sizes
