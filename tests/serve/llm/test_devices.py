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
from ziggurat.models.loading import gguf_output, pretrained
from ziggurat.models.quantized import summed_axes
from ziggurat.nn import (
    AttentionRule,
    BlockConfig,
    DecoderConfig,
    GatedMlpConfig,
    GroupedAttentionConfig,
    LayerConfig,
    Mamba2Config,
    NormConfig,
    RopeConfig,
)
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
                block=BlockConfig(
                    mixer=mixer, mlp=MLP if name == "grouped" else EXPERTS, norm=NORM
                ),
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
    sizes = {"d_model": 64, "n_layers": 1, "n_heads": heads, "d_ff": 96, "init_std": 0.2}
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


@pytest.mark.slow
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


@pytest.fixture(scope="module")
def files(tokenizer, tmp_path_factory):
    """A model as a Hugging Face directory, a GGUF file and a checkpoint of int8 weights."""
    where = tmp_path_factory.mktemp("models")
    model, params = small_llama(vocab=261)
    whole = pretrained.Pretrained(model, params, tokenizer, "small", "here")
    small = quantize(params, NAMED["int8"], summed_axes(model)).params
    gguf_output.export_gguf(whole, where / "small.gguf")
    return {
        "hf": pretrained.export_hf(whole, where / "hf"),
        "gguf": where / "small.gguf",
        "checkpoint": pretrained.save(dataclasses.replace(whole, params=small), where / "int8"),
    }


@pytest.mark.sweep
@pytest.mark.parametrize("form", ["hf", "gguf", "checkpoint"])
def test_weights_are_read_into_their_shards(files, form):
    """While they are read no device holds more of an array than a quarter of the largest, and at
    the end about a quarter of all."""
    before = {id(array) for array in jax.live_arrays()}
    _, params = small_llama(vocab=261)
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(params))
    seen = []

    def told(name, done, count):
        for array in jax.live_arrays():
            if id(array) not in before and array.ndim > 1:
                seen.append(max(shard.data.nbytes for shard in array.addressable_shards))

    layout = serving_layout("tensor=4")
    loaded = pretrained.load(files[form], layout=layout, told=told)
    assert (len(seen) > 0) == (form != "checkpoint")
    assert max(seen, default=0) <= largest / 4
    sizes = dict.fromkeys(layout.mesh.devices.flat, 0)
    for leaf in jax.tree.leaves(loaded.params):
        for shard in leaf.addressable_shards:
            sizes[shard.device] += shard.data.nbytes
    assert max(sizes.values()) < 0.35 * sum(leaf.nbytes for leaf in jax.tree.leaves(loaded.params))


@pytest.mark.slow
def test_a_path_is_served_on_a_mesh(files):
    """Int8 weights and an int8 cache, of two key/value heads on four devices."""
    settings = dataclasses.replace(SETTINGS, kv_cache_dtype="int8")
    asked = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    found = []
    for where in (None, {"tensor": 4}):
        with LLM(files["checkpoint"], settings, mesh=where) as llm:
            found.append(llm.generate([5, 6, 7, 8, 9], asked)[0].completions[0].token_ids)
            cache = llm.engine._runner._cache
    assert llm.engine.devices == 4
    assert found[0] == found[1]
    assert len(found[0]) == 6
    (pool,) = cache.pools
    assert pool.keys.sharding.shard_shape(pool.keys.shape)[0] == 1


def test_a_mesh_that_does_not_divide_is_refused_before_weights_are_read(files, monkeypatch):
    monkeypatch.setattr(pretrained, "load", None)
    with pytest.raises(ShardingError, match="heads = 8; expected a multiple of 3"):
        LLM(files["hf"], mesh="tensor=3")


REFUSED = {
    "tensor=3": "the heads .*heads = 8; expected a multiple of 3 .*; tensor=2, 4 or 8 divides",
    "expert=2": "mesh.expert: found 2 and a model without experts; expected 1; shard",
}


@pytest.mark.parametrize(("where", "told"), REFUSED.items())
def test_the_sizes_that_divide_are_named(where, told):
    model, _ = small_llama()
    with pytest.raises(ShardingError, match=told):
        check_divides(model, serving_layout(where))


def test_experts_and_widths_that_do_not_divide_are_named():
    model, _ = every_layer()
    for where, told in {
        "expert=3": "experts = 4; expected a multiple of 3 .*; expert=2 or 4 divides the model",
        "tensor=8": "heads = 4; expected a multiple of 8 .*; tensor=2 or 4 divides the model",
    }.items():
        with pytest.raises(ShardingError, match=told):
            check_divides(model, serving_layout(where))
    check_divides(model, serving_layout("tensor=4,expert=2"))


UNUSABLE = {
    "tensor": "'tensor'; expected AXIS=SIZE once for each axis",
    "tensor=2,tensor=2": "expected AXIS=SIZE once for each axis",
    "tensr=2": "tensr",
    "fsdp=2": "mesh.fsdp: found 2; expected 1 where a model is served",
    "tensor=0": "a number >= 1, or -1 for the rest",
    "tensor=16": "mesh tensor=16: found 8 cpu devices; expected 16 devices; XLA_FLAGS=",
}


@pytest.mark.parametrize(("text", "told"), UNUSABLE.items())
def test_a_mesh_that_cannot_be_built_is_refused_in_one_line(text, told):
    with pytest.raises((ConfigError, ShardingError), match=told):
        serving_layout(text)


@pytest.mark.slow
def test_forms_of_a_mesh():
    assert sizes_of("tensor=2, expert=-1") == {"tensor": 2, "expert": -1}
    sizes = {"tensor=-1": 8, "tensor=2": 2, "tensor=3,expert=-1": 6}
    assert {text: serving_layout(text).mesh.size for text in sizes} == sizes
    forms = (mesh.MeshConfig(tensor=2), {"tensor": 2}, serving_layout("tensor=2"))
    assert [serving_layout(form).ways("heads") for form in forms] == [2, 2, 2]
    assert serving_layout("tensor=2,expert=2").ways("batch") == 1, "a step of one row divides"
