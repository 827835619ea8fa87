"""``ziggurat serve`` as a process: it says where it is, answers, and ends on SIGTERM."""

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import jax
import pytest

from ziggurat.cli import main, serve
from ziggurat.data.tokenizers import byte_level
from ziggurat.models import LanguageModel, LlamaConfig, pretrained


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model") / "tiny"
    config = LlamaConfig(vocab_size=257, d_model=16, n_layers=1, n_heads=2, max_sequence_length=64)
    model = LanguageModel.build(config)
    made = pretrained.Pretrained(
        model, model.init(jax.random.key(0)), byte_level(), "tiny", "a test"
    )
    pretrained.save(made, directory)
    return directory


def test_a_server_process_answers_and_drains(saved):
    program = f"import sys; from ziggurat.cli.serve import main; sys.exit(main({[str(saved)]!r} + "
    options = ["--port", "0", "--name", "mine", "--max-sequence-length", "48"]
    process = subprocess.Popen(
        [sys.executable, "-c", f"{program}{options!r}))"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        assert lines[0] == "mine: context 48 tokens, compiling\n"
        assert lines[1].startswith("compiled 6 programs in ")
        assert lines[2].startswith("serving mine on http://127.0.0.1:")
        url = lines[2].split(" on ")[1].strip()
        body = json.dumps({"model": "mine", "prompt": "ab", "max_tokens": 4}).encode()
        for attempt in range(200):  # the line is printed just before the socket listens
            try:
                answer = urllib.request.urlopen(url + "/completions", body, timeout=60)
                break
            except urllib.error.URLError:
                assert attempt < 199
                assert process.poll() is None
                time.sleep(0.05)
        assert json.loads(answer.read())["usage"]["prompt_tokens"] == 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def verb(monkeypatch):
    monkeypatch.setitem(main.VERBS, "serve", "a verb of this test")


def test_a_port_in_use_is_told_before_the_model_is_read(verb, tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main.main(["serve", str(tmp_path / "no-model"), "--port", port]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: address 127.0.0.1:{port}: found Address already in use")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "no such file or directory"),
        (["--max-queue", "0"], "max_queue: found 0, expected a number >= 1"),
        (["--drain-seconds", "-1"], "--drain-seconds: found -1; expected 0 or more"),
        (["--port", "70000"], "port: found 70000"),
    ],
)
def test_errors_are_one_line_and_exit_2(verb, tmp_path, options, said, capsys):
    assert main.main(["serve", str(tmp_path / "no-model"), "--port", "0", *options]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as stop:
        serve.main(["--help"])
    assert stop.value.code == 0
    assert "example:" in capsys.readouterr().out
