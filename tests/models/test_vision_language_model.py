"""Language models that read images: places and masks of images, and their texts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ziggurat.core.errors import DataError
from ziggurat.models import (
    ClipImageConfig,
    Gemma3Config,
    Gemma3VisionConfig,
    LlamaConfig,
    LlavaConfig,
    SiglipImageConfig,
    VisionLanguageModel,
)
from ziggurat.models.vision_language_generation import generate
from ziggurat.models.vision_language_model import PreparedImage, expanded, image_spans

IMAGE = 60
TOWER = {"d_model": 8, "n_layers": 1, "n_heads": 2, "patch_size": (4, 4)}


def llava() -> LlavaConfig:
    return LlavaConfig(
        language=LlamaConfig(vocab_size=64, d_model=16, n_layers=1, n_heads=2),
        image=ClipImageConfig(image_size=(8, 8), **TOWER),
        image_token=IMAGE,
    )


def gemma() -> Gemma3VisionConfig:
    return Gemma3VisionConfig(
        language=Gemma3Config(
            vocab_size=64, d_model=16, n_layers=2, n_heads=2, head_dim=8, window=3,
            pattern=("local", "global"),
        ),
        image=SiglipImageConfig(image_size=(16, 16), **TOWER),
        tokens_per_image=4,
        image_token=IMAGE,
        begin_token=58,
        end_token=59,
    )  # fmt: skip


def image(seed=0, size=8) -> PreparedImage:
    pixels = np.random.default_rng(seed).normal(size=(3, size, size)).astype(np.float32)
    return PreparedImage(pixels, 4)


def logits_of(model, params):
    """Logits of prompts, compiled once for each shape."""
    run = jax.jit(lambda prompt: model.logits(params["language"], prompt))
    return lambda prompt: np.asarray(run(prompt))


def test_each_image_has_its_span():
    tokens = np.array([1, IMAGE, IMAGE, IMAGE, IMAGE, 2, IMAGE, IMAGE, IMAGE, IMAGE])
    assert image_spans(tokens, [image(), image()], IMAGE) == [slice(1, 5), slice(6, 10)]
    assert image_spans(tokens[:1], [], IMAGE) == []


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([1, 2], "image tokens .id 60. in a row: found 0; expected 4 for 1 images"),
        ([IMAGE] * 5, "found 5; expected 4 for 1 images"),
        ([IMAGE, IMAGE, 1, IMAGE, IMAGE], "image 0: found other tokens between its own"),
    ],
)
def test_tokens_that_are_not_the_images(tokens, message):
    with pytest.raises(DataError, match=message):
        image_spans(np.array(tokens), [image()], IMAGE)


def test_the_text_of_an_image():
    texts = {IMAGE: "<i>", 58: "<b>", 59: "<e>"}
    prepared = PreparedImage(np.zeros((3, 8, 8), np.float32), 2)
    found = expanded(llava(), "a <i> b", [prepared], texts.__getitem__)
    assert found == "a <i><i> b"
    found = expanded(gemma(), "a <b> b", [prepared], texts.__getitem__)
    assert found == "a \n\n<b><i><i><e>\n\n b"
    with pytest.raises(DataError, match="found 2 times '<i>'; expected 1, one for each image"):
        expanded(llava(), "<i> <i>", [prepared], texts.__getitem__)


@pytest.mark.slow
def test_rows_with_other_numbers_of_images_equal_each_alone():
    model = VisionLanguageModel.build(llava())
    params = model.init(jax.random.key(0))
    one = [1, IMAGE, IMAGE, IMAGE, IMAGE, 2, 3, 4, 5, 6]
    two = [1, IMAGE, IMAGE, IMAGE, IMAGE, IMAGE, IMAGE, IMAGE, IMAGE, 6]
    none = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    tokens = np.array([one, two, none], np.int32)
    images = [[image(0)], [image(1), image(2)], []]
    logits = logits_of(model, params)
    together = logits(model.prompt(params["tower"], tokens, images))
    for row, found in enumerate(together):
        prompt = model.prompt(params["tower"], tokens[row : row + 1], images[row : row + 1])
        alone = logits(prompt)
        np.testing.assert_allclose(found, alone[0], atol=1e-5)


@pytest.mark.slow
def test_tokens_of_an_image_see_one_another():
    """A later patch moves the state at an image's first token in Gemma 3, and no text before."""
    tokens = np.array([[1, 58, IMAGE, IMAGE, IMAGE, IMAGE, 59, 2]], np.int32)
    for config, sees, size in ((gemma(), True, 16), (llava(), False, 8)):
        model = VisionLanguageModel.build(config)
        params = model.init(jax.random.key(0))
        prompt = model.prompt(params["tower"], tokens, [[image(size=size)]])
        assert prompt.inputs is not None
        assert prompt.inputs.embeddings is not None
        changed = prompt.inputs.embeddings.at[0, 3].add(1.0)
        other = dataclasses.replace(
            prompt, inputs=dataclasses.replace(prompt.inputs, embeddings=changed)
        )
        before, after = map(logits_of(model, params), (prompt, other))
        moved = np.abs(before - after)[0].max(axis=1) > 1e-6
        assert moved.tolist() == [False, False, sees, sees, sees, True, True, True]


def test_images_without_a_token_between_them_are_one_block():
    model = VisionLanguageModel.build(gemma())
    tower = model.tower.init(jax.random.key(0))
    tokens = np.array([[1, *[IMAGE] * 8, 2, *[IMAGE] * 4]], np.int32)
    found = model.prompt(tower, tokens, [[image(0, 16), image(1, 16), image(2, 16)]])
    assert np.asarray(found.last_seen)[0].tolist() == [0, *[8] * 8, 9, *[13] * 4]


@pytest.mark.slow
def test_generated_tokens_are_those_of_full_passes():
    model = VisionLanguageModel.build(gemma())
    params = model.init(jax.random.key(1))
    params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(2), x.shape), params)
    row = [1, 58, IMAGE, IMAGE, IMAGE, IMAGE, 59, 2]
    prompt = model.prompt(params["tower"], np.array([row], np.int32), [[image(size=16)]])
    [found] = generate(model, params["language"], prompt, 4)
    row += found
    whole = model.prompt(params["tower"], np.array([row], np.int32), [[image(size=16)]])
    assert logits_of(model, params)(whole)[0, 7:-1].argmax(axis=-1).tolist() == found
    start = model.prompt(params["tower"], np.array([row[:8]], np.int32), [[image(size=16)]])
    [stopped] = generate(model, params["language"], start, 4, stops=found[1:2])
    assert stopped == found[: found.index(found[1]) + 1]


def test_a_prompt_without_images_is_text():
    model = VisionLanguageModel.build(llava())
    params = model.init(jax.random.key(0))
    tokens = np.array([[1, 2, 3]], np.int32)
    prompt = model.prompt(params["tower"], tokens, [[]])
    assert prompt.inputs is None
    expected = jax.jit(model.language.logits)(params["language"], jnp.asarray(tokens))
    np.testing.assert_allclose(logits_of(model, params)(prompt), expected, atol=1e-6)


@pytest.mark.slow
def test_tokens_per_image_that_do_not_fit():
    with pytest.raises(ValueError, match="a square number whose root divides 4 x 4 patches"):
        dataclasses.replace(gemma(), tokens_per_image=9)
