"""The diffusion models against diffusers: stored outputs recomputed, directories exchanged."""

import jax
import numpy as np
import pytest
from tests.oracle import diffusion as oracle

from ziggurat.models.image_pipeline import AUTOENCODER
from ziggurat.models.loading import diffusers_layout, pretrained_pipeline

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")


def test_stored_outputs_are_what_diffusers_computes():
    oracle.compare(oracle.recompute())


@pytest.mark.parametrize("shared", [False, True])
def test_a_pipeline_of_diffusers_is_read_and_written(shared, tmp_path):
    arguments = oracle.DIT | {"in_channels": 4}
    transformer, _ = oracle._torch_module("DiTTransformer2DModel", arguments, shared)
    vae, _ = oracle.torch_autoencoder("plain")
    pipe = diffusers.DiTPipeline(transformer, vae, diffusers.DDIMScheduler(clip_sample=False))
    pipe.save_pretrained(tmp_path / "theirs")
    ours = pretrained_pipeline.load(tmp_path / "theirs")
    assert ours.model.config.shared_conditioning is shared
    diffusers_layout.export(ours, tmp_path / "ours")
    again = diffusers.DiTPipeline.from_pretrained(tmp_path / "ours")
    for name in ("transformer", "vae"):
        before = getattr(pipe, name).state_dict()
        after = getattr(again, name).state_dict()
        assert before.keys() == after.keys()
        for key, tensor in before.items():
            assert torch.equal(tensor, after[key]), key
    assert again.scheduler.config.clip_sample is False
    latents = oracle.images("exchange", (1, 8, 8, 4))
    if shared:  # once is enough
        return
    with torch.no_grad():
        plain = torch.from_numpy(np.moveaxis(latents, -1, 1)) / vae.config.scaling_factor
        expected = again.vae.decode(plain).sample.numpy()
    assert ours.autoencoder is not None
    found = jax.jit(ours.autoencoder.decode)(ours.weights[AUTOENCODER], latents)
    np.testing.assert_allclose(np.moveaxis(np.asarray(found), -1, 1), expected, atol=1e-4)
