"""The decoder: contexts, remat policies, a program whose size does not grow with depth."""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ziggurat.nn import (
    AttentionRule,
    BlockConfig,
    Cached,
    Causal,
    Decoder,
    DecoderConfig,
    GatedMlpConfig,
    GroupedAttentionConfig,
    LayerConfig,
    NormConfig,
    Packed,
    Precision,
    RopeConfig,
)
from ziggurat.nn.layer_scan import Remat
from ziggurat.nn.stacking import runs, stack_name

NORM = NormConfig(eps=1e-5)
BLOCK = BlockConfig(
    mixer=GroupedAttentionConfig(heads=4, kv_heads=2, head_dim=4),
    mlp=GatedMlpConfig(hidden=24, activation="silu"),
    norm=NORM,
)
LAYER = LayerConfig(block=BLOCK, rule=AttentionRule(0.5), rope=RopeConfig(theta=100.0))
CONFIG = DecoderConfig(
    vocab_size=40, d_model=16, layers=(LAYER,) * 2, norm=NORM, tie_embeddings=True, init_std=0.3
)


def with_layers(*layers):
    return dataclasses.replace(CONFIG, layers=layers)


def windowed(window):
    layer = dataclasses.replace(LAYER, rule=AttentionRule(0.5, window=window))
    return with_layers(layer, layer)


def structure(config=CONFIG, remat: Remat = "none", precision=None):
    """Graph and shapes of a decoder; nothing is allocated."""

    def make(key):
        rngs = nnx.Rngs(params=key)
        return Decoder(config, precision=precision or Precision(), remat=remat, rngs=rngs)

    return nnx.split(nnx.eval_shape(make, jax.random.key(0)))


