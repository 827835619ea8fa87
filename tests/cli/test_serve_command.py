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
import numpy as np
import pytest
from tests.oracle import minilm

from ziggurat.cli import main, serve
from ziggurat.core.errors import ConfigError
from ziggurat.data.tokenizers import byte_level
from ziggurat.models import LanguageModel, LlamaConfig
from ziggurat.models.loading import pretrained


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


FEW = ["--max-running", "1", "--max-batched-tokens", "16", "--max-sequence-length", "48"]
"""Options that leave few programs to compile."""


@pytest.mark.slow
def test_warm_only_fills_the_cache_for_the_next_start(saved, tmp_path, capsys):
    options = [str(saved), *FEW, "--port", "0", "--compile-cache", str(tmp_path), "--warm-only"]
    for loaded in (False, True):
        assert serve.main(options) == 0
        opening, told = capsys.readouterr().out.splitlines()
        assert opening == "tiny: context 48 tokens, compiling"
        count = int(told.split()[1])
        assert count > 3
        assert told.endswith(f", {count if loaded else 0} of them from the cache")


@pytest.mark.slow
def test_a_server_process_answers_those_with_a_key_and_drains(saved, monkeypatch):
    monkeypatch.setenv("ZIGGURAT_API_KEY", "sesame")
    options = [str(saved), *FEW, "--port", "0", "--name", "mine", "--access-log"]
    program = f"import sys; from ziggurat.cli.serve import main; sys.exit(main({options!r}))"
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        assert lines[0] == "mine: context 48 tokens, compiling\n"
        assert lines[1].startswith("compiled ")
        assert lines[2].startswith("serving mine on http://127.0.0.1:")
        url = lines[2].split(" on ")[1].strip()
        body = json.dumps({"model": "mine", "prompt": "ab", "max_tokens": 4}).encode()
        request = urllib.request.Request(
            url + "/completions", body, {"authorization": "Bearer sesame"}
        )
        for attempt in range(200):  # the line is printed just before the socket listens
            try:
                answer = urllib.request.urlopen(request, timeout=60)
                break
            except urllib.error.URLError:
                assert attempt < 199
                assert process.poll() is None
                time.sleep(0.05)
        assert json.loads(answer.read())["usage"]["prompt_tokens"] == 2
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(url + "/completions", body, timeout=60)
        assert refused.value.code == 401
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0
        records = [json.loads(line) for line in errors.splitlines() if line.startswith("{")]
        assert [(r["path"], r["status"]) for r in records] == [
            ("/v1/completions", 200),
            ("/v1/completions", 401),
        ]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def command(monkeypatch):
    monkeypatch.setitem(main.COMMANDS, "serve", "a command of this test")


def test_a_port_in_use_is_told_before_the_model_is_read(command, tmp_path, capsys):
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
        (["--warm-only"], "--warm-only: found no --compile-cache"),
        (["--api-key", "a b"], "--api-key: found a key; expected visible ASCII"),
        (["--allowed-origins", "https://a.example/x"], "--allowed-origins: found https://a.exam"),
        (["--max-batched-tokens", "4"], "max_batched_tokens: found 4, expected at least max_run"),
    ],
)
def test_errors_are_one_line_and_exit_2(command, tmp_path, options, said, capsys):
    assert main.main(["serve", str(tmp_path / "no-model"), "--port", "0", *options]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as stop:
        serve.main(["--help"])
    assert stop.value.code == 0
    assert "example:" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(minilm.directory() is None, reason=f"package {minilm.PACKAGE}")
def test_minilm_through_the_openai_client_equals_its_own_vectors():
    """Tolerance 2e-6 on vectors of length one: sums in another order."""
    openai = pytest.importorskip("openai")
    options = [str(minilm.directory()), "--port", "0", "--name", "minilm"]
    program = f"import sys; from ziggurat.cli.serve import main; sys.exit(main({options!r}))"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        assert lines[0] == "minilm: 384 numbers a text of 256 tokens\n"
        url = lines[2].removeprefix("serving minilm on ").strip()
        _, vectors = minilm.load()
        with openai.OpenAI(base_url=url, api_key="none", max_retries=5) as client:
            with pytest.raises(openai.BadRequestError, match="602 tokens; expected at most 256"):
                client.embeddings.create(model="minilm", input=list(minilm.TEXTS))
            short = [text for text in minilm.TEXTS if len(text) < 1000]
            answer = client.embeddings.create(model="minilm", input=short)
            assert [model.id for model in client.models.list()] == ["minilm"]
        found = np.asarray([entry.embedding for entry in answer.data])
        kept = [len(text) < 1000 for text in minilm.TEXTS]
        np.testing.assert_allclose(found, vectors[kept], atol=2e-6, rtol=0)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()


def test_what_does_not_go_with_an_encoder_is_refused(saved):
    if minilm.directory() is not None:
        with pytest.raises(ConfigError, match="--max-running: found 3; expected no such option"):
            serve.main([str(minilm.directory()), "--max-running", "3"])
    with pytest.raises(ConfigError, match=r"--embedder: found .* a directory of an encoder"):
        serve.main([str(saved), *FEW, "--embedder", str(saved), "--port", "0"])


@pytest.fixture
def damaged(tmp_path):
    """An encoder's directory without its weights."""
    directory = tmp_path / "encoder"
    directory.mkdir()
    fields = {"model_type": "bert", "vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 1,
              "num_attention_heads": 2, "intermediate_size": 8, "max_position_embeddings": 16,
              "architectures": ["BertModel"]}  # fmt: skip
    (directory / "config.json").write_text(json.dumps(fields))
    return directory


def test_a_damaged_model_does_not_keep_another_from_being_served(saved, damaged, tmp_path, capsys):
    cache = ["--compile-cache", str(tmp_path / "cache"), "--warm-only", "--port", "0"]
    assert serve.main([str(saved), *FEW, *cache, "--embedder", str(damaged)]) == 0
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert shown.err.endswith("; it is not served\n")
    assert shown.err.count("\n") == 1
    assert "tiny: context 48 tokens" in shown.out


def test_a_server_with_nothing_to_serve_ends(command, damaged, tmp_path, capsys):
    missing = str(tmp_path / "no-model")
    assert main.main(["serve", missing, "--port", "0", "--embedder", str(damaged)]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: model {missing}: found no")
