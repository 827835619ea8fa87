"""Mixtures of experts against one token at a time, routers against their definition, and losses.

Tolerance 2e-5 on sums of order one: products are added in another order.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ziggurat.nn import GatedMlpConfig, MixtureOfExpertsConfig, Precision, RouterConfig, Routing
from ziggurat.nn.moe import ClampedSwiglu
from ziggurat.nn.router import largest_load, load_balancing_loss, router_z_loss

WIDTH, HIDDEN = 8, 6
PLAIN = MixtureOfExpertsConfig(router=RouterConfig(experts=4, chosen=2), hidden=HIDDEN)
DEEPSEEK = MixtureOfExpertsConfig(
    router=RouterConfig(
        experts=8, chosen=3, scores="sigmoid", scale=2.5, correction=True, groups=4, chosen_groups=2
    ),
    hidden=HIDDEN,
    shared=GatedMlpConfig(hidden=10, activation="silu"),
)
GPT_OSS = MixtureOfExpertsConfig(
    router=RouterConfig(experts=4, chosen=2, bias=True),
    hidden=HIDDEN,
    activation=ClampedSwiglu(1.7, 0.5),
    bias=True,
)
UNNORMALISED = dataclasses.replace(
    PLAIN, router=RouterConfig(experts=4, chosen=1, normalise=False), activation="gelu"
)
CONFIGS = {
    "plain": PLAIN,
    "deepseek": DEEPSEEK,
    "gpt-oss": GPT_OSS,
    "weights as they are": UNNORMALISED,
}


def module(config: MixtureOfExpertsConfig):
    """A mixture with random parameters, biases included."""
    mixture = config.build(WIDTH, 0.5, Precision(), nnx.Rngs(params=0))
    graph, state = nnx.split(mixture)
    rng = np.random.default_rng(1)
    state = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), state)
    return nnx.merge(graph, state)


def inputs():
    return jnp.asarray(np.random.default_rng(2).normal(size=(2, 7, WIDTH)), jnp.float32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def chosen_by_hand(c: RouterConfig, logits, correction):
    """Experts and weights of one token."""
    scores = sigmoid(logits) if c.scores == "sigmoid" else np.exp(logits) / np.exp(logits).sum()
    merit = scores + correction
    size = c.experts // c.groups
    best_two = [np.sort(merit[g * size : (g + 1) * size])[-2:].sum() for g in range(c.groups)]
    allowed = np.argsort(best_two)[-c.chosen_groups :]
    merit = np.where(np.isin(np.arange(c.experts) // size, allowed), merit, -np.inf)
    experts = np.argsort(merit)[-c.chosen :]
    weights = scores[experts] / (scores[experts].sum() if c.normalise else 1)
    return experts, weights * c.scale


def one_expert(config: MixtureOfExpertsConfig, part, x):
    def project(name, x):
        kernel, bias = part[name]
        return x @ kernel + bias

    gate, up = project("gate", x), project("up", x)
    if isinstance(config.activation, ClampedSwiglu):
        limit, alpha = config.activation.limit, config.activation.alpha
        gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
        hidden = gate * sigmoid(alpha * gate) * (up + 1)
    elif config.activation == "gelu":
        hidden = np.asarray(jax.nn.gelu(gate, approximate=False)) * up
    else:
        hidden = gate * sigmoid(gate) * up
    return project("down", hidden)


def by_hand(config: MixtureOfExpertsConfig, mixture, x):
    """Token after token; also how often each expert was chosen."""
    router, counts = mixture.router, np.zeros(config.router.experts)
    bias = 0 if router.bias is None else np.asarray(router.bias[...])
    correction = 0 if router.correction_bias is None else np.asarray(router.correction_bias[...])
    out = np.zeros(x.shape)
    for at in np.ndindex(x.shape[:2]):
        logits = np.asarray(x[at]) @ np.asarray(router.kernel[...]) + bias
        for expert, weight in zip(*chosen_by_hand(config.router, logits, correction), strict=True):
            counts[expert] += 1
            part = {}
            for name in ("gate", "up", "down"):
                linear = getattr(mixture.experts, name)
                own = 0 if linear.bias is None else np.asarray(linear.bias[expert])
                part[name] = np.asarray(linear.kernel[expert]), own
            out[at] += weight * one_expert(config, part, np.asarray(x[at]))
    shared = 0 if mixture.shared is None else np.asarray(mixture.shared(jnp.asarray(x))[0])
    return out + shared, counts


@pytest.mark.parametrize("name", CONFIGS)
def test_a_mixture_is_its_definition(name):
    config, x = CONFIGS[name], inputs()
    mixture = module(config)
    graph, state = nnx.split(mixture)
    found, routing = jax.jit(lambda s, x: nnx.merge(graph, s)(x))(state, x)
    expected, counts = by_hand(config, mixture, x)
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(routing.counts, counts)
    np.testing.assert_allclose(routing.probabilities.sum(), routing.tokens, rtol=1e-5)


def test_padding_is_not_reported():
    graph, state = nnx.split(module(PLAIN))
    run, x = jax.jit(lambda state, *given: nnx.merge(graph, state)(*given)), inputs()
    counted = jnp.arange(7)[None] < jnp.array([[4], [0]])
    _, routing = run(state, x, counted)
    _, alone = run(state, x[:1, :4])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), routing, alone)
    assert routing.tokens == 4
    assert routing.counts.sum() == 8


def test_losses_by_hand():
    """Two layers of three experts, of which tokens choose one."""
    routing = Routing(
        counts=jnp.array([[4.0, 0.0, 0.0], [2.0, 1.0, 1.0]]),
        probabilities=jnp.array([[2.0, 1.0, 1.0], [1.0, 2.0, 1.0]]),
        squared_normaliser=jnp.array([8.0, 4.0]),
        tokens=jnp.array([4.0, 4.0]),
    )
    expected = 3 * (6 * 3 + 1 * 3 + 1 * 2) / 64
    np.testing.assert_allclose(load_balancing_loss([routing]), expected)
    layers = [jax.tree.map(lambda x, i=i: x[i], routing) for i in range(2)]
    np.testing.assert_allclose(load_balancing_loss(layers), expected)
    np.testing.assert_allclose(router_z_loss([routing]), 12 / 8)
    np.testing.assert_allclose(largest_load(layers), 3.0)


def test_the_choice_has_no_gradient_but_the_weights_have():
    mixture, x = module(DEEPSEEK), inputs()
    graph, state = nnx.split(mixture)

    def loss(state):
        return nnx.merge(graph, state)(x)[0].sum()

    gradients = nnx.to_pure_dict(jax.jit(jax.grad(loss))(state))
    assert not gradients["router"]["correction_bias"].any()
    assert gradients["router"]["kernel"].any()
    assert gradients["experts"]["down"]["kernel"].any()
