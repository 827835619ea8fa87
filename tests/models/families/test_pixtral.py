"""Mistral 3 and Pixtral 12B against transformers: whole models with pictures, names, processors."""

import dataclasses
import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file
from tests.oracle import multimodal, pixtral

from ziggurat.core.errors import DataError, ModelError
from ziggurat.formats import SafetensorsDirectory
from ziggurat.models import family_for_config
from ziggurat.models.conversion.text_part import language_values
from ziggurat.models.families.pixtral import hf
from ziggurat.models.loading import pretrained_vision_language
from ziggurat.models.vision_language_generation import generate
from ziggurat.nn.precision import Precision

CASES = [*pixtral.CASES]
CHAT_TEMPLATE = (
    "{% for m in messages %}{% for p in m.content %}"
    "{% if p.type == 'image' %}[IMG] {% else %}{{ p.text }} {% endif %}{% endfor %}{% endfor %}"
)
PROCESSOR = {"image_processor_type": "PixtralImageProcessorFast", "size": pixtral.SIZE}
TOKENS = {
    "t0": "<unk>", "t1": "<s>", "t2": "</s>",
    "t58": "[IMG_BREAK]", "t59": "[IMG_END]", "t60": "[IMG]",
}  # fmt: skip


@functools.cache
def directory_of(case) -> Path:
    """A case as published: config, weights, processor and tokenizer."""
    path, stored = Path(tempfile.mkdtemp()), pixtral.load(case)
    (path / "config.json").write_text(json.dumps(stored.config))
    (path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    beside = {"processor_class": "PixtralProcessor", **pixtral.sizes_of(case)}
    (path / "processor_config.json").write_text(json.dumps(beside))
    save_file(pixtral.weights(case, stored.shapes), path / "model.safetensors")
    multimodal.save_tokenizer(path, **TOKENS)
    (path / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return path


@functools.cache
def loaded(case):
    return pretrained_vision_language.load(directory_of(case))


@functools.cache
def prompt_of(case):
    """The case's prompt with its pictures."""
    from PIL import Image

    whole = loaded(case)
    images = whole.prepare([Image.fromarray(pixels) for pixels in pixtral.pictures()])
    text = pixtral.PROMPT.replace("{0}", "[IMG]").replace("{1}", "[IMG]")
    return whole.tokens_of(text, images), images


@pytest.mark.parametrize("case", CASES)
def test_tokens_and_pixels_are_those_of_transformers(case):
    """Lines of image tokens with breaks; patches are cut from equal pixels."""
    stored, (tokens, images) = pixtral.load(case), prompt_of(case)
    assert tokens == stored.tokens.tolist()
    side, merge = pixtral.sizes_of(case).values()
    for image, pixels, (high, wide) in zip(images, stored.pixels, stored.sizes):
        assert image.grid == (high // side, wide // side)
        assert image.line == wide // side // merge
        cut = pixels[:, :high, :wide]
        blocks = cut.reshape(3, high // side // merge, merge, side, -1, merge, side)
        expected = blocks.transpose(1, 4, 2, 5, 0, 3, 6).reshape(-1, 3 * side**2)
        np.testing.assert_allclose(image.pixels, expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_logits_and_greedy_tokens_equal_transformers(case):
    """Two pictures of other sizes; tolerance 1e-5 of the largest logit, which is 4."""
    whole, stored, (tokens, images) = loaded(case), pixtral.load(case), prompt_of(case)
    prompt = whole.prompt([tokens], [images])
    found = whole.vision.logits(whole.params, prompt)
    largest = np.abs(stored.logits).max()
    np.testing.assert_allclose(found[0], stored.logits, atol=1e-5 * largest, rtol=0)
    [new] = generate(whole.vision, whole.params, prompt, len(stored.generated))
    assert new == stored.generated.tolist()


def test_rows_of_a_batch_are_as_if_alone():
    """One row with both pictures, one with none and padding, one with the second alone."""
    whole, (tokens, images) = loaded("mistral3"), prompt_of("mistral3")
    second = whole.tokens_of("[IMG] t7 t7", images[1:])
    rows = [row + [0] * (len(tokens) - len(row)) for row in (tokens, [4, 5, 6], second)]
    run = jax.jit(lambda prompt: whole.vision.logits(whole.params, prompt))
    found = run(whole.prompt(rows, [images, [], images[1:]]))
    np.testing.assert_allclose(found[0], pixtral.load("mistral3").logits, atol=4e-5, rtol=0)
    expected = run(whole.prompt([second], [images[1:]]))
    np.testing.assert_allclose(found[2, : len(second)], expected[0], atol=4e-5, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_written_files_are_those_read(case, tmp_path):
    """Config, names and tensors both ways; and a checkpoint of our own."""
    whole = loaded(case)
    out = pretrained_vision_language.export_hf(whole, tmp_path / "hf")
    again = pretrained_vision_language.load(out)
    same = {"language": whole.vision.config.language}  # which says by default what files spell out
    found: Any = again.vision.config
    assert dataclasses.replace(found, **same) == whole.vision.config
    assert again.model.decoder == whole.model.decoder
    assert again.processor == whole.processor
    theirs = {
        name: tensor
        for name, tensor in pixtral.weights(case, pixtral.load(case).shapes).items()
        if case != "llava" or "transformer.layers.2." not in name  # behind the one that is read
    }
    written = SafetensorsDirectory(out)
    older = {name: older_name(name) for name in theirs}
    assert {*written} == {*older.values()}
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(written.read(older[name]), tensor, err_msg=name)
    values = json.loads((out / "config.json").read_text())
    for key in ("architectures", "model_type", "image_token_index", "projector_hidden_act"):
        assert values[key] == pixtral.load(case).config[key], key
    step = pretrained_vision_language.save(whole, tmp_path / "run")
    back = pretrained_vision_language.load(step)
    assert (back.vision.config, back.processor) == (whole.vision.config, whole.processor)
    jax.tree.map(np.testing.assert_array_equal, back.tower, whole.tower)


def older_name(name: str) -> str:
    """A tensor's name in publishers' files, from that of transformers 5."""
    beginnings = {
        "model.language_model.": "language_model.model.",
        "lm_head.": "language_model.lm_head.",
        "model.": "",
    }
    for here, there in beginnings.items():
        if name.startswith(here):
            return there + name.removeprefix(here)
    return name


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES)
def test_transformers_reads_what_is_written(case, tmp_path):
    out = pretrained_vision_language.export_hf(loaded(case), tmp_path / "hf")
    found = pixtral.run(case, pixtral.torch_model(out))["logits"]
    np.testing.assert_allclose(found, pixtral.load(case).logits, atol=1e-5, rtol=0)


@pytest.mark.parity
def test_stored_results_are_what_transformers_says():
    pixtral.check()


def test_a_published_config_of_mistral_small():
    """Keys and sizes of Mistral Small 3.1's file, of before transformers 5."""
    text = {
        "attention_dropout": 0.0, "head_dim": 128, "hidden_act": "silu", "hidden_size": 5120,
        "initializer_range": 0.02, "intermediate_size": 32768, "max_position_embeddings": 131072,
        "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 40,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 1000000000.0,
        "sliding_window": None, "use_cache": True, "vocab_size": 131072,
    }  # fmt: skip
    vision = {
        "attention_dropout": 0.0, "head_dim": 64, "hidden_act": "silu", "hidden_size": 1024,
        "image_size": 1540, "initializer_range": 0.02, "intermediate_size": 4096,
        "model_type": "pixtral", "num_attention_heads": 16, "num_channels": 3,
        "num_hidden_layers": 24, "patch_size": 14, "rope_theta": 10000.0,
    }  # fmt: skip
    values = {
        "architectures": ["Mistral3ForConditionalGeneration"], "image_token_index": 10,
        "model_type": "mistral3", "multimodal_projector_bias": False,
        "projector_hidden_act": "gelu", "spatial_merge_size": 2, "text_config": text,
        "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0",
        "vision_config": vision, "vision_feature_layer": -1, "tie_word_embeddings": False,
    }  # fmt: skip
    inner = language_values(values)
    found = hf.from_hf(values, family_for_config(inner).from_hf(inner))
    tower = found.tower(Precision())
    layer = 4 * 1024**2 + 3 * 1024 * 4096 + 2 * 1024
    merging = 1024 + 4 * 1024**2 + 1024 * 5120 + 5120**2
    assert tower.parameter_count == 3 * 14**2 * 1024 + 1024 + 24 * layer + merging


def changed(tmp_path, case, file, change) -> Path:
    """A case's directory in which a file's values are others."""
    for one in directory_of(case).iterdir():
        (tmp_path / one.name).symlink_to(one)
    values = json.loads((tmp_path / file).read_text())
    for key, value in change.items():
        *tables, name = key.split(".")
        functools.reduce(lambda table, one: table[one], tables, values)[name] = value
    (tmp_path / file).unlink()
    (tmp_path / file).write_text(json.dumps(values))
    return tmp_path


def test_a_text_that_the_architecture_does_not_take():
    found: Any = loaded("mistral3").vision.config
    for language in ({"model_type": "qwen2"}, {"model_type": "llama", "mlp_bias": True}):
        with pytest.raises(ModelError, match="expected mistral or ministral or ministral3 for Mi"):
            hf.to_hf(found, language)


CONFIG, STEPS, BESIDE = "config.json", "preprocessor_config.json", "processor_config.json"


@pytest.mark.parametrize(
    ("case", "file", "change", "part"),
    [
        ("mistral3", CONFIG, {"vision_config": None}, "vision_config: found None"),
        ("mistral3", CONFIG, {"vision_config.model_type": "siglip_vision_model"}, "'pixtral'"),
        ("mistral3", CONFIG, {"vision_config.head_dim": 4}, "it follows from width and heads"),
        ("mistral3", CONFIG, {"vision_config.num_channels": 1}, "pictures are read in RGB"),
        ("mistral3", CONFIG, {"vision_config.patch_size": [4, 4]}, "patch_size"),
        ("mistral3", CONFIG, {"vision_config.rope_parameters": {"rope_type": "yarn"}}, "axial"),
        ("mistral3", CONFIG, {"vision_config.some_switch": 4}, "some_switch"),
        ("mistral3", CONFIG, {"vision_feature_layer": [-2, -1]}, "one layer, from -2 to -1"),
        ("mistral3", CONFIG, {"spatial_merge_size": 0}, "merge_size"),
        (
            "mistral3",
            CONFIG,
            {"vision_config.hidden_size": 18, "vision_config.head_dim": 9},
            "of 8",
        ),
        ("llava", CONFIG, {"vision_feature_select_strategy": "default"}, "no class token"),
        ("mistral3", STEPS, {"image_processor_type": "CLIPImageProcessor"}, "CLIPImageProcessor"),
        ("mistral3", STEPS, {"do_center_crop": True}, "do_center_crop"),
        ("mistral3", STEPS, {"size": {"shortest_edge": 4}}, "longest_edge, or height and width"),
        ("mistral3", BESIDE, {"image_break_token": "<br>"}, "expected '[IMG_BREAK]'"),
        ("mistral3", BESIDE, {"some_switch": 4}, "some_switch"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_not_implemented_is_refused(case, file, change, part, tmp_path):
    with pytest.raises(ModelError) as caught:
        pretrained_vision_language.load(changed(tmp_path, case, file, change))
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pictures_that_the_tower_does_not_read():
    whole, image = loaded("mistral3"), np.zeros((64, 64, 3), np.uint8)
    from PIL import Image

    picture = Image.fromarray(image)
    steps: Any = whole.processor
    other = dataclasses.replace(whole, processor=dataclasses.replace(steps, merge_size=1))
    with pytest.raises(DataError, match=r"found \[4, 1\]; expected \[4, 2\], as the model has"):
        other.prepare([picture])
    large = dataclasses.replace(steps, most_height=64, most_width=64)
    with pytest.raises(DataError, match="found 16 x 16 patches; expected at most 12 a side"):
        dataclasses.replace(whole, processor=large).prepare([picture])
    keeps = dataclasses.replace(steps, resize=False)
    with pytest.raises(DataError, match="found 64 x 63 pixels; expected multiples of 8"):
        keeps.grid(64, 63)
    with pytest.raises(DataError, match="at least one pixel within 48 x 48"):
        steps.grid(4900, 1)
