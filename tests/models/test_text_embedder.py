"""Texts to vectors: the real MiniLM against stored vectors, and the files that say how."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.models.family_cases import ours
from tests.oracle import families, minilm

from ziggurat.checkpoint import Checkpoints
from ziggurat.cli.main import main
from ziggurat.core.errors import ModelError
from ziggurat.formats import write_sharded
from ziggurat.models import EncoderModel, TextEmbedder
from ziggurat.models.conversion.sentence_layout import SentenceConfig
from ziggurat.models.loading import pretrained, pretrained_encoder
from ziggurat.models.text_embedder import bundle_parts, pooled

CASE = "bert/plain"
MODULES = "sentence_transformers.models."


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A tiny encoder as sentence-transformers saves one: mean, normalised, at most 20 tokens."""
    import tokenizers

    path = tmp_path_factory.mktemp("encoder")
    stored = families.load(CASE)
    (path / "config.json").write_text(json.dumps(stored.config))
    write_sharded(path, families.weights(CASE, stored.shapes).items(), 10**9)
    words = {name: i for i, name in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]"])}
    words |= {f"w{i}": i for i in range(4, families.VOCABULARY)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    backend.save(str(path / "tokenizer.json"))
    kinds = ("Transformer", "Pooling", "Normalize")
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": MODULES + kind}
        for i, kind in enumerate(kinds)
    ]
    (path / "modules.json").write_text(json.dumps(modules))
    (path / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 48, "pooling_mode_mean_tokens": True}
    (path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 20}))
    return path


@pytest.fixture(scope="module")
def embedder(directory):
    return TextEmbedder.load(directory, max_batch=4)


@pytest.mark.slow
@pytest.mark.skipif(minilm.directory() is None, reason=f"package {minilm.PACKAGE}")
def test_the_real_minilm_equals_its_own_vectors():
    """Tolerance 2e-6 on vectors of length one: sums in another order."""
    ids, vectors = minilm.load()
    embedder = TextEmbedder.load(minilm.directory())
    assert (embedder.dimension, embedder.max_length) == (384, 256)
    assert embedder.encode(minilm.TEXTS) == ids
    np.testing.assert_allclose(embedder.embed(ids), vectors, atol=2e-6, rtol=0)


def test_neither_batch_nor_padding_changes_a_vector(embedder):
    assert embedder.lengths == (16, 20)
    texts = ["w4 w5 w6", "w7", " ".join(f"w{i}" for i in range(10, 26)), "w8 w9 w10 w11", "w4", ""]
    ids = embedder.encode(texts)
    together = embedder.embed(ids)
    assert together.dtype == np.float32
    hidden = jax.jit(embedder.encoder.model.hidden)
    for row, vector in zip(ids, together, strict=True):
        tokens = jnp.asarray([row + [95] * (20 - len(row))])
        mask = (jnp.arange(20)[None] < len(row)).astype(jnp.int32)
        states = hidden(embedder.encoder.params, tokens, mask)
        mean = np.asarray(states)[0, : len(row)].mean(0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-6)
    assert embedder.embed([]).shape == (0, 48)


def test_long_texts_lose_their_end_but_not_the_last_special_token(embedder):
    (ids,) = embedder.encode([" ".join(["w9"] * 50)])
    assert ids == [1, *[9] * 18, 2]
    with pytest.raises(ModelError, match="text 1: found 21 tokens; expected 1 to 20"):
        embedder.embed([ids, [*ids, 5]])
    with pytest.raises(ModelError, match="text 0: found 0 tokens"):
        embedder.embed([[]])


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "mean_sqrt_len_tokens", "lasttoken"])
def test_pooling_is_its_definition(pooling):
    states = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    found = pooled(
        jnp.asarray(states), jnp.asarray(mask), SentenceConfig(pooling=pooling, max_length=9)
    )
    for row, count, vector in zip(states, (3, 5), found):
        expected = {
            "mean": row[:count].mean(0),
            "cls": row[0],
            "max": row[:count].max(0),
            "mean_sqrt_len_tokens": row[:count].sum(0) / count**0.5,
            "lasttoken": row[count - 1],
        }
        np.testing.assert_allclose(vector, expected[pooling], rtol=1e-6)


def test_the_bundle_function_takes_any_batch_and_length(embedder):
    function, params, signature = bundle_parts(embedder.encoder)
    assert signature == "tokens:INT32[b,t] mask:INT32[b,t] -> embedding:FP32[b,48]"
    shape = jax.export.symbolic_shape("b, t")
    struct = jax.ShapeDtypeStruct(shape, jnp.int32)
    exported = jax.export.export(jax.jit(function))(params, struct, struct)
    ids = embedder.encode(["w4 w5 w6", "w7"])
    tokens, mask = np.zeros((2, 3, 7), np.int32)
    for i, row in enumerate(ids):
        tokens[i, : len(row)], mask[i, : len(row)] = row, 1
    found = np.asarray(exported.call(params, tokens, mask))
    np.testing.assert_allclose(found[:2], embedder.embed(ids), atol=1e-6)
    assert np.isfinite(found).all(), "a row of padding alone must not spoil a batch"


