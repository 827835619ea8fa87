"""DiT and AutoencoderKL against outputs of diffusers, through directories as diffusers writes them;
and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.oracle import diffusion as oracle

from ziggurat.core.errors import CheckpointError, ConfigError, ModelError
from ziggurat.formats import write_sharded
from ziggurat.mesh import MeshConfig, build
from ziggurat.models import DiffusionModel
from ziggurat.models.diffusion import DiscreteNoise, RectifiedFlow, Sampling, plan_of
from ziggurat.models.loading import diffusers_layout, pretrained_pipeline

TOLERANCE = 1e-4
"""float32 sums in another order; outputs are of order one to ten."""


def directory(path, kind, arguments, tensors):
    write_sharded(path, tensors.items(), stem=diffusers_layout.STEM)
    (path / "config.json").write_text(json.dumps({"_class_name": kind, **arguments}))
    return path


def dit_directory(path, case, *, shared=False, **changes):
    tensors = oracle.weights(oracle.shapes_of(f"dit/{case}"), shared=shared)
    arguments = oracle.DIT | oracle.DITS[case] | changes
    return directory(path, "DiTTransformer2DModel", arguments, tensors)


def autoencoder_directory(path, case):
    tensors = oracle.weights(oracle.shapes_of(f"autoencoder/{case}"))
    return directory(path, "AutoencoderKL", oracle.AUTOENCODER | oracle.AUTOENCODERS[case], tensors)


def predicted(model: DiffusionModel, params, size=oracle.SIZE):
    """All channels that come out."""
    from flax import nnx

    x = oracle.images(f"dit {size}", (3, size, size, oracle.CHANNELS))
    call = jax.jit(lambda p, *inputs: nnx.merge(model.graph, p)(*inputs))
    return np.asarray(call(params, x, oracle.TIMES, oracle.LABELS))


@pytest.fixture(scope="module")
def stored():
    return oracle.load()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    path = dit_directory(tmp_path_factory.mktemp("dit"), "plain")
    return diffusers_layout.load_transformer(path)


@pytest.mark.parametrize("case", oracle.DITS)
def test_dit_computes_what_diffusers_does(case, tmp_path, stored):
    model, params = diffusers_layout.load_transformer(dit_directory(tmp_path, case))
    assert model.config.shared_conditioning is False
    found = predicted(model, params)
    np.testing.assert_allclose(found, stored[f"dit/{case}"], atol=TOLERANCE, rtol=0)


def test_equal_embeddings_of_all_blocks_become_one(tmp_path, stored):
    path = dit_directory(tmp_path / "shared", "plain", shared=True)
    model, params = diffusers_layout.load_transformer(path)
    assert model.config.shared_conditioning is True
    assert params["conditioning"]["classes"].shape == (oracle.CLASSES + 1, 24)
    found = predicted(model, params)
    np.testing.assert_allclose(found, stored["dit/shared"], atol=TOLERANCE, rtol=0)


def test_larger_images_stretch_the_positions(plain, stored):
    found = predicted(*plain, size=oracle.LARGER)
    np.testing.assert_allclose(found, stored["dit/larger"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("case", oracle.AUTOENCODERS)
def test_autoencoder_computes_what_diffusers_does(case, tmp_path, stored):
    model, params = diffusers_layout.load_autoencoder(autoencoder_directory(tmp_path, case))
    config = model.config
    x = oracle.images("autoencoder", (2, 16, 16, config.in_channels))
    mean, deviation = jax.jit(model.encode)(params, x)
    latents = (oracle.images("latents", (2, 6, 6, 4)) - config.shift) * config.scaling
    decoded = jax.jit(model.decode)(params, latents)
    found = {
        "mean": mean / config.scaling + config.shift,
        "deviation": deviation / config.scaling,
        "decoded": decoded,
    }
    for name, array in found.items():
        expected = stored[f"autoencoder/{case}/{name}"]
        scale = max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(array, expected, atol=TOLERANCE * scale, rtol=0, err_msg=name)


def test_sharded_equals_unsharded(plain):
    """To 2e-5 of the largest output: shards are summed in another order."""
    model, params = plain
    layout = build(MeshConfig(data=2, fsdp=2, context=2, tensor=1))
    x = jnp.asarray(oracle.images("sharded", (8, 8, 8, 3)))
    time, labels = jnp.linspace(0, 999, 8), jnp.arange(8) % 6
    expected = jax.jit(model.predict)(params, x, time, labels)
    placed = jax.device_put(params, model.shardings(layout))
    assert len(placed["blocks"]["mlp"]["up"]["kernel"].sharding.device_set) == 8

    def sharded(params, x):
        with layout.active():
            return model.predict(params, x, time, labels)

    rows = layout.sharding(("batch", None, None, None))
    found = jax.jit(sharded)(placed, jax.device_put(x, rows))
    np.testing.assert_allclose(found, expected, atol=2e-5 * float(jnp.abs(expected).max()))


@pytest.fixture(scope="module")
def pipeline_directory(tmp_path_factory):
    """A whole pipeline as diffusers lays it out: a DiT over latents of four channels."""
    path = tmp_path_factory.mktemp("pipeline")
    shapes = oracle.shapes_of("dit/plain") | {
        "pos_embed.proj.weight": [24, 4, 2, 2],
        "proj_out_2.weight": [16, 24],
        "proj_out_2.bias": [16],
    }
    arguments = oracle.DIT | {"in_channels": 4}
    directory(
        path / "transformer",
        "DiTTransformer2DModel",
        arguments,
        oracle.weights(shapes, shared=True),
    )
    autoencoder_directory(path / "vae", "plain")
    (path / "scheduler").mkdir()
    scheduler = {"_class_name": "DDIMScheduler", "clip_sample": False}
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    index = {
        "_class_name": "DiTPipeline",
        "transformer": ["diffusers", "DiTTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "id2label": {str(n): f"kind {n}" for n in range(oracle.CLASSES)},
    }
    (path / "model_index.json").write_text(json.dumps(index))
    return path


def test_a_pipeline_goes_to_a_checkpoint_and_back(pipeline_directory, tmp_path):
    loaded = pretrained_pipeline.load(pipeline_directory)
    assert loaded.around.process == DiscreteNoise()
    assert loaded.default_sampling == Sampling(method="ddim", steps=50, spacing="leading")
    assert loaded.label_of("kind 3") == loaded.label_of("3") == 3
    pretrained_pipeline.save(loaded, tmp_path / "saved")
    again = pretrained_pipeline.load(tmp_path / "saved")
    diffusers_layout.export(again, tmp_path / "out", max_shard_bytes=20_000)
    assert len(list((tmp_path / "out" / "transformer").glob("*.safetensors"))) > 1
    last = pretrained_pipeline.load(tmp_path / "out")
    assert (last.model.config, last.around) == (loaded.model.config, loaded.around)
    jax.tree.map(np.testing.assert_array_equal, last.weights, loaded.weights)


def test_drawn_images_depend_on_their_own_row_alone(pipeline_directory):
    pipeline = pretrained_pipeline.load(pipeline_directory)
    draw = jax.jit(pipeline.draw(Sampling(method="ddpm", steps=3), guidance=2.0))
    labels, seeds = jnp.array([1, 4, 1, 9]), jnp.array([7, 8, 7, 1])
    images = np.asarray(draw(pipeline.weights, labels, seeds))
    assert images.shape == (4, *pipeline.image_shape)
    assert images[:3].min() >= 0
    assert images[:3].max() <= 1
    assert np.isnan(images[3]).all()  # no such class
    np.testing.assert_allclose(images[0], images[2], atol=1e-6)
    assert np.abs(images[0] - images[1]).max() > 0.01


def test_what_is_not_implemented_is_refused(tmp_path, pipeline_directory):
    with pytest.raises(ModelError, match=r"norm_type.*ada_norm_zero"):
        diffusers_layout.load_transformer(dit_directory(tmp_path / "a", "plain", norm_type="x"))
    with pytest.raises(ModelError, match="out_channels: found 5; expected 3 or 6"):
        diffusers_layout.load_transformer(dit_directory(tmp_path / "b", "plain", out_channels=5))
    with pytest.raises(CheckpointError, match="shape"):
        diffusers_layout.load_transformer(dit_directory(tmp_path / "c", "plain", patch_size=4))
    with pytest.raises(ModelError, match="_class_name: found AutoencoderKL"):
        diffusers_layout.load_transformer(pipeline_directory / "vae")
    with pytest.raises(ModelError, match="no such directory"):
        pretrained_pipeline.load(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="ddim, for a model of rectified flow"):
        plan_of(RectifiedFlow(), Sampling(method="ddim"))
    with pytest.raises(ConfigError, match="expected 0 to 4, or one of kind 0"):
        pretrained_pipeline.load(pipeline_directory).label_of("5")
