"""Whatever the operating system refuses about files, every command ends with one line and exit 2.

The kinds of refusal come from real paths: a file where a directory is to be, a directory where a
file is to be, a place where nothing can be made, a name too long, and a disk that is full.
"""

import shutil

import jax
import pytest
from tests.train.runs import TEXT

from ziggurat.cli.main import main
from ziggurat.data.tokenizers import byte_level
from ziggurat.models import LanguageModel, LlamaConfig
from ziggurat.models.loading import pretrained

TINY = LlamaConfig(vocab_size=257, d_model=16, n_layers=1, n_heads=2, max_sequence_length=64)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What commands read: a model of ours, one of Hugging Face's, and texts."""
    here = tmp_path_factory.mktemp("made")
    model = LanguageModel.build(TINY)
    one = pretrained.Pretrained(model, model.init(jax.random.key(0)), byte_level(), "x", "a test")
    pretrained.save(one, here / "model")
    pretrained.export_hf(one, here / "hf")
    (here / "tiny.toml").write_text(TEXT)
    return here


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: devices)
    (tmp_path / "plain").write_text("in the way")
    (tmp_path / "adirectory").mkdir()
    (tmp_path / "adirectory" / "full").write_text("")
    return tmp_path


WRITING = {
    "train": ["train", "tiny.toml", "--set", "output={}"],
    "data prepare": ["data", "prepare", "tiny.toml", "--set", "output={}"],
    "import hf": ["import", "hf", "hf", "--verify", "never", "--output", "{}"],
    "export hf": ["export", "hf", "model", "--output", "{}"],
    "export weights": ["export", "weights", "model", "--to", "safetensors", "--output", "{}"],
    "quantize": ["quantize", "model", "--recipe", "int8", "--output", "{}"],
}
PLACES = {
    "below a file": "plain/out",
    "nowhere": "/proc/nope/out",
    "too long": "x" * 300,
}


def one_line(capsys) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, lines[-5:]
    assert lines[-1] == errors[0], lines[-5:]
    return errors[0]


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("args", WRITING.values(), ids=WRITING)
def test_a_place_that_cannot_be_written_to(args, place, here, capsys):
    assert main([arg.format(place) for arg in args]) == 2
    line = one_line(capsys)
    assert place.split("/out")[0][:100] in line, line
    assert "expected" in line


READING = {
    "train": ["train", "{}"],
    "plan": ["plan", "{}", "--topology", "v5e:2x2"],
    "data stats": ["data", "stats", "{}"],
    "import hf": ["import", "hf", "{}", "--output", "out"],
    "import gguf": ["import", "gguf", "{}", "--output", "out"],
    "import weights": ["import", "weights", "{}", "--config", "hf", "--output", "out"],
    "export hf": ["export", "hf", "{}", "--output", "out"],
    "export weights": ["export", "weights", "{}", "--to", "pt", "--output", "out"],
    "eval": ["eval", "model", "--text", "{}"],
    "quantize": ["quantize", "{}", "--recipe", "int8", "--output", "out"],
    "recipe": ["quantize", "model", "--recipe", "{}.toml", "--output", "out"],
    "checkpoints": ["checkpoints", "{}"],
    "profile": ["profile", "{}"],
    "generate": ["generate", "{}", "--prompt", "x"],
    "chat": ["chat", "{}"],
    "sample": ["sample", "{}", "--grid", "out.png"],
    "serve": ["serve", "{}", "--port", "0"],
    "cluster status": ["cluster", "status", "{}"],
}
WRONG = ("missing", "plain", "adirectory", "plain/below", "x" * 300, "loop")


@pytest.mark.parametrize("args", READING.values(), ids=READING)
def test_a_path_that_cannot_be_read(args, here, capsys):
    """Missing, of the wrong kind, below a file, too long, a loop of links."""
    (here / "loop").symlink_to("loop")
    for path in WRONG:
        assert main([arg.format(path) for arg in args]) == 2, path
        one_line(capsys)
    assert not (here / "out").exists()


@pytest.mark.parametrize(
    ("args", "where"),
    [
        (["train", "tiny.toml"], "runs/cache/tokens-"),
        (["data", "prepare", "tiny.toml"], "runs/cache/tokens-"),
        (["export", "hf", "model", "--output", "out"], "out"),
        (["import", "hf", "hf", "--verify", "never", "--output", "out"], "out"),
        (["quantize", "model", "--recipe", "int8", "--output", "out"], "out"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_a_disk_that_is_full(args, where, here, capsys, monkeypatch):
    """Every write fails as on a full disk; Python names no file then, the line does."""
    import numpy as np

    from ziggurat.core import atomic

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    monkeypatch.setattr(np, "save", full)
    monkeypatch.setattr(atomic, "commit_directory", full)
    monkeypatch.setattr("ziggurat.checkpoint.saving.time.sleep", lambda *_: None, raising=False)
    assert main(args) == 2
    line = one_line(capsys)
    assert "No space left on device" in line
    assert where in line, line
