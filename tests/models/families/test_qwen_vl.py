"""Qwen2.5-VL, Qwen3-VL and Qwen 3.5 against transformers: towers, whole models with pictures."""

import dataclasses
import functools
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from tests.oracle import multimodal, qwen_vl
from tests.oracle.families import Tensors, drawn
from tests.oracle.processors import APART

from ziggurat import mesh
from ziggurat.core.errors import DataError, ModelError
from ziggurat.formats import SafetensorsDirectory
from ziggurat.models.conversion.block_names import joined_experts
from ziggurat.models.conversion.weight_names import export_weights, import_weights
from ziggurat.models.families.family import family_of
from ziggurat.models.families.qwen_vl import hf
from ziggurat.models.families.qwen_vl.names import tower_names
from ziggurat.models.families.qwen_vl.vision import Qwen3VisionConfig, Qwen25VisionConfig
from ziggurat.models.image_places import patch_places
from ziggurat.models.loading import pretrained, pretrained_vision_language
from ziggurat.models.vision_language_generation import generate
from ziggurat.models.vision_tower_model import VisionTowerModel

SIZES: dict[str, Any] = {"d_model": 32, "n_layers": 5, "n_heads": 4, "d_ff": 48, "outputs": 24}
TOWERS = {
    "qwen2_5_vl": Qwen25VisionConfig(**SIZES, patch_size=4, window_size=16, full_layers=(1, 3)),
    "qwen3_vl": Qwen3VisionConfig(**SIZES, patch_size=4, position_side=5, tapped_layers=(1, 3)),
}
GRIDS = [(8, 12), (4, 6), (10, 6)]


def torch_tower(name, config):
    import transformers
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as second
    from transformers.models.qwen3_vl import modeling_qwen3_vl as third

    settings: Any

    same: dict[str, Any] = {
        "depth": config.n_layers, "hidden_size": config.d_model, "num_heads": config.n_heads,
        "intermediate_size": config.d_ff, "out_hidden_size": config.outputs,
        "patch_size": config.patch_size,
    }  # fmt: skip
    if name == "qwen3_vl":
        taps = list(config.tapped_layers)
        rows = config.position_side**2
        settings = transformers.Qwen3VLConfig(
            vision_config=same | {"deepstack_visual_indexes": taps, "num_position_embeddings": rows}
        ).vision_config
        return third.Qwen3VLVisionModel(settings).eval()
    full = list(config.full_layers)
    settings = transformers.Qwen2_5_VLConfig(
        vision_config=same | {"window_size": config.window_size, "fullatt_block_indexes": full}
    ).vision_config
    return second.Qwen2_5_VisionTransformerPretrainedModel(settings).eval()


