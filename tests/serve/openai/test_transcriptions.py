"""``/v1/audio/transcriptions`` and ``/v1/audio/translations``, asked by OpenAI's client."""

import io
import json
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from scipy.io import wavfile
from tests.oracle import whisper
from tests.serve.conftest import serving

from ziggurat.models.transcriber import Transcriber
from ziggurat.serve.composition import Recognizer, openai_parts
from ziggurat.serve.openai import transcriptions

openai = pytest.importorskip("openai")


@pytest.fixture(scope="module")
def transcriber(tmp_path_factory):
    return Transcriber.load(whisper.directory(tmp_path_factory.mktemp("whisper") / "tiny"))


@pytest.fixture(scope="module")
def server(transcriber):
    registry = CollectorRegistry()
    parts = openai_parts(registry, recognizer=Recognizer("tiny", transcriber))
    with serving(parts, registry) as made:
        yield made


@pytest.fixture(scope="module")
def client(server):
    base = server.url + "/v1"
    with openai.OpenAI(base_url=base, api_key="none", max_retries=0, timeout=120) as made:
        yield made


def wav(samples):
    buffer = io.BytesIO()
    wavfile.write(buffer, 16_000, whisper.wave(samples))
    return "speech.wav", buffer.getvalue(), "audio/wav"


def test_every_form_of_answer(client, transcriber):
    file, audio = wav(16_000), whisper.wave(16_000)
    timed = transcriber.transcribe(audio, language="en", timestamps=True)
    plain = transcriber.transcribe(audio, language="en")
    assert len(timed.segments) > 1

    def ask(form):
        return client.audio.transcriptions.create(
            model="tiny", file=file, language="en", response_format=form, temperature=0
        )

    assert ask("json").text == plain.text
    assert ask("text") == plain.text + "\n"
    found = ask("verbose_json")
    assert (found.text, found.language, found.duration) == (timed.text, "en", 1.0)
    for one, segment in zip(found.segments, timed.segments, strict=True):
        assert (one.start, one.end, one.text) == (segment.start, segment.end, segment.text)
        assert tuple(one.tokens) == segment.tokens
        assert one.avg_logprob == pytest.approx(segment.avg_logprob, abs=1e-5)
        assert one.temperature == 0
    assert ask("srt").startswith("1\n00:00:00,240 --> 00:00:00,560\nw18\n\n2\n")
    assert ask("vtt").startswith("WEBVTT\n\n00:00:00.240 --> 00:00:00.560\nw18\n")


def test_translations_prompts_and_detected_languages(client, transcriber):
    audio = whisper.wave(12_000)
    translated = client.audio.translations.create(
        model="tiny", file=wav(12_000), response_format="verbose_json"
    )
    expected = transcriber.transcribe(audio, task="translate", timestamps=True)
    assert translated.text == expected.text
    assert translated.language == "en"
    found = client.audio.transcriptions.create(
        model="tiny",
        file=wav(12_000),
        prompt="w1 w2 w3",
        response_format="verbose_json",
        timestamp_granularities=["segment"],
    )
    expected = transcriber.transcribe(audio, prompt="w1 w2 w3", timestamps=True)
    assert (found.text, found.language) == (expected.text, expected.language)


@pytest.mark.parametrize(
    ("change", "param", "part"),
    [
        ({"file": ("a.mp3", b"ID3\x04" + bytes(99))}, "file", "a file of MP3"),
        ({"file": ("a.wav", b"RIFF")}, "file", "no audio known"),
        ({"language": "de"}, "language", "found 'de'"),
        ({"response_format": "diarized_json"}, "response_format", "verbose_json"),
        ({"temperature": 0.5}, "temperature", "decoding is greedy"),
        ({"temperature": 0, "stream": True}, "stream", "expected false"),
        ({"timestamp_granularities": ["segment"]}, "timestamp_granularities", "verbose_json"),
        (
            {"timestamp_granularities": ["word"], "response_format": "verbose_json"},
            "timestamp_granularities",
            "times of words",
        ),
        ({"prompt": "<|nospeech|>"}, "prompt", "special token"),
        ({"include": ["logprobs"]}, "include[]", "unknown or not applied"),
    ],
)
def test_what_is_not_applied_is_refused_by_name(client, change, param, part):
    asked = {"model": "tiny", "file": wav(1000)} | change
    with pytest.raises(openai.BadRequestError) as error:
        client.audio.transcriptions.create(**asked)
    assert error.value.param == param
    assert part in error.value.message


def test_other_models_bodies_and_methods_are_refused(server, client):
    with pytest.raises(openai.NotFoundError, match="model served, tiny"):
        client.audio.transcriptions.create(model="other", file=wav(1000))
    assert [model.id for model in client.models.list()] == ["tiny"]
    path = server.url + "/v1/audio/transcriptions"
    request = urllib.request.Request(path, json.dumps({"model": "tiny"}).encode())
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(request, timeout=60)
    assert error.value.code == 400
    assert "multipart/form-data" in json.loads(error.value.read())["error"]["message"]


def test_limits_on_bytes_and_duration(server, client, monkeypatch):
    large = ("a.wav", bytes(transcriptions.MOST_BYTES), "audio/wav")
    with pytest.raises(openai.APIStatusError) as error:
        client.audio.transcriptions.create(model="tiny", file=large)
    assert error.value.status_code == 413
    monkeypatch.setattr(transcriptions, "MOST_SECONDS", 0.5)
    with pytest.raises(openai.BadRequestError, match=r"1\.0 seconds; expected at most 0"):
        client.audio.transcriptions.create(model="tiny", file=wav(16_000))


class Slow:
    """A model of which every window takes until it is let go on."""

    def __init__(self):
        self.windows, self.turn = 0, threading.Semaphore(0)

    def begin(self, audio, options, most_seconds):
        return self

    size = 0

    def advance(self):
        assert self.turn.acquire(timeout=60)
        self.windows += 1
        return True

    def result(self):
        raise AssertionError


def test_the_loop_answers_meanwhile_and_a_client_that_goes_ends_its_work():
    registry, slow = CollectorRegistry(), Slow()
    with serving(openai_parts(registry, recognizer=Recognizer("slow", slow)), registry) as server:

        def ask():
            base = server.url + "/v1"
            with openai.OpenAI(base_url=base, api_key="x", max_retries=0, timeout=2) as client:
                client.audio.transcriptions.create(model="slow", file=wav(100))

        failures = []

        def run():
            try:
                ask()
            except openai.APITimeoutError as error:
                failures.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        slow.turn.release()
        with urllib.request.urlopen(server.url + "/health", timeout=60) as response:
            assert response.status == 200
        thread.join(60)
        assert len(failures) == 1
        # windows end as long as another one begins: until the server has seen that nobody waits
        for _ in range(100):
            before = slow.windows
            slow.turn.release()
            time.sleep(0.2)
            if slow.windows == before:
                break
        assert slow.windows == before, "the transcription went on for nobody"


def test_figures_are_exported(server, client):
    client.audio.transcriptions.create(model="tiny", file=wav(1000), language="en")
    with urllib.request.urlopen(server.url + "/metrics", timeout=60) as response:
        lines = response.read().decode().splitlines()
    (line,) = [li for li in lines if li.startswith("vllm:generation_tokens_total")]
    assert float(line.rpartition(" ")[2]) > 0
    assert np.isfinite(float(line.rpartition(" ")[2]))
