"""Decoders that embed texts: the last token's state, causal or in both directions."""

import json

import jax
import numpy as np
import pytest
from tests.models.family_cases import ours
from tests.oracle import families

from ziggurat.core.errors import ModelError
from ziggurat.formats import write_sharded
from ziggurat.models import TextEmbedder
from ziggurat.models.conversion.sentence_layout import SentenceConfig, layout_files
from ziggurat.models.loading import pretrained, pretrained_encoder
from ziggurat.nn import Bidirectional, Causal

IDS = [[5, 6, 7, 8, 9, 2], [11, 12, 2]]


def directory(path, case, changes=(), layout=True, head=False):
    """A decoder as published to embed texts: the bare model's names, no output matrix."""
    import tokenizers

    stored = families.load(case)
    values = stored.config | {"architectures": ["Qwen3Model"], **dict(changes)}
    (path / "config.json").write_text(json.dumps(values))
    tensors = {
        name.removeprefix("model."): x
        for name, x in families.weights(case, stored.shapes).items()
        if head or name != "lm_head.weight"
    }
    write_sharded(path, tensors.items(), 10**9)
    words = {f"w{i}": i for i in range(families.VOCABULARY)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A w2", special_tokens=[("w2", 2)]
    )
    backend.save(str(path / "tokenizer.json"))
    if layout:
        sentence = SentenceConfig(pooling="lasttoken", normalize=True, max_length=20)
        for name, content in layout_files(sentence, values["hidden_size"]).items():
            (path / name).parent.mkdir(exist_ok=True)
            (path / name).write_text(json.dumps(content))
    return path


def expected(case, context):
    """The normalised last state of each text, computed without padding."""
    a = ours(case)
    rows = []
    for ids in IDS:
        tokens = np.array([ids])
        positions = np.arange(len(ids))[None]
        hidden, _ = jax.jit(a.model.hidden)(a.params, tokens, positions, context)
        rows.append(np.asarray(hidden)[0, -1])
    return np.stack([row / np.linalg.norm(row) for row in rows])


@pytest.mark.parametrize("head", [False, True])
def test_the_last_state_is_the_vector(tmp_path, head):
    path = directory(tmp_path, "qwen/qwen3", head=head)
    assert pretrained_encoder.is_encoder(path)
    embedder = TextEmbedder.load(path, max_batch=4)
    assert embedder.encode(["w5 w6 w7 w8 w9", "w11 w12"]) == IDS
    found = embedder.embed(IDS)
    np.testing.assert_allclose(found, expected("qwen/qwen3", Causal()), atol=2e-6)


def test_both_directions_where_the_config_says_so(tmp_path):
    embedder = TextEmbedder.load(directory(tmp_path, "qwen/qwen3", {"is_causal": False}))
    assert embedder.encoder.sentence.bidirectional
    wanted = expected("qwen/qwen3", Bidirectional())
    np.testing.assert_allclose(embedder.embed(IDS), wanted, atol=2e-6)
    assert np.abs(wanted - expected("qwen/qwen3", Causal())).max() > 1e-2
    pretrained_encoder.save(embedder.encoder, tmp_path / "made")
    pretrained_encoder.export_hf(embedder.encoder, tmp_path / "out")
    for place in (tmp_path / "made", tmp_path / "out"):
        assert pretrained_encoder.is_encoder(place)
        again = TextEmbedder.load(place)
        np.testing.assert_array_equal(again.embed(IDS), embedder.embed(IDS))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["is_causal"] is False


def test_without_the_layout_it_is_a_language_model(tmp_path):
    path = directory(tmp_path, "qwen/qwen3", {"tie_word_embeddings": True}, layout=False)
    assert not pretrained_encoder.is_encoder(path)
    with pytest.raises(ModelError, match=r"a qwen3 model without modules\.json"):
        pretrained_encoder.load(path)
    assert pretrained.load(path).model.config.kind == "qwen3"
