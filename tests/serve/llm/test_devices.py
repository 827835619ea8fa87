"""Engines on meshes of two to eight devices: the tokens and logits of one device, weights that are
read into their shards, and meshes that do not fit."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from ziggurat import mesh
from ziggurat.core.errors import ConfigError, ShardingError
from ziggurat.models import LanguageModel, LlamaConfig
from ziggurat.models.loading import pretrained
from ziggurat.models.quantized import summed_axes
from ziggurat.nn import AttentionRule, BlockConfig, DecoderConfig, GatedMlpConfig, LayerConfig
from ziggurat.nn import GroupedAttentionConfig, Mamba2Config, NormConfig, RopeConfig
from ziggurat.nn.latent_attention import LatentAttentionConfig
from ziggurat.nn.moe import MixtureOfExpertsConfig
from ziggurat.nn.router import RouterConfig
from ziggurat.quantize import NAMED
from ziggurat.quantize.weights import quantize
from ziggurat.serve.llm import LLM
from ziggurat.serve.llm.devices import check_divides, serving_layout, sizes_of
from ziggurat.serve.llm.engine import Engine, EngineConfig
from ziggurat.serve.llm.sampling import SamplingParams

SETTINGS = EngineConfig(
    max_sequence_length=32, max_running=1, max_prefill_chunk=16, max_batched_tokens=17, block_size=8
)
GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, logprobs=5)
NORM = NormConfig(eps=1e-5)
MLP = GatedMlpConfig(hidden=32, activation="silu")
EXPERTS = MixtureOfExpertsConfig(router=RouterConfig(experts=4, chosen=2), hidden=16, shared=MLP)
MIXERS = {
    "grouped": GroupedAttentionConfig(heads=4, kv_heads=2, head_dim=8),
    "latent": LatentAttentionConfig(
        heads=4, query_latent=8, latent=8, plain_dim=4, rotary_dim=4, value_dim=4, norm=NORM
    ),
    "recurrent": Mamba2Config(heads=4, head_dim=8, groups=1, state_dim=4, taps=4, norm_eps=1e-5),
}
MESHES = ("tensor=2", "tensor=4", "expert=2", "tensor=2,expert=2")


@dataclasses.dataclass(frozen=True)
class EveryLayerConfig:
    """A family of one: a dense layer, latent attention and a recurrent layer with experts."""

    kind: str = "every_layer"
    vocab_size: int = 97
    max_sequence_length: int = 32

    def decoder(self) -> DecoderConfig:
        layers = [
            LayerConfig(
                block=BlockConfig(mixer=mixer, mlp=MLP if name == "grouped" else EXPERTS, norm=NORM),
                rule=AttentionRule(0.4),
                rope=RopeConfig(theta=100.0) if mixer.rope_dim else None,
            )
            for name, mixer in MIXERS.items()
        ]
        return DecoderConfig(
            vocab_size=self.vocab_size, d_model=32, layers=tuple(layers), norm=NORM,
            tie_embeddings=False, init_std=0.2,
        )  # fmt: skip


@functools.cache
def every_layer():
    """Two key/value heads, four experts, and a vocabulary that divides over nothing."""
    model = LanguageModel.build(EveryLayerConfig())
    return model, model.init(jax.random.key(0))


@functools.cache
def small_llama(vocab=97, heads=8, kv_heads=2):
    sizes = {"d_model": 64, "n_layers": 2, "n_heads": heads, "d_ff": 96, "init_std": 0.2}
    sizes |= {"vocab_size": vocab, "max_sequence_length": 32, "n_kv_heads": kv_heads}
    model = LanguageModel.build(LlamaConfig(**sizes))
    return model, model.init(jax.random.key(0))


def answer(model, params, tokenizer, where, settings=SETTINGS):
    """Greedy tokens, the log-probabilities of the five most likely at each, and the runner."""
    prompt = np.random.default_rng(0).integers(0, 96, 12).tolist()
    layout = None if where is None else serving_layout(where)
    with Engine(model, params, tokenizer, settings, mesh=layout) as engine:
        events = list(engine.generate(prompt, GREEDY))
        runner = engine._runner
    tops = [[each.logprob for each in one.top] for event in events for one in event.logprobs]
    return [event.token for event in events], np.array(tops), runner


@pytest.fixture(scope="module")
def alone(tokenizer):
    return answer(*every_layer(), tokenizer, None)


@pytest.mark.sweep
@pytest.mark.parametrize("where", MESHES)
def test_every_kind_of_layer_gives_the_tokens_of_one_device(where, alone, tokenizer):
    """Grouped and latent attention, a recurrent layer, a dense MLP and experts."""
    tokens, tops, runner = answer(*every_layer(), tokenizer, where)
    assert len(tokens) == 6
    assert tokens == alone[0]
    assert tops.size == alone[1].size == 30
    np.testing.assert_allclose(tops, alone[1], atol=1e-5)
    layout = serving_layout(where)
    cache = runner._cache.pools[0].keys  # of grouped attention
    per_device = cache.sharding.shard_shape(cache.shape)[0]
    assert per_device == max(1, 2 // layout.ways("kv_heads")), "only the heads its queries read"
    up = runner._weights.layers[1]["mlp"]["experts"]["up"]["kernel"]
    assert up.size == layout.mesh.size * np.prod(up.sharding.shard_shape(up.shape))
