"""Pictures and texts to vectors: by directory, step, export and bundle function."""

import json

import jax
import numpy as np
import pytest
from tests.models.family_cases import ours
from tests.models.test_image_processor import picture
from tests.oracle import families

from ziggurat.cli.main import main
from ziggurat.core.errors import ModelError
from ziggurat.formats import write_sharded
from ziggurat.models import ImageEmbedder, TextEmbedder
from ziggurat.models.image_embedder import bundle_parts
from ziggurat.models.loading import pretrained, pretrained_vision

CASES = ["vit/classifier", "dinov2/registers", "clip/plain", "siglip/plain"]
STEPS = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": 12, "width": 12},
}


def directory(path, case):
    import tokenizers

    stored = families.load(case)
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(stored.config))
    (path / "preprocessor_config.json").write_text(json.dumps(STEPS))
    write_sharded(path, families.weights(case, stored.shapes).items(), 10**9)
    if case.startswith(("clip", "siglip")):
        words = {f"w{i}": i for i in range(families.VOCABULARY)}
        backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
        backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
        backend.post_processor = tokenizers.processors.TemplateProcessing(
            single="$A w7", special_tokens=[("w7", 7)]
        )
        backend.save(str(path / "tokenizer.json"))
        (path / "tokenizer_config.json").write_text(json.dumps({"pad_token": "w1"}))
    return path


@pytest.mark.parametrize("case", CASES)
def test_a_picture_has_the_models_vector(case, tmp_path):
    embedder = ImageEmbedder.load(directory(tmp_path / "a", case), max_batch=2)
    pictures = [picture(30, 40, seed) for seed in range(3)]
    found = embedder.embed_images(pictures)
    assert found.shape == (3, embedder.embed_images([]).shape[1])
    pixels, a = embedder.vision.processor(pictures), ours(case)
    if case.startswith("vit"):
        expected = jax.jit(a.model.logits)(a.params, pixels)
    elif case.startswith("dino"):
        expected = jax.jit(a.model.hidden)(a.params, pixels)[:, 0]
    else:
        expected = jax.jit(a.model.image_vectors)(a.params, pixels)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("case", ["clip/plain", "siglip/plain"])
def test_texts_have_the_models_vector_whatever_their_length(case, tmp_path):
    embedder, a = ImageEmbedder.load(directory(tmp_path / "a", case), max_batch=2), ours(case)
    length = a.model.text.max_length
    texts = ["w5 w6", "w9 " * 60, "w3"]
    tokens = embedder.tokens(texts)
    assert tokens.shape == (3, length)
    assert tokens[0, :4].tolist() == [5, 6, 7, 1]
    assert tokens[1].tolist() == [9] * (length - 1) + [7]
    expected = jax.jit(a.model.text_vectors)(a.params, tokens)
    np.testing.assert_allclose(embedder.embed_texts(texts), expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-5)
    with pytest.raises(ModelError):
        TextEmbedder.load(tmp_path / "a")


@pytest.mark.parametrize("case", CASES)
def test_import_and_export_keep_everything(case, tmp_path, capsys):
    source, made, out = directory(tmp_path / "a", case), tmp_path / "made", tmp_path / "out"
    assert main(["import", "hf", str(source), "--output", str(made), "--verify", "never"]) == 0
    assert "images of 12 x 12" in capsys.readouterr().out
    assert main(["export", "hf", str(made), "--output", str(out)]) == 0
    first = pretrained_vision.load(source)
    for path in (made, out):
        assert pretrained_vision.is_vision(path)
        again = pretrained_vision.load(path)
        assert again.model.config == first.model.config
        assert again.processor.config == first.processor.config
        jax.tree.map(np.testing.assert_array_equal, again.params, first.params)
        with pytest.raises(ModelError, match="ImageEmbedder"):
            pretrained.load(path)
    assert not pretrained_vision.is_vision(tmp_path)


@pytest.mark.parametrize("case", ["vit/classifier", "clip/plain"])
def test_the_bundle_function_takes_any_batch(case, tmp_path):
    embedder = ImageEmbedder.load(directory(tmp_path / "a", case))
    function, params, signature = bundle_parts(embedder.vision)
    name = "logits:FP32[b,3]" if case.startswith("vit") else "vector:FP32[b,24]"
    assert signature == f"pixels:FP32[b,3,12,12] -> {name}"
    (b,) = jax.export.symbolic_shape("b")
    struct = jax.ShapeDtypeStruct((b, 3, 12, 12), np.float32)
    exported = jax.export.export(jax.jit(function))(params, struct)
    pictures = [picture(20, 20, seed) for seed in range(3)]
    found = exported.call(params, embedder.vision.processor(pictures))
    np.testing.assert_allclose(found, embedder.embed_images(pictures), atol=1e-5)


@pytest.mark.slow
def test_the_command_writes_a_bundle_that_serves_the_same(tmp_path, capsys):
    from ziggurat.serve.predict import LoadedBundle

    source, path = directory(tmp_path / "a", "vit/classifier"), tmp_path / "vit" / "1"
    assert main(["bundle", "encoder", str(source), str(path), "--platforms", "cpu"]) == 0
    assert "pixels:FP32[b,3,12,12]" in capsys.readouterr().out
    embedder, pictures = ImageEmbedder.load(source), [picture(20, 20, seed) for seed in range(2)]
    found = LoadedBundle.load(path)({"pixels": embedder.vision.processor(pictures)})
    np.testing.assert_allclose(found["logits"], embedder.embed_images(pictures), atol=1e-4)
    assert main(["bundle", "encoder", str(tmp_path), str(tmp_path / "b")]) == 2


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES)
def test_a_conversion_is_proved_against_transformers(case, tmp_path):
    pytest.importorskip("transformers")
    from ziggurat.models.loading import proof

    source = directory(tmp_path / "a", case)
    found = proof.vision_against_transformers(source, pretrained_vision.load(source))
    assert found["max_state_difference"] < 1e-4
    proof.require(found, source)


def test_texts_for_an_encoder_of_images_are_refused(tmp_path):
    embedder = ImageEmbedder.load(directory(tmp_path / "a", "vit/plain"))
    with pytest.raises(ModelError, match="a model with a tower for texts"):
        embedder.embed_texts(["w5"])
