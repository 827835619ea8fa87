"""``ziggurat transcribe``, and ``ziggurat serve`` on a model of speech."""

import json
import signal
import subprocess
import sys

import pytest
from scipy.io import wavfile
from tests.oracle import whisper

import ziggurat
from ziggurat.cli import serve
from ziggurat.cli.main import main
from ziggurat.core.errors import ConfigError
from ziggurat.models.loading.pretrained_speech import PretrainedSpeech


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return whisper.directory(tmp_path_factory.mktemp("whisper") / "tiny")


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    path = tmp_path_factory.mktemp("audio") / "a.wav"
    wavfile.write(path, 16_000, whisper.wave(16_000))
    return path


@pytest.mark.slow
def test_every_format_is_written(tiny, audio, capsys):
    speech = ziggurat.load(tiny)
    assert isinstance(speech, PretrainedSpeech)
    found = ziggurat.transcribe(speech, audio, language="en", timestamps=True)
    tokens = [i for segment in found.segments for i in segment.tokens]
    assert tokens == whisper.load()["second-tokens"].tolist()
    shown = {}
    for form in ("text", "srt", "vtt", "json"):
        options = ["--language", "en", "--format", form]
        assert main(["transcribe", str(tiny), str(audio), *options]) == 0
        shown[form] = capsys.readouterr().out
    assert shown["text"].startswith("w")
    assert shown["text"].endswith("\n")
    assert shown["srt"].startswith("1\n00:00:00,240 --> 00:00:00,560\nw18\n")
    assert shown["vtt"].startswith("WEBVTT\n\n00:00:00.240 --> 00:00:00.560\nw18\n")
    said = json.loads(shown["json"])
    assert (said["text"], said["duration"]) == (found.text, 1.0)
    assert len(said["segments"]) == len(found.segments)


@pytest.mark.parametrize(
    ("options", "part"),
    [(["--language", "de"], "language: found 'de'"), ([], "no audio known")],
)
def test_bad_input_is_one_line(tiny, audio, tmp_path, options, part, capsys):
    text = tmp_path / "a.txt"
    text.write_text("hello")
    path = audio if options else text
    assert main(["transcribe", str(tiny), str(path), *options]) == 2
    error = capsys.readouterr().err
    assert part in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_serve_takes_a_model_of_speech_by_its_kind(tiny, audio):
    openai = pytest.importorskip("openai")
    options = [str(tiny), "--port", "0", "--name", "mine"]
    program = f"import sys; from ziggurat.cli.serve import main; sys.exit(main({options!r}))"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        assert lines[0] == "mine: transcribes in windows of 1 s, compiling\n"
        url = lines[2].removeprefix("serving mine on ").strip()
        with openai.OpenAI(base_url=url, api_key="none", max_retries=5) as client:
            assert [model.id for model in client.models.list()] == ["mine"]
            found = client.audio.transcriptions.create(model="mine", file=audio, language="en")
        assert found.text == ziggurat.transcribe(tiny, audio, language="en").text
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()


def test_options_of_a_language_model_do_not_go_with_it(tiny):
    with pytest.raises(ConfigError, match="expected no such option for a model of speech"):
        serve.main([str(tiny), "--max-running", "3"])