@pytest.mark.parity
@pytest.mark.parametrize("name", TOWERS)
def test_towers_equal_transformers(name):
    """Three images of other sizes in a row with padding; tolerance 1e-4 on values of order one."""
    import torch

    config = TOWERS[name]
    theirs = torch_tower(name, config)
    tensors = Tensors({k: drawn(name, k, tuple(v.shape)) for k, v in theirs.state_dict().items()})
    theirs.load_state_dict({k: torch.from_numpy(v) for k, v in tensors.items()})
    model = VisionTowerModel.build(config)
    names = tower_names(config, "")
    params = import_weights(names, tensors, model.abstract, layers=config.n_layers)
    again = dict(export_weights(names, params, layers=config.n_layers))
    assert again.keys() == tensors.keys()
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(again[key], tensor, err_msg=key)

    count = sum(h * w for h, w in GRIDS)
    patches = np.random.default_rng(0).normal(size=(1, count, model.tower.inputs)).astype("f4")
    with torch.no_grad():
        grids = torch.tensor([[1, *grid] for grid in GRIDS])
        expected = theirs(torch.from_numpy(patches[0]), grid_thw=grids)
    where = patch_places([GRIDS], config.merge_size, config.window, patches=count + 12)
    padded = np.pad(patches, ((0, 0), (0, 12), (0, 0)))
    found = jax.jit(model.embeddings)(params, jnp.asarray(padded), where)
    np.testing.assert_allclose(
        found.embeddings[0, : count // 4], expected.pooler_output.numpy(), atol=1e-4
    )
    if name == "qwen3_vl":
        assert len(expected.deepstack_features) == len(found.by_layer) == 2
        for ours, layer in zip(found.by_layer, expected.deepstack_features):
            np.testing.assert_allclose(ours[0, : count // 4], layer.numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "change", "part"),
    [
        ("qwen2_5_vl", {"full_layers": (1, 5)}, "rising numbers from 0 to 4"),
        ("qwen2_5_vl", {"window_size": 7}, "window_size"),
        ("qwen3_vl", {"tapped_layers": (3, 1)}, "tapped_layers"),
        ("qwen3_vl", {"d_model": 36}, "a multiple of 16"),
        ("qwen3_vl", {"merge_size": 0}, "merge_size"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(name, change, part):
    with pytest.raises(ValueError, match=part):
        dataclasses.replace(TOWERS[name], **change)


CASES = [*qwen_vl.CASES]
PROCESSOR = {"image_processor_type": "Qwen2VLImageProcessorFast"}
TOKENS = {
    "t0": "<unk>", "t1": "<s>", "t2": "</s>",
    "t58": "<begin>", "t59": "<end>", "t60": "<image>", "t61": "<video>",
}  # fmt: skip


@functools.cache
def directory_of(case) -> Path:
    """A case as published: config, weights, processor and tokenizer."""
    path, stored = Path(tempfile.mkdtemp()), qwen_vl.load(case)
    (path / "config.json").write_text(json.dumps(stored.config))
    (path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | qwen_vl.processor(case)))
    save_file(qwen_vl.weights(case, stored.shapes), path / "model.safetensors")
    multimodal.save_tokenizer(path, **TOKENS)
    (path / "chat_template.jinja").write_text(qwen_vl.CHAT_TEMPLATE)
    return path


@functools.cache
def loaded(case):
    return pretrained_vision_language.load(directory_of(case))


@functools.cache
def prompt_of(case):
    """The case's prompt with its pictures."""
    from PIL import Image

    whole = loaded(case)
    images = whole.prepare([Image.fromarray(pixels) for pixels in qwen_vl.pictures()])
    text = "t5 t6 <begin> <image> <end> t7 t8 t9 <begin> <image> <end> t33 t44"
    tokens = whole.tokens_of(text.replace(" <image> ", "<image>"), images)
    np.testing.assert_array_equal(tokens, qwen_vl.load(case).tokens)
    return whole.prompt([tokens], [images]), tokens, images


@pytest.mark.parametrize("case", CASES)
def test_logits_of_text_with_pictures_equal_transformers(case):
    """Two pictures of other sizes; tolerance 1e-4 on logits of order one."""
    whole, (prompt, _, _) = loaded(case), prompt_of(case)
    found = whole.vision.logits(whole.params, prompt)
    np.testing.assert_allclose(found[0], qwen_vl.load(case).logits, atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in CASES if "-" not in c])
def test_greedy_decoding_equals_transformers(case):
    """Through a cache: the tokens behind a picture stand earlier than their number in the row."""
    whole, (prompt, _, _) = loaded(case), prompt_of(case)
    [found] = generate(whole.vision, whole.params, prompt, qwen_vl.NEW)
    assert found == qwen_vl.load(case).generated.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("case", ["qwen2_5_vl", "qwen3_vl", "qwen3_5"])
def test_rows_of_a_batch_are_as_if_alone(case):
    """One row with both pictures, one with the second alone and padding, one with none."""
    whole, (prompt, tokens, images) = loaded(case), prompt_of(case)
    second = [58, *[60] * images[1].tokens, 59, 7, 7]
    rows = [row + [0] * (len(tokens) - len(row)) for row in (tokens, second, [4, 5, 6])]
    batch = whole.prompt(rows, [images, images[1:], []])
    found = whole.vision.logits(whole.params, batch)
    alone = whole.vision.logits(whole.params, prompt)
    np.testing.assert_allclose(found[0], alone[0], atol=APART)
    alone = whole.vision.logits(whole.params, whole.prompt([second], [images[1:]]))
    np.testing.assert_allclose(found[1, : len(second)], alone[0], atol=APART)
    alone = whole.vision.logits(whole.params, whole.prompt([[4, 5, 6]], [[]]))
    np.testing.assert_allclose(found[2, :3], alone[0], atol=APART)
    assert batch.ahead is not None
    ahead = batch.ahead.tolist()
    assert prompt.ahead is not None
    assert ahead[0] == int(prompt.ahead[0]) < ahead[1] < ahead[2] == 0


@pytest.mark.parametrize("axes", [{"tensor": 2}, {"fsdp": 2, "tensor": 2}], ids=str)
@pytest.mark.parametrize("case", ["qwen2_5_vl", "qwen3_vl"])
def test_sharded_parameters_give_the_same_embeddings(case, axes):
    whole, (_, _, images) = loaded(case), prompt_of(case)
    tower = whole.vision.tower
    expected = tower.features(whole.tower, images)
    layout = mesh.build(mesh.MeshConfig(**axes), jax.devices()[: math.prod(axes.values())])
    placed = jax.device_put(whole.tower, tower.shardings(layout))
    kernel = placed["blocks"]["attention"]["query"]["kernel"]
    assert kernel.addressable_shards[0].data.size < kernel.size
    with layout.active():
        found = tower.features(placed, images)
    np.testing.assert_allclose(found.embeddings, expected.embeddings, atol=APART)
    if expected.by_layer is not None:
        assert found.by_layer is not None
        np.testing.assert_allclose(found.by_layer, expected.by_layer, atol=APART)


@pytest.mark.parametrize("case", CASES)
def test_written_files_are_those_read(case, tmp_path):
    """Config, names and tensors both ways; and a checkpoint of our own."""
    whole, read = loaded(case), json.loads((directory_of(case) / "config.json").read_text())
    out = pretrained_vision_language.export_hf(whole, tmp_path / "hf")
    again = pretrained_vision_language.load(out)
    same = {"language": whole.vision.config.language}  # which says by default what files spell out
    found: Any = again.vision.config
    assert dataclasses.replace(found, **same) == whole.vision.config
    assert again.model.decoder == whole.model.decoder
    assert again.processor == whole.processor
    shapes = qwen_vl.load(case).shapes
    written = SafetensorsDirectory(out)
    theirs = qwen_vl.weights(case, shapes)
    assert {*written} == {*theirs}
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(written.read(name), tensor, err_msg=name)
    values = json.loads((out / "config.json").read_text())
    for key in ("architectures", "model_type", *hf.IDS.values()):
        assert values[key] == read[key], key
    step = pretrained_vision_language.save(whole, tmp_path / "run")
    assert pretrained_vision_language.is_vision_language(step)
    back = pretrained_vision_language.load(step)
    assert back.vision.config == whole.vision.config
    jax.tree.map(np.testing.assert_array_equal, back.tower, whole.tower)


@pytest.mark.parametrize("case", ["qwen3_vl_moe", "qwen3_5_moe"])
def test_experts_joined_either_way_are_those_of_separate_files(case, tmp_path):
    """Publishers' files have them ``[in, out]`` or ``[out, in]``, and transformers' one by one."""
    whole = loaded(case)
    names = family_of(whole.model.config).hf_names(whole.model.config)
    layers = whole.model.decoder.n_layers
    for file in directory_of(case).iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).symlink_to(file)
    for form in (None, True, False):
        stored = names if form is None else joined_experts(names, 12, inputs_first=form)
        save_file(
            dict(export_weights(stored, whole.params, layers=layers)),
            tmp_path / "model.safetensors",
        )
        jax.tree.map(np.testing.assert_array_equal, pretrained.load(tmp_path).params, whole.params)


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES)
def test_transformers_reads_what_is_written(case, tmp_path):
    out = pretrained_vision_language.export_hf(loaded(case), tmp_path / "hf")
    _, logits, _ = qwen_vl.run(case, qwen_vl.torch_model(out))
    np.testing.assert_allclose(logits, qwen_vl.load(case).logits, atol=APART, rtol=0)


@pytest.mark.parity
def test_stored_results_are_what_transformers_says():
    qwen_vl.check()


def test_the_language_model_is_read_without_its_tower(caplog):
    alone = pretrained.load(directory_of("qwen3_vl"))
    assert alone.model.config == loaded("qwen3_vl").vision.config.language
    assert "images are refused" in caplog.text


def test_a_published_config_of_before_transformers_5():
    """Settings of the text at the top, and older names in the tower's table."""
    from tests.models.conversion.test_text_part import QWEN

    from ziggurat.models import family_for_config
    from ziggurat.models.conversion.text_part import language_values

    vision = {
        "depth": 32, "hidden_act": "silu", "hidden_size": 1280, "intermediate_size": 3420,
        "num_heads": 16, "in_chans": 3, "out_hidden_size": 2048, "patch_size": 14,
        "spatial_merge_size": 2, "spatial_patch_size": 14, "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2, "temporal_patch_size": 2,
    }  # fmt: skip
    values = QWEN | {"vision_config": vision}
    text = language_values(values)
    config = hf.from_hf(values, family_for_config(text).from_hf(text))
    assert config.language.rope.sections == (16, 24, 24)
    assert not config.language.rope.interleaved
    assert config.image.window == 8
    model = VisionTowerModel.build(config.image)
    assert model.parameter_count == 668_684_288  # as transformers counts
    assert model.tower.runs[0].period == 8, "seven layers with windows, and one without"


def test_videos_are_refused_in_a_line():
    whole = loaded("qwen3_vl")
    with pytest.raises(DataError) as caught:
        whole.prompt([[5, 61, 6]], [[]])
    assert str(caught.value) == (
        "tokens (id 61): found a video; expected text and images; videos are not implemented; "
        "give its pictures as images"
    )


def test_a_processor_of_other_patches_is_refused():
    whole = loaded("qwen3_vl")
    other = dataclasses.replace(whole, processor=dataclasses.replace(whole.processor, frames=1))
    with pytest.raises(DataError, match=r"found \[4, 2, 1\]; expected \[4, 2, 2\]"):
        other.prepare([])


@pytest.mark.parametrize(
    ("case", "change", "part"),
    [
        ("qwen3_vl", {"vision_config": None}, "vision_config"),
        ("qwen3_vl", {"image_token_id": "x"}, "image_token"),
        ("qwen3_vl", {"vision_config.out_hidden_size": 16}, "image.outputs"),
        ("qwen3_vl", {"vision_config.num_position_embeddings": 15}, "a square number"),
        ("qwen3_vl", {"vision_config.deepstack_visual_indexes": [2, 0]}, "tapped_layers"),
        ("qwen3_vl", {"vision_config.hidden_act": "swish2"}, "hidden_act"),
        ("qwen3_vl", {"vision_config.in_chans": 4}, "in_channels is what counts"),
        ("qwen3_vl", {"vision_config.some_switch": 4}, "some_switch"),
        ("qwen3_vl", {"vision_config.rope_parameters": {"rope_type": "yarn"}}, "axial"),
        ("qwen3_vl", {"text_config.rope_parameters": {"rope_type": "default"}}, "rope.sections"),
        ("qwen3_vl_moe", {"text_config.norm_topk_prob": False}, "norm_topk_prob: found False"),
        ("qwen3_5", {"vision_config.deepstack_visual_indexes": [0]}, "tapped_layers"),
        ("qwen2_5_vl", {"vision_config.window_size": 3}, "window_size"),
        ("qwen2_5_vl", {"vision_config.patch_size": [4, 4]}, "patch_size"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_not_implemented_is_refused(case, change, part, tmp_path):
    values = json.loads((directory_of(case) / "config.json").read_text())
    for key, value in change.items():
        *tables, name = key.split(".")
        functools.reduce(lambda table, one: table[one], tables, values)[name] = value
    for file in directory_of(case).iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ModelError) as caught:
        pretrained_vision_language.load(tmp_path)
    assert part in str(caught.value)