def test_import_and_export_keep_everything(directory, embedder, tmp_path, capsys):
    """By the commands: to a checkpoint of ours, and from it to files that read the same."""
    made, out = tmp_path / "made", tmp_path / "out"
    assert main(["import", "hf", str(directory), "--output", str(made), "--verify", "never"]) == 0
    assert "texts to 20 tokens, pooling mean, normalised" in capsys.readouterr().out
    assert main(["export", "hf", str(made), "--output", str(out)]) == 0
    ids = embedder.encode(["w4 w5 w6"])
    for path in (made, out):
        again = pretrained_encoder.load(path)
        assert again.model.config == embedder.encoder.model.config
        assert again.sentence == embedder.encoder.sentence
        jax.tree.map(np.testing.assert_array_equal, again.params, embedder.encoder.params)
        assert TextEmbedder(again).encode(["w4 w5 w6"]) == ids
        with pytest.raises(ModelError, match=r"found an encoder \(bert\)"):
            pretrained.load(path)


def test_an_encoder_without_pooler_or_modules(directory, tmp_path):
    shutil.copytree(directory, tmp_path / "bare")
    stored = families.load(CASE)
    tensors = families.weights(CASE, stored.shapes)
    kept = {f"bert.{name}": x for name, x in tensors.items() if "pooler" not in name}
    write_sharded(tmp_path / "bare", kept.items(), 10**9)
    for name in ("modules.json", "sentence_bert_config.json"):
        (tmp_path / "bare" / name).unlink()
    encoder = pretrained_encoder.load(tmp_path / "bare")
    assert encoder.sentence == SentenceConfig(pooling="mean", normalize=False, max_length=40)
    assert isinstance(encoder.model, EncoderModel)
    assert encoder.model.encoder.pooler is None
    np.testing.assert_array_equal(
        encoder.params["input"]["embedding"]["table"],
        ours(CASE).params["input"]["embedding"]["table"],
    )


@pytest.mark.parametrize(
    ("file", "change", "part"),
    [
        ("config.json", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ("config.json", {"is_decoder": True}, "is_decoder"),
        ("sentence_bert_config.json", {"do_lower_case": True}, "do_lower_case"),
        ("config_sentence_transformers.json", {"default_prompt_name": "q"}, "default_prompt_name"),
        ("1_Pooling/config.json", {"pooling_mode_cls_token": True}, "pooling mode"),
        ("1_Pooling/config.json", {"word_embedding_dimension": 5}, "found 5; expected 48"),
        ("modules.json", [{"idx": 0, "type": MODULES + "Transformer"}], "modules.json"),
        ("modules.json", [{"type": MODULES + kind} for kind in ("Transformer", "Pooling", "Dense")],
         "Transformer, Pooling, Dense"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_is_not_implemented_is_refused(directory, tmp_path, file, change, part):
    shutil.copytree(directory, tmp_path / "changed")
    path = tmp_path / "changed" / file
    old = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(change if isinstance(change, list) else old | change))
    with pytest.raises(ModelError) as caught:
        pretrained_encoder.load(tmp_path / "changed")
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_step_from_before_encoders_were_configured_loads(directory, embedder, tmp_path):
    """Its input's parts lay beside the blocks, and the pooler's layer had no name of its own."""
    path = pretrained_encoder.save(embedder.encoder, tmp_path / "made")
    old = dict(embedder.encoder.params)
    parts = old.pop("input")
    old["pooler"] = old["pooler"]["dense"]
    old |= {"embedding_norm": parts["norm"]}
    old |= {name: parts[name] for name in ("embedding", "positions", "token_types")}
    files: dict[str, bytes | Path] = {
        str(file.relative_to(path)): file
        for file in path.rglob("*")
        if file.is_file() and file.parts[len(path.parts)] in ("tokenizer", "model.json")
    }
    files["sentence.json"] = b'{"pooling": "mean", "normalize": true, "max_length": 20}'
    with Checkpoints(tmp_path / "old") as checkpoints:
        checkpoints.save(0, {"params": old}, {}, files)
    again = pretrained_encoder.load(tmp_path / "old")
    assert again.sentence == embedder.encoder.sentence
    jax.tree.map(np.testing.assert_array_equal, again.params, embedder.encoder.params)
