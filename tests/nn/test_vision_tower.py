"""Vision towers of patches: images packed in a row, windows, taps."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ziggurat.core.errors import ShapeError
from ziggurat.models.families.qwen_vl.vision import Qwen3VisionConfig, Qwen25VisionConfig
from ziggurat.models.image_places import patch_places
from ziggurat.models.vision_tower_model import VisionTowerModel
from ziggurat.nn.rope import RopeConfig, axial_rotation, rotation
from ziggurat.nn.vision_tower import PatchPlaces

SIZES: dict[str, Any] = {
    "d_model": 16,
    "n_layers": 3,
    "n_heads": 2,
    "d_ff": 24,
    "outputs": 12,
    "init_std": 0.2,
}
CONFIGS = {
    "windows": Qwen25VisionConfig(**SIZES, patch_size=2, window_size=8, full_layers=(1,)),
    "taps": Qwen3VisionConfig(**SIZES, patch_size=2, position_side=3, tapped_layers=(0, 2)),
}
GRIDS = [(6, 10), (4, 2)]


def places(config, rows, **sizes) -> PatchPlaces:
    return patch_places(rows, config.merge_size, config.window, **sizes)


def build(config):
    model = VisionTowerModel.build(config)
    return model, model.init(jax.random.key(0))


def patches(*shape):
    return jax.random.normal(jax.random.key(1), (*shape, 3 * 2 * 2 * 2))


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_an_image_is_as_if_alone(name):
    """Neither other images of its row, nor padding, nor other rows change its embeddings."""
    model, params = build(CONFIGS[name])
    given = patches(2, 80)
    packed = places(model.config, [GRIDS, [GRIDS[1]]], patches=80, windows=10)
    found = jax.jit(model.embeddings)(params, given, packed)
    alone = model.embeddings(params, given[:1, 60:68], places(model.config, [GRIDS[1:]]))
    np.testing.assert_allclose(found.embeddings[0, 15:17], alone.embeddings[0], atol=1e-5)
    second = model.embeddings(params, given[1:, :8], places(model.config, [GRIDS[1:]]))
    np.testing.assert_allclose(found.embeddings[1, :2], second.embeddings[0], atol=1e-5)
    assert found.embeddings.shape == (2, 20, 12)
    if found.by_layer is None or alone.by_layer is None:
        assert name == "windows"
    else:
        assert found.by_layer.shape == (2, 2, 20, 12)
        np.testing.assert_allclose(found.by_layer[:, 0, 15:17], alone.by_layer[:, 0], atol=1e-5)


@pytest.mark.slow
def test_windows_reach_as_far_as_they_say():
    """A patch changes the embeddings of its own window, and of others in full layers only."""
    config = dataclasses.replace(CONFIGS["windows"], full_layers=())
    model, params = build(config)
    where, given = places(config, [[(6, 10)]]), patches(1, 60)
    assert where.windows is not None
    assert where.windows.shape == (1, 6, 16)  # of 4 by 4 patches, cut off at the borders
    before = model.embeddings(params, given, where).embeddings[0]
    after = model.embeddings(params, given.at[0, 0].add(1.0), where).embeddings[0]
    changed = np.abs(np.asarray(after - before)).max(-1) > 1e-6
    assert np.flatnonzero(changed).tolist() == [0, 1, 5, 6]  # blocks: three rows of five
    whole, params = build(dataclasses.replace(config, full_layers=(2,)))
    after = whole.embeddings(params, given.at[0, 0].add(1.0), where).embeddings[0]
    before = whole.embeddings(params, given, where).embeddings[0]
    assert (np.abs(np.asarray(after - before)).max(-1) > 1e-6).all()


@pytest.mark.slow
def test_gradients_reach_every_parameter():
    model, params = build(CONFIGS["taps"])
    where, given = places(model.config, [GRIDS]), patches(1, 68)

    def loss(params):
        found = model.embeddings(params, given, where)
        return sum((leaf**2).sum() for leaf in jax.tree.leaves(found))

    gradients = jax.tree.leaves_with_path(jax.jit(jax.grad(loss))(params))
    still = [jax.tree_util.keystr(path) for path, leaf in gradients if not jnp.abs(leaf).max() > 0]
    assert still == []


def test_axial_angles_are_those_of_each_axis():
    at = jnp.array([[[2, 5], [0, 3]]])
    cos, sin = axial_rotation(at, RopeConfig(theta=50.0), 8)
    for axis in (0, 1):
        alone = rotation(at[..., axis], RopeConfig(theta=50.0), 4)
        np.testing.assert_allclose(cos[..., 2 * axis : 2 * axis + 2], alone[0], atol=1e-6)
        np.testing.assert_allclose(sin[..., 2 * axis : 2 * axis + 2], alone[1], atol=1e-6)
    cos, _ = axial_rotation(at, RopeConfig(theta=50.0, interleaved=True), 8)
    for axis in (0, 1):  # the first axis takes the even ones of one series, the second the odd
        alone, _ = rotation(at[..., axis], RopeConfig(theta=50.0), 8)
        np.testing.assert_allclose(
            cos[..., 2 * axis : 2 * axis + 2], alone[..., axis::2], atol=1e-6
        )
    with pytest.raises(ShapeError, match="a multiple of 4, for 2 axes"):
        axial_rotation(at, RopeConfig(), 6)


@pytest.mark.slow
def test_what_does_not_fit_is_refused_in_a_line():
    model, params = build(CONFIGS["windows"])
    where = places(model.config, [GRIDS])
    for given, changed, part in (
        (patches(1, 68)[..., 1:], where, "each of 24 numbers"),
        (patches(1, 67), where, "67 of 24 numbers; expected a multiple of 4"),
        (patches(1, 68), dataclasses.replace(where, windows=None), "no windows"),
    ):
        with pytest.raises(ShapeError) as caught:
            model.embeddings(params, given, changed)
        assert part in str(caught.value)
        assert "\n" not in str(caught.value)
