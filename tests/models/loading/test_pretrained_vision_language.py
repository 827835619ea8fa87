"""Directories of language models that read images: against transformers with its own processors,
and written and read again."""

import json

import jax
import numpy as np
import pytest
from tests.models.test_image_processor import file_of, picture
from tests.oracle import multimodal

from ziggurat.core.errors import ModelError
from ziggurat.models.loading import pretrained, pretrained_vision_language

KINDS = ("gemma3", "llava")
NAMES = {
    "gemma3": {"t58": "<b>", "t59": "<e>", "t60": "<i>"},
    "llava": {"t60": "<image>"},
}
"""Texts of the tokens of images."""
PROCESSORS = {
    "gemma3": {
        "image_processor_type": "Gemma3ImageProcessor",
        "size": {"height": 56, "width": 56},
        "do_pan_and_scan": None,
        "image_seq_length": 4,
    },
    "llava": {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 28},
        "crop_size": {"height": 28, "width": 28},
    },
}
TEXTS = {
    "gemma3": "t5 <b> t6 t7 <b> t9 t10",
    "llava": "t5 <image> t6 t7 <image> t9 t10",
}
pytestmark = pytest.mark.parity


@pytest.fixture(scope="module", params=KINDS)
def published(request, tmp_path_factory):
    pytest.importorskip("torch")
    path = tmp_path_factory.mktemp(request.param)
    model = multimodal.torch_model(request.param)
    model.save_pretrained(path)
    multimodal.save_tokenizer(path, **NAMES[request.param])
    (path / "preprocessor_config.json").write_text(json.dumps(PROCESSORS[request.param]))
    return request.param, model, path


def their_inputs(kind, path, pictures):
    """What transformers' processor makes of the text and pictures."""
    import transformers

    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(path)
    more = {}
    if kind == "gemma3":
        tokenizer.boi_token, tokenizer.eoi_token, tokenizer.image_token = "<b>", "<e>", "<i>"
        tokenizer.boi_token_id, tokenizer.image_token_id = 58, 60
        steps = transformers.Gemma3ImageProcessor(size={"height": 56, "width": 56})
        made = transformers.Gemma3Processor(steps, tokenizer, image_seq_length=4)
    else:
        size = {"height": 28, "width": 28}
        steps = transformers.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=size)
        more = {"patch_size": 14, "vision_feature_select_strategy": "default"}
        more["num_additional_image_tokens"] = 1
        made = transformers.LlavaProcessor(steps, tokenizer, **more)
    nested = [pictures] if kind == "gemma3" else pictures
    return made(text=[TEXTS[kind]], images=nested, return_tensors="pt")


def test_logits_and_greedy_tokens_against_transformers(published):
    import torch

    kind, model, path = published
    pictures = [picture(), picture(53, 37, 1)]
    theirs = their_inputs(kind, path, pictures)
    loaded = pretrained_vision_language.load(path)
    assert loaded.vision.parameter_count <= model.num_parameters()
    images = loaded.prepare([file_of(one) for one in pictures])
    pixels = np.stack([one.pixels for one in images])
    np.testing.assert_allclose(pixels, theirs["pixel_values"].numpy(), atol=1e-6)
    tokens = loaded.tokens_of(TEXTS[kind], images)
    assert tokens == theirs["input_ids"][0].tolist()
    prompt = loaded.prompt([tokens], [images])
    with torch.no_grad():
        expected = model(**theirs).logits.numpy()
        sampled = model.generate(**theirs, max_new_tokens=8, do_sample=False, eos_token_id=63)
    found = np.asarray(loaded.vision.logits(loaded.params, prompt))
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    text = loaded.generate(TEXTS[kind], pictures, max_new_tokens=8)
    new = sampled[0, len(tokens) :].tolist()
    assert text == loaded.tokenizer.decode(new)


def test_written_and_read_again(published, tmp_path):
    import torch
    import transformers

    kind, model, path = published
    loaded = pretrained_vision_language.load(path)
    assert pretrained_vision_language.is_vision_language(path)
    step = pretrained_vision_language.save(loaded, tmp_path / "ours")
    again = pretrained_vision_language.load(tmp_path / "ours")
    assert again.vision.config == loaded.vision.config
    assert again.processor == loaded.processor
    jax.tree.map(np.testing.assert_array_equal, again.params, loaded.params)
    jax.tree.map(np.testing.assert_array_equal, again.tower, loaded.tower)
    assert pretrained_vision_language.is_vision_language(step)
    text = pretrained.load(tmp_path / "ours")  # its language model alone
    jax.tree.map(np.testing.assert_array_equal, text.params, loaded.params)

    pretrained_vision_language.export_hf(again, tmp_path / "out")
    back, report = transformers.AutoModelForImageTextToText.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(report.values()), report
    theirs = their_inputs(kind, path, [picture(), picture(seed=1)])
    with torch.no_grad():
        expected, found = (one(**theirs).logits for one in (model, back))
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    third = pretrained_vision_language.load(tmp_path / "out")
    assert third.vision.config == loaded.vision.config
    jax.tree.map(np.testing.assert_array_equal, third.tower, loaded.tower)


def test_settings_of_the_processor_in_the_file_of_all(published, tmp_path):
    _, _, path = published
    for file in path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    steps = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match=r"preprocessor_config.json: found absent"):
        pretrained_vision_language.load(tmp_path)
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": steps}))
    expected = pretrained_vision_language.load(path).processor
    assert pretrained_vision_language.load(tmp_path).processor == expected


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("vision_feature_layer", [-2, -5], "one layer, from -3 to -1 or from 1 to 3"),
        ("vision_feature_layer", 4, "one layer, from -3 to -1 or from 1 to 3"),
        ("vision_config", {"model_type": "siglip_vision_model"}, "expected 'clip_vision_model'"),
        ("vision_config", None, "vision_config: found None; expected a table"),
    ],
)
def test_switches_that_are_not_read(tmp_path, key, value, message):
    multimodal.torch_model("llava").save_pretrained(tmp_path)
    multimodal.save_tokenizer(tmp_path, **NAMES["llava"])
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSORS["llava"]))
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {key: value}))
    with pytest.raises(ModelError, match=message):
        pretrained_vision_language.load(tmp_path)
