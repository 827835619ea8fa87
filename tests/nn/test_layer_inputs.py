"""Layers that read inputs of their own, or attend to keys and values of earlier layers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ziggurat.data.tokenizers import byte_level
from ziggurat.models import Gemma4Config, LanguageModel
from ziggurat.models.layer_by_layer import LayerByLayer
from ziggurat.models.summary import summarise
from ziggurat.nn import Causal
from ziggurat.nn.layer_scan import scan_layers
from ziggurat.nn.multimodal import MultimodalInputs
from ziggurat.serve.llm.engine import Engine, EngineConfig
from ziggurat.serve.llm.sampling import SamplingParams

VOCAB, TOKENS = 48, 24
CONFIG = Gemma4Config(
    vocab_size=VOCAB,
    d_model=16,
    n_layers=4,
    n_heads=2,
    n_kv_heads=1,
    head_dim=8,
    global_head_dim=12,
    d_ff=24,
    window=5,
    pattern=("local", "global"),
    layer_input_width=4,
    sharing_layers=2,
    wide_sharing_mlp=True,
    max_sequence_length=64,
    init_std=0.2,
)


@pytest.fixture(scope="module")
def model():
    return LanguageModel.build(CONFIG)


@pytest.fixture(scope="module")
def params(model):
    return model.init(jax.random.key(1))


@pytest.fixture(scope="module")
def tokens():
    return jax.random.randint(jax.random.key(0), (2, TOKENS), 0, VOCAB)


def test_the_last_layer_of_each_reach_is_the_source():
    layers = dataclasses.replace(CONFIG, n_layers=6, sharing_layers=3).decoder().layers
    assert [layer.source for layer in layers] == [None, None, None, 1, 2, 1]
    assert [layer.rule.read_later for layer in layers] == [False, True, True] + [False] * 3


def test_only_layers_with_keys_of_their_own_take_cache(model):
    alone = LanguageModel.build(dataclasses.replace(CONFIG, sharing_layers=0))
    shared, own = (summarise(m, TOKENS).state_bytes_per_token for m in (model, alone))
    local, whole = 2 * 8 * 4, 2 * 12 * 4
    assert shared == local + whole
    assert own == 2 * shared


@pytest.mark.slow
def test_gradients_do_not_depend_on_what_is_kept(model, params, tokens):
    def gradient(remat):
        own = LanguageModel.build(CONFIG, remat=remat)

        def loss(params):
            logits = own.logits(params, tokens)
            return -jax.nn.log_softmax(logits)[:, :, 0].mean()

        return jax.jit(jax.grad(loss))(params)

    kept, again = gradient("none"), gradient("full")
    key = kept["blocks"]["attention"]["key"]["kernel"]
    assert jnp.abs(key).max() > 0
    for one, other in zip(jax.tree.leaves(kept), jax.tree.leaves(again)):
        np.testing.assert_allclose(one, other, atol=1e-6)  # sums in another order


@pytest.mark.slow
def test_layers_one_by_one_give_what_the_scan_gives(model, params, tokens):
    by_layer = LayerByLayer(model, params, np.asarray(tokens))
    for layer in range(CONFIG.n_layers):
        by_layer.advance(layer, {})
    positions = jnp.broadcast_to(jnp.arange(TOKENS), tokens.shape)
    whole, _ = model.hidden(params, tokens, positions, Causal())
    eps = model.decoder.norm.eps
    last = np.concatenate(by_layer._rows)
    normed = last / np.sqrt((last**2).mean(-1, keepdims=True) + eps)
    scale = np.asarray(params["final_norm"]["scale"])
    np.testing.assert_allclose(normed * scale, whole, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["auto", pytest.param("int8", marks=pytest.mark.slow)])
def test_the_engine_reads_the_blocks_of_the_source(model, params, storage):
    """Tokens as from whole passes, in chunks and from the prefix cache; rounding may change one."""
    prompt = np.random.default_rng(3).integers(0, VOCAB, 21).tolist()
    made = list(prompt)
    logits = jax.jit(model.logits)
    for _ in range(8):
        row = np.zeros((1, 32), np.int32)
        row[0, : len(made)] = made
        made.append(int(logits(params, jnp.asarray(row))[0, len(made) - 1].argmax()))
    settings = EngineConfig(
        max_sequence_length=64, max_prefill_chunk=8, max_running=2, kv_cache_dtype=storage
    )
    wanted = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    with Engine(model, params, byte_level({}), settings) as engine:
        found = [[e.token for e in engine.submit(prompt, wanted)] for _ in range(2)]
    assert found[0] == found[1]
    if storage == "auto":
        assert found[0] == made[len(prompt) :]


def test_images_stand_on_the_padding_row(model, params, tokens):
    """The ids below an image's embeddings do not matter."""
    places = jnp.array([[2, 3], [5, TOKENS]])
    embeddings = jax.random.normal(jax.random.key(2), (2, 2, CONFIG.d_model))
    inputs = MultimodalInputs(embeddings, places)
    other = tokens.at[0, 2].set(7).at[1, 5].set(9)
    one, two = (model.logits(params, ids, inputs=inputs) for ids in (tokens, other))
    np.testing.assert_array_equal(one, two)


def test_a_scan_hands_out_states_and_inputs():
    @dataclasses.dataclass(frozen=True)
    class Layer:
        source: int | None = None

    def step(number):
        def one(weight, x, state, own):
            held = x if layers[number].source is None else state
            return x + weight * held + own, held, None

        return one

    layers = [Layer(), Layer(), Layer(0), Layer(0)]
    weights, own = jnp.array([1.0, 2.0, 10.0, 20.0]), jnp.array([0.0, 1.0, 0.0, 0.0])
    found = scan_layers(layers, [weights], step, jnp.float32(1), inputs=own)
    # 1 + 1; 2 + 4 + 1; 7 + 10 * 1; 17 + 20 * 1, the first layer's input
    assert float(found.x) == 37.0
