"""A tokenizer with more tokens than its model has embeddings loads with a warning, and a text that
contains such a token is refused wherever texts go in."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from ziggurat.cli.main import main
from ziggurat.core.errors import DataError, ZigguratError
from ziggurat.data.tokenizers import byte_level
from ziggurat.models import BertConfig, EncoderModel, LanguageModel, LlamaConfig, TextEmbedder
from ziggurat.models.conversion.sentence_layout import SentenceConfig
from ziggurat.models.loading import pretrained, pretrained_encoder

BEYOND = "<|im_start|>"
CONFIG = LlamaConfig(vocab_size=257, d_model=16, n_layers=1, n_heads=2, max_sequence_length=64)
RUN = """
name = "tuned"
output = "{out}"
model = {{ kind = "pretrained", path = "{model}" }}
optimizer = {{ kind = "adamw", lr = 1e-3 }}
train = {{ steps = 1 }}

[data]
sources = [{{ kind = "text", path = "{out}", glob = "*.txt" }}]
sequence_length = 16
batch_size = 8
"""


def drawn(abstract):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), abstract)


def larger(directory):
    """Two tokens more in a directory's tokenizer than its model knows."""
    file = directory / "tokenizer.json"
    made = tokenizers.Tokenizer.from_file(str(file))
    made.add_special_tokens([BEYOND, "<|im_end|>"])
    made.save(str(file))
    return directory


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    model = LanguageModel.build(CONFIG)
    made = pretrained.Pretrained(model, drawn(model.abstract), byte_level(), "tiny", "drawn")
    directory = tmp_path_factory.mktemp("model") / "hf"
    return larger(pretrained.export_hf(made, directory))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    model = EncoderModel.build(BertConfig(vocab_size=257, d_model=16, n_layers=1, n_heads=2))
    made = pretrained_encoder.PretrainedEncoder(
        model,
        drawn(model.abstract),
        byte_level(),
        SentenceConfig(max_length=32, pooling="mean", normalize=True),
        "encoder",
        "drawn",
    )
    directory = tmp_path_factory.mktemp("encoder") / "hf"
    return larger(pretrained_encoder.export_hf(made, directory))


def test_every_way_in_warns(published, encoder, tmp_path, capsys):
    """A directory, the checkpoint that import makes of it, and both kinds of encoders."""
    for kind, source, read in (
        ("model", published, pretrained.load),
        ("encoder", encoder, pretrained_encoder.load),
    ):
        output = tmp_path / kind
        assert main(["import", "hf", str(source), "--output", str(output), "--verify=never"]) == 0
        read(output)
        told = [line for line in capsys.readouterr().err.splitlines() if BEYOND in line]
        assert len(told) == 2, "once for the source, once for the checkpoint"
        assert all("2 tokens of the tokenizer are beyond" in line for line in told)


@pytest.mark.parametrize(
    "command",
    [
        "generate {model} --max-tokens 2 --max-sequence-length 32 --prompt a<|im_start|>b",
        "eval {model} --text {out}/text.txt --tokens 16",
        "quantize {model} --recipe int8 --output {out}/q --report --text {out}/text.txt",
        "train {out}/run.toml",
    ],
    ids=lambda command: command.split()[0],
)
def test_a_text_with_such_a_token_is_refused(command, published, tmp_path, capsys, monkeypatch):
    (tmp_path / "text.txt").write_text(f"some words {BEYOND} and more " * 40)
    (tmp_path / "run.toml").write_text(RUN.format(out=tmp_path, model=published))
    assert main(command.format(model=published, out=tmp_path).split()) == 2
    error = capsys.readouterr().err
    assert "257" in error, "the token, or how many there may be"
    assert not (tmp_path / "q").exists()


def test_a_text_for_an_encoder(encoder):
    embedder = TextEmbedder.load(encoder)
    assert embedder.vocab_size == 257
    with pytest.raises(DataError, match="token 257; expected ids of 0 to 256"):
        embedder.embed(embedder.encode([f"a{BEYOND}b"]))


def test_a_server_of_embeddings_answers_400(encoder):
    """The service refuses what the encoder has no row for, before it is queued."""
    from prometheus_client import CollectorRegistry

    from ziggurat.serve.llm.metrics import Metrics
    from ziggurat.serve.openai.embeddings import EmbeddingService

    embedder = TextEmbedder.load(encoder)
    service = EmbeddingService(embedder, embedder.tokenizer, "e", Metrics(CollectorRegistry()))
    asked = json.dumps({"model": "e", "input": f"a{BEYOND}b"}).encode()
    with pytest.raises(ZigguratError, match="257"):
        service._ids(asked)


def test_what_has_no_such_token_is_computed(published):
    loaded = pretrained.load(published)
    ids = loaded.tokenizer.encode("plain")
    assert np.isfinite(loaded.model.logits(loaded.params, jnp.array([ids]))).all()
    assert json.loads((published / "config.json").read_text())["vocab_size"] == 257
