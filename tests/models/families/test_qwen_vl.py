"""Qwen2.5-VL and Qwen3-VL against transformers: towers."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.oracle.families import Tensors, drawn

from ziggurat.models.conversion.weight_names import export_weights, import_weights
from ziggurat.models.families.qwen_vl.names import tower_names
from ziggurat.models.families.qwen_vl.vision import Qwen3VisionConfig, Qwen25VisionConfig
from ziggurat.models.image_places import patch_places
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
