"""The pretraining objective against all logits at once, for a model that bounds its logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.models.family_cases import ours

from ziggurat.core.pytrees import named_leaves
from ziggurat.mesh import MeshConfig, build
from ziggurat.nn import Packed
from ziggurat.optim import LossConfig
from ziggurat.train.objectives.lm import language_modelling


@pytest.mark.slow
def test_the_models_soft_cap_is_in_the_loss_and_its_gradients():
    """Gemma 2 with a cap of 3 on logits of order five; 40 tokens in chunks of 7.

    Tolerance 1e-5 relative to each gradient's largest entry: sums in another order.
    """
    model, params = ours("gemma/gemma2").model, ours("gemma/gemma2").params
    assert model.decoder.logit_softcap == 3.0
    rng = np.random.default_rng(0)
    tokens, targets = (jnp.asarray(rng.integers(0, 96, (2, 20))) for _ in range(2))
    mask = jnp.asarray(rng.random((2, 20)) < 0.7, jnp.float32)
    positions = jnp.broadcast_to(jnp.arange(20)[None], tokens.shape)
    batch = {
        "tokens": tokens,
        "targets": targets,
        "loss_mask": mask,
        "positions": positions,
        "segment_ids": jnp.ones_like(tokens),
    }
    objective = language_modelling(
        model, LossConfig(chunk_tokens=7), build(MeshConfig(fsdp=1), jax.devices()[:1])
    )

    def plain(params):
        context = Packed(batch["segment_ids"])
        log_probs = jax.nn.log_softmax(model.logits(params, tokens, positions, context))
        return -(jnp.take_along_axis(log_probs, targets[..., None], -1)[..., 0] * mask).sum()

    found = jax.jit(jax.value_and_grad(lambda p: objective(p, batch, {}).loss))(params)
    expected = jax.jit(jax.value_and_grad(plain))(params)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    wanted = named_leaves(expected[1])
    for name, gradient in named_leaves(found[1]).items():
        scale = np.abs(wanted[name]).max()
        assert scale > 0, name
        np.testing.assert_allclose(gradient, wanted[name], atol=1e-5 * scale, rtol=0, err_msg=name)
