"""Mixers by name: a decoder of another mixer trains, decodes as it reads, and refuses what does not
apply."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ziggurat.core import config
from ziggurat.core.errors import ConfigError, ModelError
from ziggurat.models import LanguageModel, LlamaConfig
from ziggurat.models.families import llama
from ziggurat.nn.gated_delta_net import GatedDeltaNetConfig

BASE = "vocab_size = 32, d_model = 16, n_layers = 2, n_heads = 4, n_kv_heads = 2"


@config.node
class File:
    model: LlamaConfig


def read(text: str) -> LlamaConfig:
    return config.parse(File, f"model = {{ {BASE}, {text} }}").value.model


@pytest.mark.slow
def test_a_named_mixer_decodes_as_it_reads():
    settings = read("mixer = { kind = 'delta_net', taps = 3 }")
    model = LanguageModel.build(settings)
    mixer = model.decoder.layers[0].block.mixer
    assert isinstance(mixer, GatedDeltaNetConfig)
    assert (mixer.key_heads, mixer.value_heads, mixer.key_dim, mixer.taps) == (2, 4, 4, 3)
    params = model.init(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 7), 0, 32)
    whole = model.logits(params, tokens)
    cache, parts = model.cache(2, 8), []
    for first, last in ((0, 4), (4, 5), (5, 7)):
        at = jnp.broadcast_to(jnp.arange(first, last)[None], (2, last - first))
        hidden, cache = model.hidden(params, tokens[:, first:last], at, cache)
        parts.append(model.project(params, hidden))
    # float32 sums in another order
    np.testing.assert_allclose(np.concatenate(parts, 1), whole, atol=2e-5)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("mixer = { kind = 'delta_nett' }", "did you mean delta_net"),
        ("mixer = { kind = 'delta_net', taps = 1 }", "a number >= 2"),
        ("mixer = { kind = 'delta_net' }, window = 4", "none with this mixer"),
        ("mixer = { kind = 'delta_net' }, attention_bias = true", "false with mixer delta_net"),
    ],
)
def test_what_does_not_apply_is_refused(text, told):
    with pytest.raises(ConfigError, match=told):
        read(text)


def test_no_form_of_hugging_face():
    settings = read("mixer = { kind = 'delta_net' }")
    for call in (llama.hf.to_hf, llama.hf.hf_names):
        with pytest.raises(ModelError, match="kind delta_net"):
            call(settings)
