"""What ``ziggurat cluster`` says to commands that cannot be; what it does is in tests/cluster."""

import pytest

from ziggurat.cli.main import main

RUN = """
name = "small"
model = { kind = "llama", vocab_size = 257, d_model = 32, n_layers = 1, n_heads = 2 }
tokenizer = { kind = "bytes" }
data = { sources = [{ kind = "text", path = "." }], sequence_length = 16, batch_size = 8 }
optimizer = { kind = "adamw", lr = 1e-3 }
train = { steps = 4 }
"""


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["rn"], "found 'rn'; expected one of run, resize, status; did you mean run?"),
        (["run", "nowhere.toml", "--hosts", "2"], "nowhere.toml: found no such file"),
        (["run", "small.toml", "--hosts", "0"], "hosts: found 0; expected a number >= 1"),
        (["run", "small.toml", "--hosts", "2", "--bind", "203.0.113.7"], "give --bind an address"),
        (["run", "small.toml", "--hosts", "2", "--address", "a:1"], "expected engine ray with it"),
        (["status", "runs/small"], "runs/small: found no such directory"),
        (["resize", ".", "--hosts", "2"], "found no directory cluster in it"),
    ],
)
def test_one_line_and_exit_code_2(args, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(RUN)
    assert main(["cluster", *args]) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert len(shown.err.strip().splitlines()) == 1
    assert shown.out == ""


def test_help_of_the_commands(capsys):
    for command in ("run", "resize", "status"):
        with pytest.raises(SystemExit) as stop:
            main(["cluster", command, "--help"])
        assert stop.value.code == 0
        assert f"example:\n  ziggurat cluster {command}" in capsys.readouterr().out
