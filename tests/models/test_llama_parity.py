"""Llama and Mistral against transformers: random weights, every switch, float32 logits.

Tolerance 1e-4 on logits of order one: both sides sum the same products in another order.
"""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from ziggurat.models import LanguageModel, family_for_architecture
from ziggurat.models.weight_names import export_weights, import_weights

pytestmark = pytest.mark.parity

BASE = dict(
    vocab_size=96,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=6,
    max_position_embeddings=64,
    initializer_range=0.2,
)
LLAMA3 = dict(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)
SWITCHES = {
    "plain": {},
    "gqa-3": dict(num_key_value_heads=3),
    "gqa-2": dict(num_key_value_heads=2),
    "mqa": dict(num_key_value_heads=1),
    "tied": dict(tie_word_embeddings=True),
    "attention-bias": dict(attention_bias=True),
    "mlp-bias": dict(mlp_bias=True),
    "head-dim": dict(head_dim=16),
    "eps": dict(rms_norm_eps=1e-2),
    "gelu": dict(hidden_act="gelu"),
    "gelu-tanh": dict(hidden_act="gelu_pytorch_tanh"),
    "relu": dict(hidden_act="relu"),
    "theta": dict(rope_parameters=dict(rope_type="default", rope_theta=500.0)),
    "rope-linear": dict(rope_parameters=dict(rope_type="linear", factor=4.0, rope_theta=1e4)),
    "rope-llama3": dict(rope_parameters=LLAMA3 | dict(rope_theta=5e5)),
    "rope-yarn": dict(rope_parameters=YARN | dict(rope_theta=1e4)),
    "rope-yarn-factor": dict(
        rope_parameters=YARN | dict(rope_theta=1e4, attention_factor=1.3, beta_fast=16, beta_slow=2)
    ),
    "rope-yarn-mscale": dict(
        rope_parameters=YARN | dict(rope_theta=1e4, mscale=0.7, mscale_all_dim=1.0, truncate=False)
    ),
    "mistral": dict(architecture="Mistral", num_key_value_heads=2, sliding_window=7),
    "mistral-no-window": dict(architecture="Mistral", num_key_value_heads=2, sliding_window=None),
}


class Tensors(dict):
    read = dict.__getitem__


def torch_model(switches: dict):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    switches = dict(switches)
    name = switches.pop("architecture", "Llama")
    config = getattr(transformers, f"{name}Config")(**(BASE | switches))
    config.architectures = [f"{name}ForCausalLM"]
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():  # biases start at zero and norms at one: give them values
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def ours(model):
    """Our config, model and parameters, from what transformers would save."""
    values = json.loads(model.config.to_json_string(use_diff=False))
    values["architectures"] = model.config.architectures
    family = family_for_architecture(values["architectures"][0])
    config = family.from_hf(values)
    language_model = LanguageModel.build(config)
    tensors = Tensors({n: t.detach().numpy() for n, t in model.state_dict().items()})
    tied = config.tie_embeddings
    params = import_weights(
        family.hf_names(config),
        tensors,
        language_model.abstract,
        layers=config.n_layers,
        ignored=lambda name: tied and name == "lm_head.weight",
        place=lambda name, array: jnp.asarray(array),
    )
    return family, config, language_model, params


@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES.keys())
def test_logits_equal_transformers(switches):
    import torch

    model = torch_model(switches)
    tokens = np.random.default_rng(0).integers(0, BASE["vocab_size"], (2, 40))
    with torch.no_grad():
        expected = model(torch.tensor(tokens)).logits.numpy()
    _, _, language_model, params = ours(model)
    found = np.asarray(language_model.logits(params, jnp.asarray(tokens)))
    assert np.abs(expected).max() > 0.1, "logits too small for the test to mean anything"
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES.keys())
def test_prefill_and_decode_equal_the_full_forward(switches):
    _, _, model, params = ours(torch_model(switches))
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, BASE["vocab_size"], (2, 24)))
    full = model.logits(params, tokens)
    positions = jnp.broadcast_to(jnp.arange(24)[None], tokens.shape)
    cache, parts = model.cache(2, 32), []
    for start, stop in [(0, 13), *((i, i + 1) for i in range(13, 24))]:
        part = slice(start, stop)
        hidden, cache = model.hidden(params, tokens[:, part], positions[:, part], cache)
        parts.append(model.project(params, hidden))
    np.testing.assert_allclose(jnp.concatenate(parts, 1), full, atol=1e-4, rtol=0)
    assert cache.lengths.tolist() == [24, 24]


@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES.keys())
def test_export_is_the_inverse_of_import(switches):
    transformers = pytest.importorskip("transformers")
    model = torch_model(switches)
    family, config, _, params = ours(model)
    state = {k: v.numpy() for k, v in model.state_dict().items()}
    written = dict(export_weights(family.hf_names(config), params, layers=config.n_layers))
    missing = set(state) - set(written)
    assert missing <= ({"lm_head.weight"} if config.tie_embeddings else set())
    for name, tensor in written.items():
        np.testing.assert_array_equal(tensor, state[name])
    again = family.from_hf(family.to_hf(config))
    assert again.decoder() == config.decoder()
    values = family.to_hf(config)
    theirs = transformers.AutoConfig.for_model(**values)
    for key in ("hidden_size", "num_key_value_heads", "tie_word_embeddings", "hidden_act"):
        assert getattr(theirs, key) == getattr(model.config, key)
    for key, value in (model.config.rope_parameters or {}).items():
        assert theirs.rope_parameters[key] == value, key


def test_gradients_equal_torch():
    import jax
    import torch

    model = torch_model(dict(num_key_value_heads=2, attention_bias=True, mlp_bias=True))
    family, config, language_model, params = ours(model)
    tokens = np.random.default_rng(2).integers(0, BASE["vocab_size"], (2, 16))
    labels = torch.tensor(tokens)
    logits = model(labels).logits[:, :-1].reshape(-1, BASE["vocab_size"])
    torch.nn.functional.cross_entropy(logits, labels[:, 1:].reshape(-1)).backward()
    expected = {n: p.grad.numpy() for n, p in model.named_parameters()}

    def loss(params):
        logp = jax.nn.log_softmax(language_model.logits(params, jnp.asarray(tokens))[:, :-1])
        return -jnp.take_along_axis(logp, jnp.asarray(tokens)[:, 1:, None], axis=-1).mean()

    gradients = jax.grad(loss)(params)
    found = dict(export_weights(family.hf_names(config), gradients, layers=config.n_layers))
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        scale = np.abs(expected[name]).max()
        assert np.abs(gradient - expected[name]).max() <= 1e-4 * scale + 1e-8, name
