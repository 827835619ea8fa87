"""Pairs of texts to scores: cross-encoders, and vectors of both texts."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.models.family_cases import ours
from tests.oracle import families

from ziggurat.core.errors import ModelError
from ziggurat.data import HuggingFaceTokenizer
from ziggurat.formats import write_sharded
from ziggurat.models import CrossEncoder, TextEmbedder, VectorScorer
from ziggurat.models.loading import pretrained_encoder

CASE = "bert/cross-encoder"
PAIRS = [("w4 w5", "w6 w7 w8"), ("w9", "w4"), ("w4 w5", " ".join(f"w{i}" for i in range(10, 60)))]
LIMIT = 40


@pytest.fixture(scope="module")
def backend():
    import tokenizers

    words = {name: i for i, name in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]"])}
    words |= {f"w{i}": i for i in range(4, families.VOCABULARY)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return made


@pytest.fixture(scope="module")
def directory(tmp_path_factory, backend):
    path, stored = tmp_path_factory.mktemp("cross-encoder"), families.load(CASE)
    (path / "config.json").write_text(json.dumps(stored.config))
    write_sharded(path, families.weights(CASE, stored.shapes).items(), 10**9)
    backend.save(str(path / "tokenizer.json"))
    return path


@pytest.mark.slow
def test_a_cross_encoder_scores_pairs_as_its_definition(directory):
    scorer = CrossEncoder.load(directory, max_batch=4)
    scores, tokens = scorer.score(PAIRS)
    rows = [scorer.tokenizer.encode_pair(a, b, LIMIT) for a, b in PAIRS]
    assert rows[0] == ([1, 4, 5, 2, 6, 7, 8, 2], [0] * 4 + [1] * 4)
    assert len(rows[2][0]) == LIMIT
    assert tokens == sum(len(ids) for ids, _ in rows)
    a = ours(CASE)
    for (ids, types), score in zip(rows, scores, strict=True):
        given = jnp.asarray([ids]), jnp.ones((1, len(ids)), int)
        logit = a.model.logits(a.params, *given, token_types=jnp.asarray([types]))
        np.testing.assert_allclose(score, jax.nn.sigmoid(logit[0, 0]), atol=1e-5)


@pytest.mark.parametrize(
    "told",
    [
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}},
        {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
    ],
)
def test_the_config_says_what_becomes_of_the_logit(directory, tmp_path, told):
    stored = families.load(CASE)
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(stored.config | told))
    plain = CrossEncoder.load(directory, max_batch=1).score(PAIRS[:1])[0]
    found = CrossEncoder.load(tmp_path, max_batch=1).score(PAIRS[:1])[0]
    np.testing.assert_allclose(jax.nn.sigmoid(found), plain, atol=1e-6)
    assert found.max() < 0 or found.max() > 1 or found != pytest.approx(plain)
    other = {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh"}}
    (tmp_path / "config.json").write_text(json.dumps(stored.config | other))
    with pytest.raises(ModelError, match="activation_fn"):
        pretrained_encoder.load(tmp_path)


def test_import_and_export_keep_the_head(directory, tmp_path):
    encoder = pretrained_encoder.load(directory)
    pretrained_encoder.save(encoder, tmp_path / "made")
    pretrained_encoder.export_hf(encoder, tmp_path / "out")
    for path in (tmp_path / "made", tmp_path / "out"):
        again = pretrained_encoder.load(path)
        assert (again.model.config, again.sentence) == (encoder.model.config, encoder.sentence)
        jax.tree.map(np.testing.assert_array_equal, again.params, encoder.params)


def test_encoders_that_score_no_pairs_are_refused(directory, tmp_path):
    stored = families.load("bert/plain")
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(stored.config))
    write_sharded(tmp_path, families.weights("bert/plain", stored.shapes).items(), 10**9)
    with pytest.raises(ModelError, match="without a head over texts"):
        CrossEncoder.load(tmp_path)
    scorer = VectorScorer(TextEmbedder.load(tmp_path, max_batch=4))
    scores, tokens = scorer.score([("w4 w5", "w4 w5"), ("w4 w5", "w60")])
    assert scores[0] == pytest.approx(1.0, abs=1e-6)
    assert abs(scores[1]) < 0.99
    assert tokens == 4 + 3


def test_cutting_a_pair_is_what_the_library_does(backend):
    tokenizer = HuggingFaceTokenizer(type(backend).from_str(backend.to_str()))
    for a, b in ((3, 30), (30, 3), (30, 31), (9, 9), (1, 1), (14, 15)):
        first, second = (" ".join(["w4"] * a), " ".join(["w5"] * b))
        for limit in (5, 8, 16, 17, 31):
            backend.enable_truncation(limit, strategy="longest_first")
            expected = backend.encode(first, second)
            assert tokenizer.encode_pair(first, second, limit) == (
                expected.ids,
                expected.type_ids,
            ), (a, b, limit)
    backend.no_truncation()
