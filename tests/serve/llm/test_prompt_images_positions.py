"""Images whose tokens have positions of several axes in the engine: the tokens of transformers."""

import numpy as np
import pytest
from tests.models.families.test_qwen_vl import loaded
from tests.oracle import qwen_vl

from ziggurat.models.vision_language_generation import generate
from ziggurat.models.vision_language_model import ImageSpec
from ziggurat.serve.llm.engine import Engine, EngineConfig
from ziggurat.serve.llm.image_reader import ImageReader
from ziggurat.serve.llm.prompt_images import PromptImages
from ziggurat.serve.llm.sampling import SamplingParams

LIMITS = EngineConfig(
    max_running=3, max_prefill_chunk=16, max_batched_tokens=24, max_sequence_length=96,
    block_size=4, cache_tokens=128,
)  # fmt: skip
"""Chunks end within pictures, and the cache does not hold all conversations at once."""
GREEDY = SamplingParams(temperature=0, max_tokens=qwen_vl.NEW, ignore_eos=True)


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl", "qwen3_5"])
def served(request):
    whole = loaded(request.param)
    spec = whole.vision.config.image_spec
    assert spec.position_axes == 3
    assert spec.added_layers == (2 if request.param == "qwen3_vl" else 0)
    with Engine(whole.model, whole.params, whole.tokenizer, LIMITS, images=spec) as engine:
        yield request.param, whole, engine


def asked(case, whole, name):
    """A conversation's tokens and its pictures for the engine, and transformers' answer."""
    from PIL import Image

    tokens, answer = qwen_vl.load(case).answers[name]
    drawings = qwen_vl.pictures()
    shown = [drawings[int(w[1:-1])] for w in qwen_vl.CONVERSATIONS[name].split() if w[0] == "{"]
    reader = ImageReader(whole)
    images = reader.prepare([Image.fromarray(pixels) for pixels in shown])
    given = reader.embedded(tokens.tolist(), images) if images else None
    return tokens.tolist(), given, answer.tolist()


def tokens_of(request):
    found = {}
    for event in request:
        found.setdefault(event.choice, []).append(event.token)
    return found


@pytest.mark.slow
def test_each_conversation_also_from_the_prefix_cache(served):
    case, whole, engine = served
    for name in qwen_vl.CONVERSATIONS:
        tokens, images, expected = asked(case, whole, name)
        assert tokens_of(engine.submit(tokens, GREEDY, images=images)) == {0: expected}, name
        hits = engine.statistics().prefix_hits
        assert tokens_of(engine.submit(tokens, GREEDY, images=images)) == {0: expected}, name
        # states of recurrent layers are not shared, so a hybrid computes every prompt
        shared = 0 if case == "qwen3_5" else (len(tokens) - 1) // 4 * 4
        assert engine.statistics().prefix_hits - hits == shared


def test_all_together_forked_and_preempted(served):
    """Texts beside pictures; two completions share a prompt; some are computed again."""
    case, whole, engine = served
    several = SamplingParams(temperature=0, max_tokens=qwen_vl.NEW, ignore_eos=True, n=2)
    given = {name: asked(case, whole, name) for name in ("turns", "one", "text")}
    prompts = [(tokens, several if n == "one" else GREEDY) for n, (tokens, _, _) in given.items()]
    images = [images for _, images, _ in given.values()]
    before = engine.statistics().preemptions
    requests = engine.submit_together(prompts, lambda place: None, images=images)
    found = [tokens_of(request) for request in requests]
    for name, answers, (_, _, expected) in zip(given, found, given.values()):
        assert answers == dict.fromkeys(range(2 if name == "one" else 1), expected), name
    assert engine.statistics().preemptions > before


@pytest.mark.slow
def test_pictures_of_as_many_tokens_and_another_shape_are_told_apart(served):
    """The tokens of both prompts are equal; positions and content are not."""
    from PIL import Image

    _, whole, engine = served
    reader, tall = ImageReader(whole), qwen_vl.pictures()[1]
    found = []
    for pixels in (tall, tall.transpose(1, 0, 2), tall):
        images = reader.prepare([Image.fromarray(pixels)])
        tokens = [5, 58, *[60] * images[0].tokens, 59, 7, 8, 9, 10, 11]
        prompt = whole.prompt([tokens], [images])
        [expected] = generate(whole.vision, whole.params, prompt, qwen_vl.NEW)
        given = reader.embedded(tokens, images)
        found.append(tokens_of(engine.submit(tokens, GREEDY, images=given))[0])
        assert found[-1] == expected
    assert found[0] == found[2] != found[1]


def test_sampled_answers_do_not_depend_on_what_runs_beside_them(served):
    case, whole, engine = served
    seeded = SamplingParams(temperature=1, seed=3, max_tokens=8, ignore_eos=True)
    tokens, images, _ = asked(case, whole, "one")
    alone = tokens_of(engine.submit(tokens, seeded, images=images))
    text, _, expected = asked(case, whole, "text")
    together = engine.submit_together(
        [(tokens, seeded), (text, GREEDY)], lambda place: None, images=[images, None]
    )
    assert [tokens_of(request) for request in together] == [alone, {0: expected}]


def test_positions_of_a_chunk():
    """Two texts around a picture of two rows and two columns, which stand on three positions."""
    spec = ImageSpec(position_axes=3, added_layers=2)
    rotary = np.array([[0, 0, 0], [1, 1, 1], [1, 1, 2], [1, 2, 1], [1, 2, 2], [3, 3, 3]], np.int32)
    embeddings = np.arange(8, dtype=np.float32).reshape(4, 2)
    added = np.stack([embeddings + 10, embeddings + 20])
    images = PromptImages(
        embeddings, np.arange(1, 5, dtype=np.int32), ((1, 5, b"a"),), spec, rotary, -2, added
    )
    assert [images.offset_at(token) for token in (0, 5, 6, 90)] == [0, -2, -2, -2]
    made = images.arrays(3, 5, 8, np.float32)  # half of the picture, text, and generated tokens
    assert made.places[0].tolist() == [0, 1, *[8] * 6]
    assert made.embeddings[0, :3].tolist() == [[4, 5], [6, 7], [0, 0]]
    assert made.by_layer[:, 0, :3, 0].tolist() == [[14, 16, 0], [24, 26, 0]]
    turned = [[1, 2, 1], [1, 2, 2], *[[p] * 3 for p in (3, 4, 5, 5, 5, 5)]]
    assert made.rotary_positions[0].tolist() == turned
    assert made.last_seen is None
