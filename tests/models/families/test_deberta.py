"""DeBERTa-v2 and v3: what surrounds the logits, which the tables of cases compare."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tests.models.family_cases import ours
from tests.oracle import families

from ziggurat.core.errors import ModelError, ShapeError
from ziggurat.formats import write_sharded
from ziggurat.models import CrossEncoder, DebertaV2Config, EncoderModel, family_for_config
from ziggurat.models.loading import pretrained_encoder
from ziggurat.models.text_embedder import TextEmbedder, bundle_parts
from ziggurat.nn.attention_context import Causal

SMALL = {"vocab_size": 32, "d_model": 16, "n_layers": 2, "n_heads": 2}


@pytest.fixture(scope="module")
def backend():
    """A unigram tokenizer as files of SentencePiece models hold it."""
    import tokenizers

    words = [("[PAD]", 0.0), ("[CLS]", 0.0), ("[SEP]", 0.0), ("[UNK]", 0.0)]
    words += [(f"▁w{i}", -float(i)) for i in range(4, families.VOCABULARY)]
    made = tokenizers.Tokenizer(tokenizers.models.Unigram(words, unk_id=3))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return made


def directory(path, case, backend):
    stored = families.load(case)
    (path / "config.json").write_text(json.dumps(stored.config))
    write_sharded(path, families.weights(case, stored.shapes).items(), 10**9)
    backend.save(str(path / "tokenizer.json"))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("case", ["deberta/v3", "deberta/wide-groups"])
def test_an_embedder_whatever_the_batch_and_padding(case, backend, tmp_path):
    """The convolution reads neighbours, so that padding must be zeros before it. Tolerance 1e-5 for
    vectors of order one that are summed in other orders."""
    embedder = TextEmbedder.load(directory(tmp_path, case, backend), max_batch=4)
    texts = ["w4 w5 w6", "w7", " ".join(f"w{i}" for i in range(10, 26))]
    ids = embedder.encode(texts)
    assert ids[0] == [1, 4, 5, 6, 2]
    alone = np.concatenate([embedder.embed([row]) for row in ids])
    np.testing.assert_allclose(embedder.embed(ids), alone, atol=1e-5)
    function, params, _ = bundle_parts(embedder.encoder)
    struct = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, t"), jnp.int32)
    exported = jax.export.export(jax.jit(function))(params, struct, struct)
    tokens, mask = np.zeros((2, 3, 23), np.int32)
    for i, row in enumerate(ids):
        tokens[i, : len(row)], mask[i, : len(row)] = row, 1
    np.testing.assert_allclose(exported.call(params, tokens, mask), alone, atol=1e-5)


@pytest.mark.slow
def test_a_cross_encoder_scores_pairs(backend, tmp_path):
    case = "deberta/cross-encoder"
    scorer = CrossEncoder.load(directory(tmp_path, case, backend), max_batch=4)
    pairs = [("w4 w5", "w6 w7 w8"), ("w9", "w4")]
    scores, _ = scorer.score(pairs)
    a = ours(case)
    for (first, second), score in zip(pairs, scores, strict=True):
        ids, _ = scorer.tokenizer.encode_pair(first, second, 40)
        logit = a.model.logits(a.params, jnp.asarray([ids]), jnp.ones((1, len(ids)), int))
        np.testing.assert_allclose(score, jax.nn.sigmoid(logit[0, 0]), atol=1e-5)


def test_bare_files_of_pretraining_are_read(backend, tmp_path):
    """Published v3 files name no architecture, and hold heads of pretraining and no positions."""
    stored = families.load("deberta/v3")
    config = {k: v for k, v in stored.config.items() if k != "architectures"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = {f"deberta.{k}": x for k, x in families.weights("deberta/v3", stored.shapes).items()}
    for name in ("lm_predictions.lm_head.dense.weight", "mask_predictions.dense.weight"):
        weights[name] = np.zeros((48, 48), np.float32)
    weights["deberta.embeddings.position_embeddings.weight"] = np.zeros((40, 48), np.float32)
    write_sharded(tmp_path, weights.items(), 10**9)
    backend.save(str(tmp_path / "tokenizer.json"))
    loaded = pretrained_encoder.load(tmp_path)
    assert loaded.model.config == ours("deberta/v3").config
    jax.tree.map(np.testing.assert_array_equal, loaded.params, ours("deberta/v3").params)


def test_the_head_of_token_ids_goes_by_the_names_in_the_files():
    config = dataclasses.replace(ours("deberta/masked-lm").config, legacy_head=True)
    names = families.load("deberta/masked-lm").shapes
    family = family_for_config({"model_type": "deberta-v2"})
    assert family.as_found(config, names) == ours("deberta/masked-lm").config


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"position_terms": ()}, "relative: found True, expected false without terms"),
        ({"position_terms": ("c2p", "c2p")}, "expected each term once"),
        ({"buckets": 1}, "buckets: found 1, expected 2 to"),
        ({"buckets": 40, "longest_distance": 20}, "buckets: found 40, expected 2 to 37"),
        ({"convolution": 4}, "expected an odd number, or 0"),
        ({"convolution_groups": 3}, "a divisor of d_model = 16"),
        ({"embedding_width": 8, "head": "masked_lm"}, "d_model, as the head reads it"),
    ],
)
def test_settings_that_cannot_be(changes, part):
    with pytest.raises(ValueError) as error:
        DebertaV2Config(**SMALL | changes)
    assert part in str(error.value)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"pos_att_type": ["c2p", "p2p"]}, "pos_att_type: found ['c2p', 'p2p']; expected c2p, p2c"),
        ({"attention_head_size": 16}, "attention_head_size: found 16; expected 12"),
        ({"pooler_hidden_size": 16}, "pooler_hidden_size: found 16; expected 48"),
        ({"model_type": "deberta", "architectures": ["DebertaModel"]}, "nearest is deberta-v2"),
    ],
)
def test_what_is_not_implemented_is_refused_in_a_line(change, part):
    values = families.load("deberta/v3").config | change
    with pytest.raises(ModelError) as error:
        family_for_config(values).from_hf(values)
    assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_scores_with_distances_need_a_context_with_them():
    model = EncoderModel.build(DebertaV2Config(**SMALL))
    module = model.make(rngs=nnx.Rngs(0))
    module._context = lambda mask, positions: Causal()
    with pytest.raises(ShapeError, match="disentangled attention: found the context Causal"):
        module(jnp.ones((1, 4), jnp.int32))


@pytest.mark.parity
@pytest.mark.parametrize("case", ["deberta/v2-convolution", "deberta/masked-lm-legacy"])
def test_what_we_export_loads_in_transformers(case, backend, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    stored = families.load(case)
    encoder = pretrained_encoder.load(directory(tmp_path, case, backend))
    pretrained_encoder.export_hf(encoder, tmp_path / "out")
    cls = getattr(transformers, stored.config["architectures"][0])
    model, report = cls.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values()), report
    given = families.encoder_inputs(case)
    with torch.no_grad():
        found = model(**{k: torch.from_numpy(x).long() for k, x in given.items()})
    states = found.get("last_hidden_state"), None, found.get("logits")
    outputs = families.encoder_outputs(given["attention_mask"], *states)
    np.testing.assert_allclose(outputs, stored.logits, atol=1e-5, rtol=0)
