"""Prompts with images in the engine: tokens equal to plain generation, chunks, prefix cache."""

from typing import Any

import jax
import numpy as np
import pytest
from tests.models.test_vision_language_model import IMAGE, gemma, image, llava
from tests.oracle import multimodal

from ziggurat.core.errors import DataError
from ziggurat.core.pytrees import map_named
from ziggurat.data import HuggingFaceTokenizer
from ziggurat.models import VisionLanguageModel
from ziggurat.models.vision_language_generation import generate
from ziggurat.models.vision_language_model import ImageSpec
from ziggurat.serve.errors import RequestError
from ziggurat.serve.llm.engine import Engine, EngineConfig
from ziggurat.serve.llm.prompt_images import PromptImages
from ziggurat.serve.llm.sampling import SamplingParams

LIMITS = EngineConfig(
    max_running=2, max_prefill_chunk=16, max_batched_tokens=24, max_sequence_length=64, block_size=4
)
ROW = [1, 5, 6, 58, *[IMAGE] * 4, 59, 7, 8, 9, 10, 58, *[IMAGE] * 4, 59, 11, 12]
"""The second image lies across the border of chunks of 16."""
GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


def prompt_images(model, params, images, tokens=ROW):
    features = model.tower.features(params["tower"], images)
    return PromptImages.of(tokens, images, features, model.config)


def random_params(model):
    """Parameters with which the answer to :data:`ROW` depends on its first image."""
    draw = np.random.default_rng({"gemma3_vision": 2, "llava": 3}[model.config.kind])

    def drawn(name, leaf):
        scale = 0.5 if name.endswith("embedding.table") else 0.6
        return np.asarray(leaf + scale * draw.normal(size=leaf.shape), np.float32)

    return map_named(drawn, model.init(jax.random.key(0)))


@pytest.fixture(scope="module", params=["gemma", "llava"])
def served(request, tmp_path_factory):
    config: Any
    config, size = (gemma(), 16) if request.param == "gemma" else (llava(), 8)
    model = VisionLanguageModel.build(config)
    params = random_params(model)
    path = tmp_path_factory.mktemp("tokenizer")
    multimodal.save_tokenizer(path)
    tokenizer = HuggingFaceTokenizer.load(path)
    spec = config.image_spec
    with Engine(model.language, params["language"], tokenizer, LIMITS, images=spec) as engine:
        yield model, params, engine, size


def tokens_of(engine, images, params=GREEDY, row=ROW):
    events = engine.submit(row, params, images=images)
    found = {}
    for event in events:
        found.setdefault(event.choice, []).append(event.token)
    return found


@pytest.mark.slow
def test_tokens_are_those_of_plain_generation_also_from_the_prefix_cache(served):
    model, params, engine, size = served
    first, second, third = (image(seed, size) for seed in range(3))
    answers = []
    for images in ([first, second], [third, second]):
        prompt = model.prompt(params["tower"], np.array([ROW], np.int32), [images])
        [expected] = generate(model, params["language"], prompt, 6)
        answers.append(expected)
        given = prompt_images(model, params, images)
        hits = engine.statistics().prefix_hits
        assert tokens_of(engine, given) == {0: expected}
        # the block before the first image's is shared; those with another image are not
        assert engine.statistics().prefix_hits - hits <= 4
        hits = engine.statistics().prefix_hits
        assert tokens_of(engine, given) == {0: expected}
        assert engine.statistics().prefix_hits - hits >= 16
    assert answers[0] != answers[1], "the answers must tell images apart"
    several = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, n=2)
    assert tokens_of(engine, given, several) == {0: expected, 1: expected}


@pytest.mark.slow
def test_prompts_of_text_run_beside_them(served):
    model, params, engine, size = served
    text = [1, 5, 6, 7, 8, 9]
    alone = tokens_of(engine, None, row=text)
    images = prompt_images(model, params, [image(5, size), image(6, size)])
    expected = tokens_of(engine, images)
    together = [engine.submit(ROW, GREEDY, images=images), engine.submit(text, GREEDY)]
    assert [[event.token for event in one] for one in together] == [expected[0], alone[0]]


def test_images_that_are_refused(served):
    model, params, engine, size = served
    with pytest.raises(RequestError, match="found an image at its end"):
        prompt_images(model, params, [image(0, size)], [1, *[IMAGE] * 4])
    with pytest.raises(DataError, match="found 8; expected 4 for 1 images"):
        prompt_images(model, params, [image(0, size)])
    if not model.config.image_spec.mutual:
        return
    row = [1, *[IMAGE] * 20, 2]
    images = prompt_images(model, params, [image(i, size) for i in range(5)], row)
    with pytest.raises(RequestError, match="found 20 tokens that see one another; expected at mo"):
        engine.submit(row, GREEDY, images=images)


def test_an_engine_of_text_alone_refuses_images(served):
    model, params, engine, size = served
    images = prompt_images(model, params, [image(0, size), image(1, size)])
    other = Engine(model.language, params["language"], engine.tokenizer, LIMITS)
    with other, pytest.raises(RequestError, match="found an image; expected text"):
        other.submit(ROW, GREEDY, images=images)


def test_chunks_that_end_within_an_image():
    embeddings, places = np.zeros((8, 2), np.float32), np.r_[2:6, 8:12].astype(np.int32)
    runs = ((2, 6, b"a"), (8, 12, b"b"))
    specs = ImageSpec(mutual=True), ImageSpec()
    mutual, causal = (PromptImages(embeddings, places, runs, spec) for spec in specs)
    assert [mutual.cut(0, count) for count in (1, 2, 3, 5, 6, 7, 9)] == [1, 2, 2, 2, 6, 7, 8]
    assert mutual.cut(2, 3) == 0
    assert mutual.cut(4, 2) == 2
    assert [causal.cut(0, count) for count in (3, 5)] == [3, 5]
    assert [mutual.within(start, 2) for start in (0, 1, 5, 6, 12)] == [False, True, True, False, 0]
    made = mutual.arrays(4, 8, 10, np.float32)
    assert made.places[0].tolist() == [0, 1, 4, 5, 6, 7, 10, 10, 10, 10]
    assert made.last_seen[0].tolist() == [5, 5, 6, 7, *[11] * 6]
    made = causal.arrays(3, 2, 4, np.float32)
    assert (made.places[0].tolist(), made.last_seen) == ([0, 1, 4, 4], None)
    assert mutual.mark(0, 2) == b""
    assert mutual.mark(0, 4) != mutual.mark(4, 8)
