"""Bad input on the command line: one line that says what, found, expected, what to do; exit 2."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
from tests.train.runs import TEXT

from ziggurat.cli.main import main


@pytest.fixture(autouse=True)
def one_device(monkeypatch, request):
    if "mesh" not in request.node.name:
        devices = jax.devices()[:1]
        monkeypatch.setattr(jax, "devices", lambda *_: devices)


@pytest.fixture
def fail(capsys, tmp_path):
    """Run a command that must fail, and return the one line it leaves."""

    def run(*args: str) -> str:
        capsys.readouterr()
        assert main(list(args)) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        assert len(errors) == 1, lines
        assert lines[-1] == errors[0], "the error must be the last word, with no traceback"
        return errors[0]

    return run


@pytest.fixture
def run_file(tmp_path):
    file = tmp_path / "tiny.toml"
    file.write_text(TEXT)
    return file


def train(run_file, *overrides: str) -> list[str]:
    directory = run_file.parent
    return ["train", str(run_file), f"--set=output={directory}/runs", *overrides]


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["--train.stepz=5"], ["train.stepz: unknown key", "did you mean steps?"]),
        (["--optimizer.lr='fast'"], ["optimizer.lr: found 'fast'", "valid number"]),
        (["--train.steps=0"], ["train.steps: found 0", "a number >= 1"]),
        (["--optimizer.kind=adam"], ["optimizer.kind: found 'adam'", "did you mean adamw?"]),
        (
            ["--train.stepz=5", "--model.d_modle=3"],
            ["train.stepz: unknown key", "model.d_modle: unknown key, did you mean d_model?"],
        ),
        (["--model.n_heads=5"], ["model.d_model: found 32", "a multiple of 5 heads"]),
        (["--model.vocab_size=100"], ["model.vocab_size: found 100", "at least 257", "tokenizer"]),
        (["--data.epochs=1", "--train.steps=100000"], ["train.steps: found 100000", "data.epochs"]),
        (["--train.attention=flash"], ["attention implementation: found 'flash'", "grouped"]),
        (["--optimizer.no_decay=['nothing.like.it']"], ["nothing.like.it"]),
    ],
)
def test_run_file(fail, run_file, overrides, parts):
    line = fail(*train(run_file, *overrides))
    for part in parts:
        assert part in line, line


def test_missing_run_file(fail, tmp_path):
    line = fail("train", str(tmp_path / "none.toml"))
    assert "none.toml: found no such file" in line


def test_broken_toml(fail, run_file):
    run_file.write_text("name = \n")
    assert "valid TOML" in fail(*train(run_file))


def test_missing_data(fail, run_file, tmp_path):
    source = f"--set=data.sources=[{{kind='text', path='{tmp_path}/nowhere'}}]"
    assert "nowhere" in fail(*train(run_file, source))


def test_empty_corpus(fail, run_file, tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "empty.txt").write_text("")
    source = f"--set=data.sources=[{{kind='text', path='{tmp_path}/corpus'}}]"
    line = fail(*train(run_file, source))
    assert "corpus" in line
    assert "expected" in line


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("--mesh.fsdp=3", ["mesh: found fsdp=3", "a product of 8 devices"]),
        ("--mesh.tensor=4", ["kv_heads = 2", "a multiple of 4 (tensor=4)"]),
        ("--data.batch_size=12", ["batch = 12", "a multiple of 8"]),
        ("--mesh.pipeline=2", ["mesh.pipeline: found 2"]),
    ],
)
def test_mesh_that_does_not_divide(fail, run_file, override, parts):
    line = fail(*train(run_file, override))
    for part in parts:
        assert part in line, line


def test_checkpoint_of_another_shape(fail, run_file, capsys):
    assert main(train(run_file, "--train.steps=2")) == 0
    run = run_file.parent / "runs" / "tiny"
    saved = run / "run.toml"
    saved.write_text(saved.read_text().replace("d_ff = 64", "d_ff = 128"))
    line = fail(*train(run_file, "--train.steps=3", "--model.d_ff=128"))
    assert "mlp" in line
    assert "64" in line
    assert "128" in line
    # the run's other settings changed: named before anything is read
    line = fail(*train(run_file, "--train.steps=3", "--model.d_ff=256"))
    assert "model.d_ff = 256; expected model.d_ff = 128" in line
    assert "give the run another name" in line


def hf_directory(path, **changes):
    values = dict(
        architectures=["LlamaForCausalLM"],
        model_type="llama",
        vocab_size=16,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    path.mkdir()
    (path / "config.json").write_text(json.dumps(values | changes))
    return path


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (
            dict(architectures=["LlamaForCausalLN"]),
            ["LlamaForCausalLN", "did you mean LlamaForCausalLM?"],
        ),
        (dict(hidden_act="mish"), ["hidden_act: found 'mish'", "silu"]),
        (dict(is_causal=False), ["is_causal: found False"]),
        (
            dict(rope_scaling={"rope_type": "longrope"}),
            ["of type longrope", "short_factor"],
        ),
        (dict(use_mup=True), ["config.json: use_mup: found True"]),
    ],
)
def test_unknown_architecture_or_switch(fail, tmp_path, changes, parts):
    source = hf_directory(tmp_path / "hf", **changes)
    line = fail("import", "hf", str(source), "--output", str(tmp_path / "out"))
    for part in parts:
        assert part in line, line
    assert not (tmp_path / "out").exists()


def test_truncated_safetensors(fail, tmp_path):
    source = hf_directory(tmp_path / "hf")
    file = source / "model.safetensors"
    safetensors.numpy.save_file({"model.norm.weight": np.ones(8, np.float32)}, file)
    line = fail("import", "hf", str(source), "--output", str(tmp_path / "out"))
    assert "tensor " in line
    assert "absent" in line
    file.write_bytes(file.read_bytes()[:-7])
    line = fail("import", "hf", str(source), "--output", str(tmp_path / "out"))
    assert "model.safetensors" in line


def test_not_a_gguf_file(fail, tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"not a model" * 100)
    line = fail("import", "gguf", str(file), "--output", str(tmp_path / "out"))
    assert "model.gguf" in line


@pytest.mark.parametrize("command", ["generate", "chat", "serve", "export"])
def test_missing_model(fail, tmp_path, command):
    kind = ["hf"] if command == "export" else []
    more = ["--output", str(tmp_path / "out")] if command == "export" else []
    more += ["--prompt", "x"] if command == "generate" else []
    line = fail(command, *kind, str(tmp_path / "nothing"), *more)
    assert "nothing: found no such file or directory" in line


def test_no_checkpoints(fail, tmp_path):
    assert "no step directory" in fail("checkpoints", str(tmp_path))


def test_unknown_kind(fail, tmp_path):
    assert "found 'onnx'; expected hf, gguf, diffusers or weights" in fail(
        "import", "onnx", str(tmp_path)
    )


def test_debug_shows_the_traceback(tmp_path):
    command = [sys.executable, "-m", "ziggurat.cli.main", "train", str(tmp_path / "no"), "--debug"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode not in (0, 2)
    assert "Traceback" in result.stderr
