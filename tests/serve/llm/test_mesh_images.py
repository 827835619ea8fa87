"""Every family that reads images on a mesh of two devices: the tokens of one device."""

import dataclasses

import jax
import numpy as np
import pytest
from tests.models.families import test_pixtral, test_qwen_vl
from tests.models.test_vision_language_model import IMAGE, gemma, image, llava
from tests.oracle import pixtral, qwen_vl
from tests.serve.llm.test_prompt_images import random_params

from ziggurat import mesh
from ziggurat.models import VisionLanguageModel
from ziggurat.models.families.vision_language_family import VISION_LANGUAGE
from ziggurat.serve.llm.engine import Engine, EngineConfig
from ziggurat.serve.llm.prompt_images import PromptImages
from ziggurat.serve.llm.sampling import SamplingParams

TENSOR = mesh.build(mesh.MeshConfig(tensor=2), jax.devices()[:2])
LIMITS = EngineConfig(
    max_running=1, max_prefill_chunk=16, max_batched_tokens=17, max_sequence_length=64, block_size=4
)
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=0)
TOLD_APART = 1e-3
"""Least difference of a log-probability by which another image shows, a hundred times rounding."""


def made(config, size):
    """A model, its parameters, and three images of four tokens each."""
    heads = dataclasses.replace(config.language, n_kv_heads=2)
    model = VisionLanguageModel.build(dataclasses.replace(config, language=heads))
    return model, random_params(model), [image(seed, size) for seed in range(3)]


def published(case, family=test_qwen_vl):
    """A model as published, its parameters, and three images of the same size."""
    from PIL import Image

    whole, pixels = family.loaded(case), qwen_vl.pictures()[1]
    shown = (pixels, 255 - pixels, pixels[::-1])
    images = whole.prepare([Image.fromarray(each) for each in shown])
    return whole.vision, {"language": whole.params, "tower": whole.tower}, images


MODELS = {
    "gemma3_vision": lambda: made(gemma(), 16),
    "llava": lambda: made(llava(), 8),
    "mistral3": lambda: published("mistral3", test_pixtral),
    "llava_pixtral": lambda: published("llava", test_pixtral),
    "qwen2_5_vl": lambda: published("qwen2_5_vl"),
    "qwen3_vl": lambda: published("qwen3_vl"),
    "qwen3_vl_moe": lambda: published("qwen3_vl_moe"),
    "qwen3_5": lambda: published("qwen3_5"),
    "qwen3_5_moe": lambda: published("qwen3_5_moe"),
}


def test_every_family_is_here():
    assert MODELS.keys() == set(VISION_LANGUAGE)


def written(one):
    """Tokens of an image, with those between its lines."""
    row = np.full(one.offsets[-1] + 1, pixtral.BREAK)
    row[one.offsets] = IMAGE
    return row.tolist()


def greedy(model, params, pairs, tokenizer, where):
    """For each pair of images, greedy tokens after a text with both, in chunks, and after the same
    from the prefix cache, with their log-probabilities; on a mesh the tower is sharded too."""
    tower, spec = params["tower"], model.config.image_spec
    if where is not None:
        tower = jax.device_put(tower, model.tower.shardings(where))
    with Engine(
        model.language, params["language"], tokenizer, LIMITS, mesh=where, images=spec
    ) as engine:
        return [answer(engine, model, tower, pair) for pair in pairs]


def answer(engine, model, tower, images):
    first, second = map(written, images)
    row = [1, 5, 6, 58, *first, 59, 7, 8, 9, 10, 58, *second, 59, 11, 12]
    found = PromptImages.of(row, images, model.tower.features(tower, images), model.config)
    once, again = (list(engine.submit(row, GREEDY, images=found)) for _ in range(2))
    tokens = [event.token for event in once]
    assert tokens == [event.token for event in again]
    return tokens, np.array([one.logprob for event in once for one in event.logprobs])


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_two_devices_give_the_tokens_of_one(name, tokenizer):
    model, params, (first, second, third) = MODELS[name]()
    ((alone, _),) = greedy(model, params, [(first, second)], tokenizer, None)
    assert len(alone) == 8
    pairs = (first, second), (third, second)
    (tokens, scores), (_, others) = greedy(model, params, pairs, tokenizer, TENSOR)
    assert tokens == alone
    assert np.abs(others - scores).max() > TOLD_APART, "the answers must tell images apart"
