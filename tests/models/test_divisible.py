"""Models made to divide over a mesh: the logits that they had."""

import dataclasses

import jax
import numpy as np
import pytest
from tests.nn.test_gated_delta_net import ATTENTION, GROUPED, MIXED, RECURRENT

from ziggurat import mesh
from ziggurat.core.errors import ShardingError
from ziggurat.models import LanguageModel
from ziggurat.models.divisible import REPLICABLE, divisible, divisible_params
from ziggurat.nn import DecoderConfig, NormConfig

FOUR = dataclasses.replace(
    mesh.build(mesh.MeshConfig(fsdp=1, tensor=4), jax.devices()[:4]), replicable=REPLICABLE
)


def attention(**settings):
    mixer = dataclasses.replace(GROUPED, **settings)
    return dataclasses.replace(ATTENTION, block=dataclasses.replace(ATTENTION.block, mixer=mixer))


@dataclasses.dataclass(frozen=True)
class SwitchesConfig:
    """A family of one: whatever has a shape that follows the key/value heads."""

    layers: tuple
    kind: str = "switches"
    vocab_size: int = 41
    max_sequence_length: int = 32

    def decoder(self) -> DecoderConfig:
        return dataclasses.replace(MIXED, vocab_size=41, layers=self.layers)


@pytest.mark.slow
def test_repeated_heads_and_a_padded_vocabulary_keep_the_logits():
    """A gated delta net with two key heads for four value heads, and attention with biases and
    norms over each head and over all of them, on four devices."""
    norm = NormConfig(eps=1e-5)
    layers = (
        RECURRENT,
        attention(bias=True, width_norm=norm),
        attention(head_norm=norm, norm_each_head=True, kv_heads=1),
    )
    model = LanguageModel.build(SwitchesConfig(layers))
    leaves, tree = jax.tree.flatten(model.init(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))  # no two heads are alike
    params = tree.unflatten(
        [leaf + 0.1 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves)]
    )
    made = divisible(model, FOUR)
    assert [block.mixer.divided for block in made.decoder.stacks] == [
        {"heads": 4, "kv_heads": 4}
    ] * 3
    placed = divisible_params(model, made, params, FOUR)
    key = placed["blocks"]["delta_net"]["key"]["kernel"]
    assert key.sharding.shard_shape(key.shape) == (1, 16, 4)
    tokens = jax.random.randint(jax.random.key(2), (2, 9), 0, 41)
    with FOUR.active():
        found = jax.jit(made.logits)(placed, tokens)[..., :41]
    expected = jax.jit(model.logits)(params, tokens)
    np.testing.assert_allclose(found, expected, atol=1e-3)  # as a delta net magnifies rounding


def test_a_model_that_divides_is_left_as_it_is():
    model = LanguageModel.build(SwitchesConfig((attention(kv_heads=4),)))
    one = mesh.build(mesh.MeshConfig(), jax.devices()[:1])
    assert divisible(model, one) is model


def test_layers_that_would_become_alike_are_refused():
    model = LanguageModel.build(SwitchesConfig((attention(kv_heads=2), attention(kv_heads=4))))
    with pytest.raises(ShardingError, match="differ in their key/value heads alone"):
        divisible(model, FOUR)