def parameters(config=CONFIG):
    """Parameters by numpy, which compiles nothing; norms near one."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        offset = 1.0 if "scale" in jax.tree_util.keystr(path) else 0.0
        return jnp.asarray(offset + 0.3 * rng.normal(size=leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, structure(config)[1])


def positions_of(tokens):
    return jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)


def runner(config=CONFIG):
    graph = structure(config)[0]

    @jax.jit
    def run(params, tokens, positions, context):
        return nnx.merge(graph, params)(tokens, positions, context)

    return run


TOKENS = jnp.asarray(np.random.default_rng(1).integers(0, 40, (2, 12)))


@pytest.mark.parametrize("window", [None, 3])
def test_packed_documents_are_as_if_alone(window):
    config = windowed(window)
    run, params = runner(config), parameters(config)
    lengths = (5, 4, 3)
    segments = jnp.repeat(jnp.array([1, 2, 3]), jnp.array(lengths))[None].repeat(2, 0)
    positions = jnp.concatenate([jnp.arange(n) for n in lengths])[None].repeat(2, 0)
    packed, context = run(params, TOKENS, positions, Packed(segments))
    np.testing.assert_array_equal(context.segment_ids, segments)
    start = 0
    for length in lengths:
        # padded to one length, so that one program serves all; what follows cannot be seen
        alone = jnp.pad(TOKENS[:, start : start + length], ((0, 0), (0, 12 - length)))
        expected, _ = run(params, alone, positions_of(alone), Causal())
        np.testing.assert_allclose(
            packed[:, start : start + length], expected[:, :length], atol=2e-5, rtol=0
        )
        start += length


def test_one_document_packed_is_causal():
    run, params = runner(), parameters()
    packed, _ = run(params, TOKENS, positions_of(TOKENS), Packed(jnp.ones_like(TOKENS)))
    causal, _ = run(params, TOKENS, positions_of(TOKENS), Causal())
    np.testing.assert_allclose(packed, causal, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("window", "reach"), [(None, 11), (3, 4), (1, 0)])
def test_a_token_reaches_as_far_as_the_windows_of_all_layers(window, reach):
    """Two layers of window w carry a change 2 (w - 1) tokens on, and never backwards."""
    config = windowed(window)
    run, params = runner(config), parameters(config)
    changed = TOKENS.at[:, 0].set((TOKENS[:, 0] + 1) % 40)
    before, _ = run(params, TOKENS, positions_of(TOKENS), Causal())
    after, _ = run(params, changed, positions_of(TOKENS), Causal())
    differs = np.asarray((before != after).any(-1)[0])
    assert differs.tolist() == [index <= reach for index in range(12)]
    last = TOKENS.at[:, 11].set((TOKENS[:, 11] + 1) % 40)
    after, _ = run(params, last, positions_of(TOKENS), Causal())
    np.testing.assert_array_equal(before[:, :11], after[:, :11])


@pytest.mark.parametrize("window", [None, 3])
def test_rows_of_different_length_share_a_cache(window):
    """Prompts of 7 and 4 tokens, padded on the right; then both rows continue, each at its
    place."""
    config = windowed(window)
    run, params = runner(config), parameters(config)
    full, _ = run(params, TOKENS, positions_of(TOKENS), Causal())
    lengths = jnp.array([7, 4])
    prompt = jnp.where(jnp.arange(7)[None] < lengths[:, None], TOKENS[:, :7], 39)
    cache = Cached.empty(CONFIG.states, 2, 12, jnp.float32)
    out, cache = run(params, prompt, positions_of(prompt), cache)
    assert cache.lengths.tolist() == [7, 7]
    cache = dataclasses.replace(cache, lengths=lengths)
    for row, length in enumerate(lengths.tolist()):
        np.testing.assert_allclose(out[row, :length], full[row, :length], atol=2e-5, rtol=0)
    rows = jnp.arange(2)
    for _ in range(5):
        at = cache.lengths
        out, cache = run(params, TOKENS[rows, at][:, None], at[:, None], cache)
        np.testing.assert_allclose(out[:, 0], full[rows, at], atol=2e-5, rtol=0)
    assert cache.lengths.tolist() == [12, 9]


def test_padding_beyond_the_last_slot_leaves_the_cache_alone():
    """A chunk of 5, of which 2 count, written where 2 slots remain."""
    run, params = runner(), parameters()
    full, _ = run(params, TOKENS, positions_of(TOKENS), Causal())
    cache = Cached.empty(CONFIG.states, 2, 9, jnp.float32)
    positions = positions_of(TOKENS)
    _, cache = run(params, TOKENS[:, :7], positions[:, :7], cache)
    out, cache = run(params, TOKENS[:, 7:], positions[:, 7:], cache)
    np.testing.assert_allclose(out[:, :2], full[:, 7:9], atol=2e-5, rtol=0)


def test_cache_may_be_kept_in_another_type():
    run, params = runner(), parameters()
    cache = Cached.empty(CONFIG.states, 2, 12, jnp.bfloat16)
    out, cache = run(params, TOKENS, positions_of(TOKENS), cache)
    full, _ = run(params, TOKENS, positions_of(TOKENS), Causal())
    assert cache.states[0].keys.dtype == jnp.bfloat16
    error = np.abs(np.asarray(out - full)).max()
    assert 1e-5 < error < 0.2


def loss_of(graph):
    def loss(params, tokens):
        decoder = nnx.merge(graph, params)
        hidden, _ = decoder(tokens, positions_of(tokens), Causal())
        return (jax.nn.log_softmax(hidden @ decoder.head.T)[..., 0]).mean()

    return loss


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_changes_no_loss_and_no_gradient(remat):
    params = parameters()
    results = [
        jax.jit(jax.value_and_grad(loss_of(structure(remat=kind)[0])))(params, TOKENS)
        for kind in ("none", remat)
    ]
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-4),
        results[0][1],
        results[1][1],
    )


def test_remat_keeps_less_for_the_backward_pass():
    """Bytes of residuals per policy: all, results of weight products, inputs of blocks only."""
    shapes = structure()[1]
    kept, policies = {}, typing.get_args(Remat)
    for remat in policies:
        loss = loss_of(structure(remat=remat)[0])
        backward = jax.eval_shape(lambda p, t, loss=loss: jax.vjp(loss, p, t)[1], shapes, TOKENS)
        kept[remat] = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(backward))
    assert kept["full"] < kept["dots"] < kept["none"]


def test_the_program_does_not_grow_with_depth():
    sizes = []
    for layers in (2, 8):
        config = with_layers(*(LAYER,) * layers)
        graph, shapes = structure(config)
        step = jax.value_and_grad(loss_of(graph))
        text = jax.jit(step).lower(shapes, TOKENS).as_text()
        sizes.append(text.count("\n"))
    assert sizes[0] == sizes[1]


def test_attention_kernels_may_be_forced_and_agree():
    params, results = parameters(), []
    for name in ("reference", "grouped"):

        def make(key, name=name):
            rngs = nnx.Rngs(params=key)
            return Decoder(CONFIG, precision=Precision(), attention_kernel=name, rngs=rngs)

        graph, _ = nnx.split(nnx.eval_shape(make, jax.random.key(0)))
        results.append(jax.jit(loss_of(graph))(params, TOKENS))
    np.testing.assert_allclose(*results, rtol=1e-5)


def test_compute_type_reaches_the_hidden_states():
    graph, _ = structure(precision=Precision(compute="bfloat16"))

    def run(params, tokens):
        return nnx.merge(graph, params)(tokens, positions_of(tokens), Causal())[0]

    out = jax.eval_shape(run, parameters(), TOKENS)
    assert (out.shape, out.dtype) == ((2, 12, 16), jnp.bfloat16)


LOCAL = dataclasses.replace(LAYER, rule=AttentionRule(0.5, window=3), rope=RopeConfig(theta=10.0))
WIDE = dataclasses.replace(
    LAYER, block=dataclasses.replace(BLOCK, mlp=GatedMlpConfig(hidden=32, activation="gelu"))
)
MIXED = {
    "one kind": (LAYER,) * 5,
    "local and global": (LOCAL, LOCAL, LAYER) * 2 + (LOCAL,),
    "other parameters first": (WIDE, LAYER, LAYER, LAYER),
    "other parameters between": (LAYER, WIDE, LOCAL, LAYER, WIDE, LOCAL, LAYER),
    "all different": (LAYER, LOCAL, WIDE),
}


@pytest.mark.slow
@pytest.mark.parametrize("layers", MIXED.values(), ids=MIXED)
def test_scanning_equals_one_layer_after_another(layers):
    config = with_layers(*layers)
    params = parameters(config)
    cache = Cached.empty(config.states, 2, 16, jnp.float32)
    scanned, cache = runner(config)(params, TOKENS, positions_of(TOKENS), cache)
    decoder = nnx.merge(structure(config)[0], params)
    x, angles, _ = decoder.begin(TOKENS, positions_of(TOKENS), Causal())
    for number, (layer, place) in enumerate(zip(layers, config.places)):
        step = decoder.layer_step(layer, positions_of(TOKENS), angles[number], Causal())
        stack = params[stack_name(place.stack)]
        x, _, _ = step(jax.tree.map(lambda leaf, p=place: leaf[p.index], stack), x, ())
    np.testing.assert_allclose(scanned, decoder.finish(x), atol=1e-5, rtol=0)
    for state in cache.states:
        assert (np.abs(np.asarray(state.keys[:, :, :12])).sum((1, 2, 3, 4)) > 0).all()


def test_a_period_is_traced_once():
    texts = []
    for repeats in (2, 6):
        graph, shapes = structure(with_layers(*(LOCAL, LAYER) * repeats))
        step = jax.value_and_grad(loss_of(graph))
        texts.append(jax.jit(step).lower(shapes, TOKENS).as_text().count("\n"))
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("AAAA", [(0, 1, 4)]),
        ("DDDMMMMM", [(0, 1, 3), (3, 1, 5)]),
        ("LLLLLG" * 4 + "LL", [(0, 6, 4), (24, 1, 2)]),
        ("DMDMDM", [(0, 2, 3)]),
        ("ABC", [(0, 1, 1), (1, 1, 1), (2, 1, 1)]),
        ("A", [(0, 1, 1)]),
    ],
)
def test_runs(layers, expected):
    assert [(run.start, run.period, run.repeats) for run in runs(layers)] == expected
