"""Every command and run-file key that takes a model or data set takes a repository of the hub."""

import json

import jax
import pytest
from tests.hub import lay_out
from tests.train.runs import TEXT

from ziggurat.cli.main import main
from ziggurat.data.tokenizers import byte_level
from ziggurat.models import LanguageModel, LlamaConfig
from ziggurat.models.loading import pretrained

TINY = LlamaConfig(vocab_size=257, d_model=16, n_layers=1, n_heads=2, max_sequence_length=64)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: devices)
    (tmp_path / "tiny.toml").write_text(TEXT)
    return tmp_path / "hub"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    model = LanguageModel.build(TINY)
    made = pretrained.Pretrained(model, model.init(jax.random.key(0)), byte_level(), "x", "a test")
    return pretrained.export_hf(made, tmp_path_factory.mktemp("published") / "tiny")


MODELS = {
    "generate": ["generate", "acme/tiny", "--prompt", "x"],
    "chat": ["chat", "acme/tiny"],
    "serve": ["serve", "acme/tiny", "--port", "0"],
    "serve --embedder": ["serve", "tiny.toml", "--embedder", "acme/tiny", "--port", "0"],
    "import hf": ["import", "hf", "acme/tiny", "--output", "out"],
    "import gguf": ["import", "gguf", "acme/tiny/x.gguf", "--output", "out"],
    "import diffusers": ["import", "diffusers", "acme/tiny", "--output", "out"],
    "import weights": ["import", "weights", "x.pt", "--config", "acme/tiny", "--output", "out"],
    "export hf": ["export", "hf", "acme/tiny", "--output", "out"],
    "export diffusers": ["export", "diffusers", "acme/tiny", "--output", "out"],
    "eval": ["eval", "acme/tiny", "--text", "tiny.toml"],
    "quantize": ["quantize", "acme/tiny", "--recipe", "int8", "--output", "out"],
    "sample": ["sample", "acme/tiny", "--grid", "out.png"],
    "train model": ["train", "tiny.toml", "--set", "model={kind='pretrained',path='acme/tiny'}"],
    "tokenizer": ["train", "tiny.toml", "--set", "tokenizer={kind='load',path='acme/tiny'}"],
}


@pytest.mark.parametrize("args", MODELS.values(), ids=MODELS)
def test_a_model_that_is_nowhere_says_what_to_run(args, cache, capsys, tmp_path):
    (tmp_path / "x.pt").write_bytes(b"")
    assert main(args) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: model acme/tiny"), line
    assert "HF_HUB_OFFLINE is set" in line
    assert "hf download acme/tiny" in line
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "runs" / "tiny").exists()


def test_a_data_set_that_is_nowhere_says_what_to_run(cache, capsys):
    source = "data.sources=[{kind='text',path='acme/corpus'}]"
    assert main(["train", "tiny.toml", "--set", source]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "hf download acme/corpus --repo-type dataset" in line, line


def test_a_model_in_the_cache_is_imported_and_trained_on_a_data_set_in_it(
    cache, published, tmp_path, capsys
):
    lay_out(cache, "acme/tiny", published)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    rows = [json.dumps({"text": f"document {n} of the corpus " * 4}) for n in range(40)]
    (corpus / "rows.jsonl").write_text("\n".join(rows))
    (corpus / "README.md").write_text("a card")
    lay_out(cache, "acme/corpus", corpus, "datasets")
    assert main(["import", "hf", "acme/tiny", "--output", "ours", "--verify", "never"]) == 0
    assert "llama: " in capsys.readouterr().out
    found = pretrained.load("acme/tiny")
    assert found.name == "acme/tiny"
    settings = {
        "model": "{kind='pretrained',path='acme/tiny'}",
        "tokenizer": "{kind='load',path='acme/tiny'}",
        "data.sources": "[{kind='jsonl',path='acme/corpus'}]",
        "train.steps": "1",
    }
    assert main(["train", "tiny.toml", *(f"--set={k}={v}" for k, v in settings.items())]) == 0
    trained = pretrained.load(tmp_path / "runs" / "tiny")
    assert trained.model.config == found.model.config
