"""Every step of every sampler against diffusers' schedulers, whose configs are read as files."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.oracle import diffusion as oracle

from ziggurat.core.errors import ConfigError, ModelError
from ziggurat.models.conversion import diffusers_scheduler
from ziggurat.models.diffusion import (
    DiscreteNoise,
    RectifiedFlow,
    Sampling,
    guided,
    image_and_noise,
    mixed,
    plan_of,
    sample,
    target,
)


def plan(case):
    name, arguments, steps, eta = oracle.SAMPLERS[case]
    process, sampling = diffusers_scheduler.from_diffusers({"_class_name": name, **arguments})
    return process, dataclasses.replace(sampling, steps=steps, eta=eta)


@pytest.mark.parametrize("case", oracle.SAMPLERS)
def test_every_step_equals_diffusers(case):
    process, sampling = plan(case)
    start, noise = jnp.asarray(oracle.images("start", oracle.SHAPE)), oracle.noise(case)

    def model(x, time):
        return oracle.toy(x, time[:, None, None, None], jnp.tanh)

    def run(start, noise):
        table = plan_of(process, sampling)
        return sample(model, table, start, lambda step: noise[step], trajectory=True)

    found, expected = jax.jit(run)(start, jnp.asarray(noise)), oracle.load()[f"sampler/{case}"]
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found, expected, atol=1e-5 * scale, rtol=0)


@pytest.mark.parametrize("case", oracle.SAMPLERS)
def test_a_scheduler_is_written_as_it_was_read(case):
    process, sampling = plan(case)
    values = diffusers_scheduler.to_diffusers(process, sampling)
    assert values["_class_name"] == oracle.SAMPLERS[case][0]
    again, read = diffusers_scheduler.from_diffusers(values)
    assert again == process
    assert dataclasses.replace(read, steps=sampling.steps, eta=sampling.eta) == sampling


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0", "flow"])
def test_a_target_says_what_a_mixture_is_made_of(prediction):
    rng = np.random.default_rng(0)
    image, noise = (jnp.asarray(rng.normal(size=(4, 2, 2, 1)), jnp.float32) for _ in range(2))
    sigma = jnp.array([0.1, 0.4, 0.7, 0.9])
    alpha = 1 - sigma if prediction == "flow" else jnp.sqrt(1 - sigma**2)
    x = mixed(image, noise, alpha, sigma)
    said = target(prediction, image, noise, alpha, sigma)
    at = [level[:, None, None, None] for level in (alpha, sigma)]
    found = image_and_noise(prediction, x, said, *at)
    np.testing.assert_allclose(found[0], image, atol=1e-5)
    np.testing.assert_allclose(found[1], noise, atol=1e-5)


def test_guidance_goes_from_no_class_past_the_class():
    def model(x, time, labels):
        return x + labels[:, None, None, None].astype(x.dtype)

    x, labels = jnp.zeros((2, 1, 1, 1)), jnp.array([3, 5])
    steered = guided(model, labels, 10, 2.0)(x, jnp.zeros(2))
    np.testing.assert_allclose(steered.ravel(), [10 + 2 * (3 - 10), 10 + 2 * (5 - 10)])
    np.testing.assert_allclose(guided(model, labels, 10, 1.0)(x, jnp.zeros(2)).ravel(), [3, 5])


def test_options_are_honoured_or_refused():
    with pytest.raises(ValueError, match=r"eta: found 0\.5, expected nothing: it is for ddim"):
        Sampling(method="euler", eta=0.5)
    with pytest.raises(ConfigError, match="steps: found 60; expected at most 50"):
        plan_of(DiscreteNoise(levels_count=50), Sampling(method="ddim", steps=60))
    with pytest.raises(ConfigError, match=r"spacing.*no levels"):
        plan_of(RectifiedFlow(), Sampling(spacing="leading"))
    with pytest.raises(ValueError, match="v or x0 with zero_terminal_snr"):
        DiscreteNoise(zero_terminal_snr=True)
    with pytest.raises(ModelError, match="use_karras_sigmas: found True"):
        diffusers_scheduler.from_diffusers(
            {"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True}
        )
    with pytest.raises(ModelError, match="variance_type: found 'learned_range'"):
        diffusers_scheduler.from_diffusers(
            {"_class_name": "DDPMScheduler", "variance_type": "learned_range"}
        )
